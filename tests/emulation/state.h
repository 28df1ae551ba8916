// The launch that runs: its blocks, threads and stacks. There is one at a time, on one core.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda_runtime.h"
#include "fiber.h"

namespace emulation {

constexpr int kMaxThreads = 1024, kWarpOps = 8, kRaceSets = 4, kSyncBytes = 4096;

struct Block;

struct Fiber {
  Context context;
  int number;
};

struct Thread {
  uint3 index;
  int linear;
  Block* block;
  Fiber* fiber;  // nullptr: has not started
  bool done;
  bool arrived_at_cluster;
  unsigned cluster_phase;
  const char* what;  // it waits at; nullptr: for nothing
  const char* file;
  int line;
  // ThreadSanitizer's idea of this thread. What takes the place of an earlier block's thread knows what that
  // one knew, so blocks that are not ordered take turns with several.
  void* races[kRaceSets];
  void** race;
};

// An operation that some lanes of a warp do together. mask == 0: free.
struct WarpOp {
  unsigned mask, arrived, left;
  int line;
  const char* what;
  const char* file;
  uint64_t value[32];
};

struct Warp {
  unsigned alive;
  WarpOp ops[kWarpOps];
};

struct Cluster {
  Block* blocks;  // side by side
  int size;
  unsigned phase;
  int arrived;
};

struct Block {
  uint3 index;
  int number;   // among the residents
  int threads;  // that it has
  int alive;
  int arrived;  // at the barrier
  unsigned barrier_phase;
  const char* barrier_file;
  int barrier_line;
  int votes[2];
  Cluster* cluster;
  int rank;  // in the cluster
  uint64_t runnable[kMaxThreads / 64], at_cluster[kMaxThreads / 64];
  Warp warps[kMaxThreads / 32];
  Thread* first;  // its threads, side by side
  char* image;    // its static shared memory while another block runs
  char* dynamic;  // its dynamic shared memory
  char* twin;     // tsan: where its shared memory is watched; the last kSyncBytes stand for its barriers
};

enum class Order { kForward, kBackward, kRandom };

struct State {
  // the launch
  const void* kernel = nullptr;
  void (*run)(void*) = nullptr;
  void* call = nullptr;
  size_t dynamic_bytes = 0;
  Order order = Order::kForward;
  bool unordered = false;  // tsan: blocks not ordered among each other
  uint64_t launches = 0, random = 0;
  // who is there
  std::vector<Block> blocks;  // the residents
  std::vector<Cluster> clusters;
  std::vector<Thread> threads;
  Block* running = nullptr;  // whose static shared memory is in place
  int64_t alive = 0;
  int64_t yields = 0;  // in a row
  // stacks
  char* stacks = nullptr;
  std::vector<Fiber*> fibers, idle;
  Context main;
  bool from_main = false;
  // shared memory
  char* arena = nullptr;  // image and dynamic shared memory of every resident block
  size_t arena_bytes = 0, slot_bytes = 0, dynamic_offset = 0;
  char* twins = nullptr;
  size_t twin_used = 0;
  char sync_start = 0, sync_end = 0, sync_fence = 0;
  void* race_main = nullptr;
  // what went wrong
  bool failed = false;
  char message[4096] = {};
};

extern State* state FASTDL_HIDDEN;
extern Thread* current FASTDL_HIDDEN;

// runtime.cpp
void wait(const char* what, const char* file, int line);
void make_runnable(Block* block, const uint64_t* threads);
cudaError_t execute(dim3 grid, dim3 block, dim3 cluster, bool cooperative);
// memory.cpp
size_t static_bytes();
void reserve_shared(size_t residents);
void begin_shared();
void end_shared();
void poison_shared(Block* block);
void bring_in(Block* block);
void free_shared(Block* block);
Fiber* take_fiber(void (*entry)());
void reset_fibers(void (*entry)());
#ifdef EMULATION_TSAN
// Where races.cpp translates addresses.
struct Watch {
  uintptr_t bss, bss_bytes, arena, arena_bytes, stacks, stacks_bytes, running_twin;
};
extern Watch watch FASTDL_HIDDEN;
#endif
// describe.cpp
const char* kernel_name();
void describe_deadlock(char* text, size_t bytes);
void watch_crashes(bool on);

}  // namespace emulation
