// The scheduler: every CUDA thread is a fiber that runs until it waits for others; blocks run one after
// another, or together where they form a cluster or a cooperative grid. Compiled without sanitizers.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "state.h"

// Initialised, so that they do not lie in the .bss, which is shared memory.
uint3 threadIdx = {0, 0, 0}, blockIdx = {0, 0, 0};
dim3 blockDim = {1, 1, 1}, gridDim = {1, 1, 1};

namespace emulation {

State* state = nullptr;
Thread* current = nullptr;

namespace {

uint64_t next_random() {
  uint64_t& x = state->random;
  x ^= x << 13, x ^= x >> 7, x ^= x << 17;
  return x;
}

// The first thread of the bitmap at or after `from` (before, going down), around the corner; -1: none.
int find(const uint64_t* bits, int threads, int from, bool down) {
  const int words = (threads + 63) / 64;
  if (!down) {
    if (from >= threads) from = 0;
    int word = from / 64;
    uint64_t rest = bits[word] & ~uint64_t(0) << from % 64;
    for (int i = 0; i <= words; ++i) {
      if (rest) return word * 64 + __builtin_ctzll(rest);
      word = word + 1 < words ? word + 1 : 0;
      rest = bits[word];
    }
  } else {
    if (from < 0) from = threads - 1;
    int word = from / 64;
    uint64_t rest = bits[word] & ~uint64_t(0) >> (63 - from % 64);
    for (int i = 0; i <= words; ++i) {
      if (rest) return word * 64 + 63 - __builtin_clzll(rest);
      word = word > 0 ? word - 1 : words - 1;
      rest = bits[word];
    }
  }
  return -1;
}

Thread* pick_in(Block* block, int last) {
  int from = last + 1;
  if (state->order == Order::kBackward) from = last - 1;
  if (state->order == Order::kRandom) from = int(next_random() % unsigned(block->threads));
  const int i = find(block->runnable, block->threads, from, state->order == Order::kBackward);
  return i < 0 ? nullptr : block->first + i;
}

// Who runs next, the current thread having stopped. nullptr: nobody can.
Thread* pick(bool yielding) {
  Block* block = state->running;
  Thread* next = pick_in(block, current->linear);
  if (next && !(yielding && next == current)) return next;
  const int n = int(state->blocks.size());
  const bool down = state->order == Order::kBackward;
  for (int i = 1; i < n; ++i) {
    Block* other = &state->blocks[(block->number + (down ? n - i : i)) % n];
    if (Thread* thread = pick_in(other, down ? other->threads : -1)) return thread;
  }
  return next;
}

void activate(Thread* thread) {
  current = thread;
  if (thread->block != state->running) {
    bring_in(thread->block);
    blockIdx = thread->block->index;
  }
  threadIdx = thread->index;
  if (kRaces) {
    race_switch(*thread->race);
    if (!thread->fiber) race_acquire(&state->sync_start);
  }
}

[[noreturn]] void leave(Fiber* mine) {
  if (kRaces) race_switch(state->race_main);
  switch_stack(&mine->context, &state->main);
  __builtin_unreachable();
}

void exit_thread() {
  Thread* thread = current;
  Block* block = thread->block;
  if (kRaces) race_release(&state->sync_end);
  thread->done = true;
  state->yields = 0;
  block->runnable[thread->linear / 64] &= ~(uint64_t(1) << thread->linear % 64);
  Warp& warp = block->warps[thread->linear / 32];
  const unsigned bit = 1u << thread->linear % 32;
  warp.alive &= ~bit;
  for (const WarpOp& op : warp.ops) {
    if (op.mask & bit && op.arrived != op.mask) {
      fail("has exited, but %s (%s:%d) names it in mask %08x", op.what, op.file, op.line, op.mask);
    }
  }
  --state->alive;
  if (--block->alive == 0) free_shared(block);
}

void fiber_main() {
#ifdef EMULATION_ASAN
  const void* bottom = nullptr;
  size_t bytes = 0;
  finish_switch(nullptr, &bottom, &bytes);
  if (state->from_main) {
    state->main.stack = const_cast<void*>(bottom);
    state->main.bytes = bytes;
  }
#endif
  state->from_main = false;
  for (;;) {
    state->run(state->call);
    Fiber* mine = current->fiber;
    exit_thread();
    Thread* next = pick(false);
    if (!next) {
      if (state->alive) {
        char text[2048];
        describe_deadlock(text, sizeof(text));
        fail("deadlock: %s", text);
      }
      state->idle.push_back(mine);
      if (kRaces) race_switch(state->race_main);
      switch_stack(&mine->context, &state->main);
      state->from_main = false;
      continue;
    }
    activate(next);
    if (!next->fiber) {
      next->fiber = mine;
      continue;
    }
    state->idle.push_back(mine);
    switch_stack(&mine->context, &next->fiber->context);
  }
}

void suspend(bool yielding) {
  Thread* thread = current;
  Thread* next = pick(yielding);
  if (!next) {
    char text[2048];
    describe_deadlock(text, sizeof(text));
    fail("deadlock: %s", text);
  }
  if (next == thread) return;
  activate(next);
  if (!next->fiber) next->fiber = take_fiber(fiber_main);
  switch_stack(&thread->fiber->context, &next->fiber->context);
}

// Makes block `number` of the grid ready. `set`: which of their identities its threads take (tsan).
void begin_block(Block* block, int64_t number, const dim3& grid, int set) {
  block->index.x = unsigned(number % grid.x);
  block->index.y = unsigned(number / grid.x % grid.y);
  block->index.z = unsigned(number / grid.x / grid.y);
  const int n = block->threads;
  block->alive = n;
  block->arrived = 0;
  block->barrier_phase = 0;
  memset(block->at_cluster, 0, sizeof(block->at_cluster));
  for (int i = 0; i * 64 < n; ++i)
    block->runnable[i] = n - i * 64 >= 64 ? ~uint64_t(0) : (uint64_t(1) << n % 64) - 1;
  for (int i = 0; i * 32 < n; ++i) {
    block->warps[i].alive = n - i * 32 >= 32 ? ~0u : (1u << n % 32) - 1;
    for (WarpOp& op : block->warps[i].ops) op.mask = 0;
  }
  for (int i = 0; i < n; ++i) {
    Thread& thread = block->first[i];
    thread.fiber = nullptr;
    thread.done = thread.arrived_at_cluster = false;
    thread.what = nullptr;
    if (kRaces) {
      thread.race = &thread.races[set];
      if (!*thread.race) *thread.race = race_create();
    }
  }
}

void run_group() {
  state->running = nullptr;
  state->yields = 0;
  if (kRaces && !state->unordered) race_release(&state->sync_start);
  Block* first = &state->blocks[0];
  if (state->order == Order::kBackward) first = &state->blocks.back();
  current = first->first;
  Thread* thread = pick_in(first, state->order == Order::kBackward ? first->threads : -1);
  activate(thread);
  thread->fiber = take_fiber(fiber_main);
  state->from_main = true;
  switch_stack(&state->main, &thread->fiber->context);
  if (kRaces && !state->unordered) race_acquire(&state->sync_end);
}

}  // namespace

void wait(const char* what, const char* file, int line) {
  current->what = what;
  current->file = file;
  current->line = line;
  current->block->runnable[current->linear / 64] &= ~(uint64_t(1) << current->linear % 64);
  state->yields = 0;
  suspend(false);
  current->what = nullptr;
}

void make_runnable(Block* block, const uint64_t* threads) {
  for (int i = 0; i * 64 < block->threads; ++i) block->runnable[i] |= threads[i];
}

void yield() {
  if (++state->yields > 200000) {
    fail("every thread that can run waits in a loop for something that does not happen");
  }
  suspend(true);
}

void fail(const char* format, ...) {
  char text[3072];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  const uint3 b = current->block->index, t = current->index;
  snprintf(state->message, sizeof(state->message), "%s, block (%u, %u, %u), thread (%u, %u, %u): %s",
           kernel_name(), b.x, b.y, b.z, t.x, t.y, t.z, text);
  fprintf(stderr, "CUDA emulation: %s\n", state->message);
  state->failed = true;
  leave(current->fiber);
}

// The launch is checked and described in *state; run it.
cudaError_t execute(dim3 grid, dim3 block, dim3 cluster, bool cooperative) {
  const int64_t blocks = int64_t(grid.x) * grid.y * grid.z;
  const int threads = int(block.x * block.y * block.z), cluster_size = int(cluster.x * cluster.y * cluster.z);
  const int64_t residents = cooperative ? blocks : cluster_size;
  blockDim = block;
  gridDim = grid;

  reserve_shared(size_t(residents));
  if (state->blocks.size() < size_t(residents)) state->blocks.resize(size_t(residents));
  while (state->blocks.size() > size_t(residents)) state->blocks.pop_back();
  state->clusters.assign(size_t(residents) / cluster_size, Cluster{});
  if (state->threads.size() < size_t(residents) * threads) state->threads.resize(size_t(residents) * threads);
  for (int64_t r = 0; r < residents; ++r) {
    Block& b = state->blocks[r];
    b.number = int(r);
    b.threads = threads;
    b.first = &state->threads[r * threads];
    for (int i = 0; i < threads; ++i) {
      Thread& thread = b.first[i];
      thread.index = {unsigned(i) % block.x, unsigned(i) / block.x % block.y,
                      unsigned(i) / block.x / block.y};
      thread.linear = i;
      thread.block = &b;
    }
    b.cluster = &state->clusters[r / cluster_size];
    b.rank = int(r % cluster_size);
    if (b.rank == 0) *b.cluster = {&b, cluster_size, 0, 0};
  }

  // Blocks in order, backwards, or scattered: i -> (start + i * step) mod groups with step and groups
  // coprime.
  const int64_t groups = blocks / residents;
  int64_t start = 0, step = 1;
  if (state->order == Order::kBackward) start = groups - 1, step = groups - 1;
  if (state->order == Order::kRandom && groups > 1) {
    start = int64_t(next_random() % uint64_t(groups));
    const auto coprime = [](int64_t a, int64_t b) {
      while (b) {
        const int64_t rest = a % b;
        a = b, b = rest;
      }
      return a == 1;
    };
    do step = 1 + int64_t(next_random() % uint64_t(groups));
    while (!coprime(step, groups));
  }
  const dim3 cluster_grid(grid.x / cluster.x, grid.y / cluster.y, grid.z / cluster.z);

  state->failed = false;
  state->race_main = race_current();
  begin_shared();
  if (kRaces) race_release(&state->sync_start);
  for (int64_t g = 0; g < groups && !state->failed; ++g) {
    const int64_t group =
        int64_t((unsigned __int128)(uint64_t(g)) * uint64_t(step) % uint64_t(groups) + start) % groups;
    state->alive = residents * threads;
    for (int64_t r = 0; r < residents; ++r) {
      // Blocks of a cluster are neighbours in x, y and z.
      const int64_t which = group * (residents / cluster_size) + r / cluster_size, rank = r % cluster_size;
      const int64_t x = which % cluster_grid.x * cluster.x + rank % cluster.x;
      const int64_t y = which / cluster_grid.x % cluster_grid.y * cluster.y + rank / cluster.x % cluster.y;
      const int64_t z = which / cluster_grid.x / cluster_grid.y * cluster.z + rank / cluster.x / cluster.y;
      begin_block(&state->blocks[r], (z * grid.y + y) * grid.x + x, grid,
                  state->unordered ? int(g % kRaceSets) : 0);
    }
    for (Cluster& c : state->clusters) c.phase = 0, c.arrived = 0;
    for (Block& b : state->blocks) poison_shared(&b);
    run_group();
  }
  if (kRaces && state->failed) {
    // The threads that did not get to their end.
    for (const Block& b : state->blocks) {
      for (int i = 0; i < threads; ++i) {
        race_switch(*b.first[i].race);
        race_release(&state->sync_end);
      }
    }
    race_switch(state->race_main);
  }
  if (kRaces) race_acquire(&state->sync_end);
  end_shared();
  if (state->failed) {
    reset_fibers(fiber_main);
    if (kRaces) {
      for (Thread& thread : state->threads) {
        for (void*& race : thread.races) {
          if (race) race_destroy(race);
          race = nullptr;
        }
      }
    }
    return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

}  // namespace emulation
