// ThreadSanitizer knows memory by its address. But all blocks use the same static shared memory in turn, and
// fibers the same stacks. So the calls that g++ puts before every access go through here (ld --wrap): a
// shared address becomes its block's own twin address, at which nothing lies, and stacks are not watched.
#include "state.h"

namespace emulation {
namespace {

inline uintptr_t watched(void* p) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(p);
  if (address - watch.bss < watch.bss_bytes) return watch.running_twin + (address - watch.bss);
  if (address - watch.stacks < watch.stacks_bytes) return 0;
  if (address - watch.arena < watch.arena_bytes) {
    const uintptr_t offset = address - watch.arena;
    return reinterpret_cast<uintptr_t>(state->blocks[offset / state->slot_bytes].twin) +
           offset % state->slot_bytes;
  }
  return address;
}

}  // namespace
}  // namespace emulation

// Tail calls: ThreadSanitizer takes the return address for the place of the access.
#define WATCH(name)                                                                     \
  extern "C" void __real___tsan_##name(void* p);                                        \
  extern "C" __attribute__((visibility("hidden"))) void __wrap___tsan_##name(void* p) { \
    const uintptr_t address = emulation::watched(p);                                    \
    if (!address) return;                                                               \
    return __real___tsan_##name(reinterpret_cast<void*>(address));                      \
  }
#define WATCH_RANGE(name)                                                                                \
  extern "C" void __real___tsan_##name(void* p, unsigned long bytes);                                    \
  extern "C" __attribute__((visibility("hidden"))) void __wrap___tsan_##name(void* p, unsigned long n) { \
    const uintptr_t address = emulation::watched(p);                                                     \
    if (!address) return;                                                                                \
    return __real___tsan_##name(reinterpret_cast<void*>(address), n);                                    \
  }
WATCH(read1)
WATCH(read2)
WATCH(read4)
WATCH(read8)
WATCH(read16)
WATCH(write1)
WATCH(write2)
WATCH(write4)
WATCH(write8)
WATCH(write16)
WATCH(unaligned_read2)
WATCH(unaligned_read4)
WATCH(unaligned_read8)
WATCH(unaligned_read16)
WATCH(unaligned_write2)
WATCH(unaligned_write4)
WATCH(unaligned_write8)
WATCH(unaligned_write16)
WATCH_RANGE(read_range)
WATCH_RANGE(write_range)

// ThreadSanitizer's own memcpy and memset would look at the addresses as they are.
extern "C" __attribute__((visibility("hidden"))) void* __wrap_memcpy(void* to, const void* from,
                                                                     size_t bytes) {
  __wrap___tsan_read_range(const_cast<void*>(from), bytes);
  __wrap___tsan_write_range(to, bytes);
  void* result = to;
  asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes)::"memory");
  return result;
}
extern "C" __attribute__((visibility("hidden"))) void* __wrap_memset(void* to, int value, size_t bytes) {
  __wrap___tsan_write_range(to, bytes);
  void* result = to;
  asm volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(value) : "memory");
  return result;
}
