// Shared memory and stacks.
//
// A __shared__ variable is a static one, in the module's .bss: there is one copy, for the block that runs.
// Where several blocks are resident, each has an image of the whole .bss, copied in and out when the running
// block changes; map_shared gives addresses within such an image. Dynamic shared memory is a block's own from
// the start.
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>

#include "state.h"

extern char __bss_start[] __attribute__((visibility("hidden")));
extern char _end[] __attribute__((visibility("hidden")));

namespace emulation {

#ifdef EMULATION_TSAN
Watch watch = {};
#endif

namespace {

constexpr size_t kStackBytes = 256 << 10, kMaxFibers = 32768, kGuarded = 8192;
constexpr size_t kTwinBytes = size_t(16) << 30;
constexpr size_t kRedZone = 128;  // behind dynamic shared memory
constexpr unsigned char kPoison = 0xff;

// libc's own are watched by sanitizers.
void copy(void* to, const void* from, size_t bytes) {
#ifdef __x86_64__
  asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes)::"memory");
#else
  for (volatile char *t = (volatile char*)to, *f = (volatile char*)from; bytes--;) *t++ = *f++;
#endif
}
void fill(void* to, unsigned char value, size_t bytes) {
#ifdef __x86_64__
  asm volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(value) : "memory");
#else
  for (volatile unsigned char* t = (volatile unsigned char*)to; bytes--;) *t++ = value;
#endif
}

// Address space of which only what is touched costs memory.
char* reserve(size_t bytes) {
  const long p = syscall(SYS_mmap, nullptr, bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p < 0 && p > -4096) abort();
  return reinterpret_cast<char*>(p);
}

char* saved = nullptr;                  // the .bss as the host left it
size_t dirty_begin = 0, dirty_end = 0;  // what blocks of this launch have written of it
int64_t poisoned = 0;                   // blocks of this launch

size_t round_up(size_t bytes) { return (bytes + 127) / 128 * 128; }

void find_dirty() {
  const size_t n = static_bytes();
  const char* p = __bss_start;
  const auto clean = [p](size_t i) {  // eight bytes at a time
    uint64_t word;
    __builtin_memcpy(&word, p + i, 8);
    return word == ~uint64_t(0);
  };
  size_t begin = 0, end = n;
  while (begin + 8 <= n && clean(begin)) begin += 8;
  while (end >= begin + 8 && clean(end - 8)) end -= 8;
  if (begin == end) return;
  if (dirty_begin == dirty_end) dirty_begin = begin, dirty_end = end;
  if (begin < dirty_begin) dirty_begin = begin;
  if (end > dirty_end) dirty_end = end;
}

}  // namespace

size_t static_bytes() { return size_t(_end - __bss_start); }

void reserve_shared(size_t residents) {
  state->dynamic_offset = round_up(static_bytes());
  state->slot_bytes =
      state->dynamic_offset + round_up(state->dynamic_bytes) + kRedZone + (kRaces ? kSyncBytes : 0);
  const size_t bytes = residents * state->slot_bytes;
  if (state->arena_bytes < bytes) {
    if (state->arena) syscall(SYS_munmap, state->arena, state->arena_bytes);
    state->arena = reserve(bytes);
    state->arena_bytes = bytes;
  }
  if (!state->stacks) {
    state->stacks = reserve(kStackBytes * kMaxFibers);
    // From now on they do not grow: threads must not be seen allocating.
    state->fibers.reserve(kMaxFibers);
    state->idle.reserve(kMaxFibers);
  }
  if (kRaces && !state->twins) state->twins = reserve(kTwinBytes);
}

void begin_shared() {
  if (!saved) saved = reserve(static_bytes() + 1);
  copy(saved, __bss_start, static_bytes());
  dirty_begin = dirty_end = 0;
  poisoned = 0;
  state->twin_used = 0;
#ifdef EMULATION_TSAN
  watch.bss = uintptr_t(__bss_start);
  watch.bss_bytes = static_bytes();
  watch.stacks = uintptr_t(state->stacks);
  watch.stacks_bytes = kStackBytes * kMaxFibers;
  watch.arena = uintptr_t(state->arena);
  watch.arena_bytes = state->blocks.size() * state->slot_bytes;
#endif
}

void end_shared() {
  copy(__bss_start, saved, static_bytes());
  if (state->failed) {
    for (Block& block : state->blocks) free_shared(&block);
  }
#ifdef EMULATION_TSAN
  watch.bss_bytes = watch.arena_bytes = 0;
#endif
}

