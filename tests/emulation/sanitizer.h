// What the sanitizers want to be told. runtime.cpp itself is compiled without them; EMULATION_ASAN or
// EMULATION_TSAN says which one the kernels were compiled with.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef EMULATION_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef EMULATION_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif

namespace emulation {

#ifdef EMULATION_ASAN
inline void announce_switch(void** save, const void* stack, size_t bytes) {
  __sanitizer_start_switch_fiber(save, stack, bytes);
}
inline void finish_switch(void* saved, const void** old_stack = nullptr, size_t* old_bytes = nullptr) {
  __sanitizer_finish_switch_fiber(saved, old_stack, old_bytes);
}
inline void unpoison(void* p, size_t bytes) { __asan_unpoison_memory_region(p, bytes); }
#else
inline void announce_switch(void**, const void*, size_t) {}
inline void finish_switch(void*, const void** = nullptr, size_t* = nullptr) {}
inline void unpoison(void*, size_t) {}
#endif

#ifdef EMULATION_TSAN
constexpr bool kRaces = true;
constexpr unsigned kNoSync = 1;
inline void* race_current() { return __tsan_get_current_fiber(); }
inline void* race_create() { return __tsan_create_fiber(kNoSync); }
inline void race_destroy(void* fiber) { __tsan_destroy_fiber(fiber); }
inline void race_switch(void* fiber) { __tsan_switch_to_fiber(fiber, kNoSync); }
inline void race_acquire(void* p) { __tsan_acquire(p); }
inline void race_release(void* p) { __tsan_release(p); }
#else
constexpr bool kRaces = false;
inline void* race_current() { return nullptr; }
inline void* race_create() { return nullptr; }
inline void race_destroy(void*) {}
inline void race_switch(void*) {}
inline void race_acquire(void*) {}
inline void race_release(void*) {}
#endif

}  // namespace emulation
