// Stacks to switch between. On x86-64 by hand (a few nanoseconds), elsewhere by ucontext.
#pragma once

#include <cstddef>
#include <cstdint>

#include "sanitizer.h"

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace emulation {

struct Context {
#ifdef __x86_64__
  void* sp = nullptr;
#else
  ucontext_t machine;
#endif
  void* stack = nullptr;  // its lowest address
  size_t bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
};

#ifdef __x86_64__
extern "C" void fastdl_emulation_switch(void** save, void* sp) __attribute__((visibility("hidden")));
#endif

// `color` shifts the first frame, lest all stacks fall on the same cache lines.
inline void prepare(Context* context, void (*entry)(), int color) {
#ifdef __x86_64__
  const uintptr_t end = reinterpret_cast<uintptr_t>(context->stack) + context->bytes;
  void** sp = reinterpret_cast<void**>((end - 64 - color % 32 * 192) & ~uintptr_t(15));
  *--sp = nullptr;  // where entry would return to
  *--sp = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--sp = nullptr;
  context->sp = sp;
#else
  (void)color;
  getcontext(&context->machine);
  context->machine.uc_stack.ss_sp = context->stack;
  context->machine.uc_stack.ss_size = context->bytes;
  context->machine.uc_link = nullptr;
  makecontext(&context->machine, entry, 0);
#endif
}

inline void switch_stack(Context* from, Context* to) {
  announce_switch(&from->fake_stack, to->stack, to->bytes);
#ifdef __x86_64__
  fastdl_emulation_switch(&from->sp, to->sp);
#else
  swapcontext(&from->machine, &to->machine);
#endif
  finish_switch(from->fake_stack);
}

}  // namespace emulation
