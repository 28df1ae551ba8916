// Words for what goes wrong: the kernel's name, who waits where, and which thread it was when the process
// dies.
#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "state.h"

#if defined(EMULATION_ASAN) || defined(EMULATION_TSAN)
extern "C" void __sanitizer_set_death_callback(void (*callback)());
#endif

namespace emulation {

namespace {

// The symbol at an address of this module, from the file's .symtab: kernels are not exported.
bool find_symbol(const void* address, char* name, size_t bytes) {
  Dl_info module;
  if (!dladdr(reinterpret_cast<void*>(&find_symbol), &module)) return false;
  const int file = open(module.dli_fname, O_RDONLY);
  struct stat info;
  if (file < 0) return false;
  if (fstat(file, &info) != 0) return close(file), false;
  void* map = mmap(nullptr, size_t(info.st_size), PROT_READ, MAP_PRIVATE, file, 0);
  close(file);
  if (map == MAP_FAILED) return false;
  bool found = false;
  const char* base = static_cast<const char*>(map);
  const auto* header = reinterpret_cast<const Elf64_Ehdr*>(base);
  const auto* sections = reinterpret_cast<const Elf64_Shdr*>(base + header->e_shoff);
  const uintptr_t wanted = uintptr_t(address) - uintptr_t(module.dli_fbase);
  for (int i = 0; i < header->e_shnum && !found; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    const auto* symbols = reinterpret_cast<const Elf64_Sym*>(base + sections[i].sh_offset);
    const char* names = base + sections[sections[i].sh_link].sh_offset;
    for (size_t s = 0; s < sections[i].sh_size / sizeof(Elf64_Sym) && !found; ++s) {
      if (ELF64_ST_TYPE(symbols[s].st_info) != STT_FUNC || symbols[s].st_value != wanted) continue;
      snprintf(name, bytes, "%s", names + symbols[s].st_name);
      found = true;
    }
  }
  munmap(map, size_t(info.st_size));
  return found;
}

void say_who() {
  if (!current || !state->running) return;
  const uint3 b = current->block->index, t = current->index;
  dprintf(2, "CUDA emulation: in %s, block (%u, %u, %u), thread (%u, %u, %u)\n", kernel_name(), b.x, b.y, b.z,
          t.x, t.y, t.z);
}

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL};
struct sigaction old_actions[5] = {{}};

void on_crash(int number) {
  say_who();
  for (int i = 0; i < 5; ++i) sigaction(kSignals[i], &old_actions[i], nullptr);
  raise(number);
}

}  // namespace

const char* kernel_name() {
  static char name[1024] = "";
  char mangled[1024];
  if (!find_symbol(state->kernel, mangled, sizeof(mangled))) return "a kernel";
  int status = 0;
  char* plain = abi::__cxa_demangle(mangled, nullptr, nullptr, &status);
  snprintf(name, sizeof(name), "%s", plain ? plain : mangled);
  free(plain);
  // (anonymous namespace) and parameters say little
  if (char* end = strchr(name, '(')) {
    if (strncmp(end, "(anonymous namespace)::", 23) == 0) {
      memmove(end, end + 23, strlen(end + 23) + 1);
      end = strchr(name, '(');
    }
    if (end) *end = 0;
  }
  return name;
}

void describe_deadlock(char* text, size_t bytes) {
  struct Place {
    const char *what, *file;
    int line, count;
    const Thread* example;
  } places[8];
  int n = 0, exited = 0, elsewhere = 0;
  for (const Block& block : state->blocks) {
    for (int i = 0; i < block.threads; ++i) {
      const Thread& thread = block.first[i];
      if (thread.done) {
        ++exited;
        continue;
      }
      int p = 0;
      while (p < n && !(places[p].what == thread.what && places[p].file == thread.file &&
                        places[p].line == thread.line))
        ++p;
      if (p == n && n < 8) places[n++] = {thread.what, thread.file, thread.line, 0, &thread};
      if (p < n) {
        ++places[p].count;
      } else {
        ++elsewhere;
      }
    }
  }
  size_t used = 0;
  const auto add = [&](int written) { used += written > 0 ? size_t(written) : 0; };
  for (int p = 0; p < n && used < bytes; ++p) {
    const Place& at = places[p];
    add(snprintf(text + used, bytes - used,
                 "%s%d wait at %s (%s:%d), the first being block (%u, %u, %u) thread (%u, %u, %u)",
                 p ? "; " : "", at.count, at.what ? at.what : "nothing", at.file ? at.file : "?", at.line,
                 at.example->block->index.x, at.example->block->index.y, at.example->block->index.z,
                 at.example->index.x, at.example->index.y, at.example->index.z));
  }
  if (elsewhere && used < bytes) add(snprintf(text + used, bytes - used, "; %d wait elsewhere", elsewhere));
  if (used < bytes) add(snprintf(text + used, bytes - used, "; %d have exited", exited));
}

void watch_crashes(bool on) {
#if defined(EMULATION_ASAN) || defined(EMULATION_TSAN)
  __sanitizer_set_death_callback(on ? say_who : nullptr);
#endif
  for (int i = 0; i < 5; ++i) {
#if defined(EMULATION_ASAN) || defined(EMULATION_TSAN)
    if (kSignals[i] != SIGABRT) continue;
#endif
    if (on) {
      struct sigaction action = {};
      action.sa_handler = on_crash;
      action.sa_flags = SA_ONSTACK | SA_NODEFER;
      sigaction(kSignals[i], &action, &old_actions[i]);
    } else {
      sigaction(kSignals[i], &old_actions[i], nullptr);
    }
  }
}

}  // namespace emulation