void poison_shared(Block* block) {
  char* slot = state->arena + block->number * state->slot_bytes;
  block->image = slot;
  const bool alone = state->blocks.size() == 1;
  if (!alone) {
    fill(block->image, kPoison, static_bytes());
  } else if (poisoned == 0) {
    fill(__bss_start, kPoison, static_bytes());
  } else {
    // A scan of it all costs more than most blocks: after the first block, the second, the fourth, ...
    if ((poisoned & (poisoned - 1)) == 0) find_dirty();
    fill(__bss_start + dirty_begin, kPoison, dirty_end - dirty_begin);
  }
  ++poisoned;
#ifdef EMULATION_ASAN
  // Of the exact size: red zones begin at once.
  void* p = nullptr;
  if (posix_memalign(&p, 128, state->dynamic_bytes ? state->dynamic_bytes : 1) != 0) abort();
  block->dynamic = static_cast<char*>(p);
  fill(block->dynamic, kPoison, state->dynamic_bytes);
#else
  block->dynamic = slot + state->dynamic_offset;
  fill(block->dynamic, kPoison, round_up(state->dynamic_bytes) + kRedZone);
#endif
  if (kRaces) {
    // Unordered blocks must not meet at addresses that only look the same.
    if (!state->unordered) state->twin_used = block->number * state->slot_bytes;
    if (state->twin_used + state->slot_bytes > kTwinBytes) state->twin_used = 0;
    block->twin = state->twins + state->twin_used;
    state->twin_used += state->slot_bytes;
  }
}

void free_shared(Block* block) {
#ifdef EMULATION_ASAN
  free(block->dynamic);
  block->dynamic = nullptr;
#else
  if (!state->failed) {
    for (size_t i = state->dynamic_bytes; i < round_up(state->dynamic_bytes) + kRedZone; ++i) {
      if (static_cast<unsigned char>(block->dynamic[i]) != kPoison) {
        fail("the block wrote past its %zu bytes of dynamic shared memory", state->dynamic_bytes);
      }
    }
  }
  // Seen by a block of the cluster that still looks. The image goes when the next block comes in.
  if (state->blocks.size() > 1) fill(block->dynamic, kPoison, state->dynamic_bytes);
#endif
}

// Exchanges the .bss for that of another block.
void bring_in(Block* block) {
  if (state->blocks.size() > 1) {
    if (Block* old = state->running) {
      if (old->alive) {
        copy(old->image, __bss_start, static_bytes());
      } else {
        fill(old->image, kPoison, static_bytes());
      }
    }
    copy(__bss_start, block->image, static_bytes());
  }
  state->running = block;
#ifdef EMULATION_TSAN
  watch.running_twin = uintptr_t(block->twin);
#endif
}

void* dynamic_shared() { return current->block->dynamic; }

void* map_shared(const void* p, unsigned rank) {
  Block* block = current->block;
  if (rank >= unsigned(block->cluster->size))
    fail("asks for shared memory of block %u of a cluster of %d", rank, block->cluster->size);
  Block* other = block->cluster->blocks + rank;
  const char* address = static_cast<const char*>(p);
  if (address >= __bss_start && address < _end) {
    return other == block ? const_cast<char*>(address) : other->image + (address - __bss_start);
  }
  if (address >= block->dynamic && address <= block->dynamic + state->dynamic_bytes) {
    if (!other->dynamic) fail("asks for shared memory of block %u of its cluster, which has exited", rank);
    return other->dynamic + (address - block->dynamic);
  }
  fail("maps an address that is not in its shared memory");
}

// ---- Stacks ----

Fiber* take_fiber(void (*entry)()) {
  if (!state->idle.empty()) {
    Fiber* fiber = state->idle.back();
    state->idle.pop_back();
    return fiber;
  }
  const size_t number = state->fibers.size();
  if (number == kMaxFibers) fail("more than %zu threads wait at the same time", kMaxFibers);
  Fiber* fiber = new Fiber();
  fiber->number = int(number);
  fiber->context.stack = state->stacks + number * kStackBytes;
  fiber->context.bytes = kStackBytes;
  if (number < kGuarded) mprotect(fiber->context.stack, 4096, PROT_NONE);
  prepare(&fiber->context, entry, fiber->number);
  state->fibers.push_back(fiber);
  return fiber;
}

void reset_fibers(void (*entry)()) {
  state->idle = state->fibers;
  for (Fiber* fiber : state->fibers) {
    unpoison(static_cast<char*>(fiber->context.stack) + 4096, kStackBytes - 4096);
    prepare(&fiber->context, entry, fiber->number);
  }
}

}  // namespace emulation
