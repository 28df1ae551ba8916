// What threads wait for: barriers of a block and of a cluster, operations of a warp, fences.
// ThreadSanitizer learns from here what orders what: barriers, __syncwarp and fences do, shuffles and relaxed
// atomics do not.
#include <cstring>
#include <ctime>

#include "state.h"

namespace emulation {

namespace {
bool same_place(const char* file, int line, const char* other_file, int other_line) {
  return line == other_line && (file == other_file || strcmp(file, other_file) == 0);
}

// What ThreadSanitizer takes for a lock: of the block's barriers (0, 1), of its cluster's (2, 3), of its
// warps'.
void* lock_of(const Block* block, int which) {
  return kRaces ? block->twin + state->slot_bytes - kSyncBytes + 8 * which : nullptr;
}
}  // namespace

int barrier(Vote vote, int predicate, const char* file, int line) {
  Block* block = current->block;
  // Two of everything, in turns: a fast thread may be at the next barrier while a slow one leaves this one.
  const int turn = block->barrier_phase & 1;
  if (block->arrived == 0) {
    block->barrier_file = file;
    block->barrier_line = line;
    block->votes[turn] = 0;
  } else if (!same_place(file, line, block->barrier_file, block->barrier_line)) {
    fail("waits at __syncthreads (%s:%d) while other threads of the block wait at another one (%s:%d)", file,
         line, block->barrier_file, block->barrier_line);
  }
  if (predicate) ++block->votes[turn];
  race_release(lock_of(block, turn));
  if (++block->arrived == block->threads) {
    block->arrived = 0;
    ++block->barrier_phase;
    state->yields = 0;
    static const uint64_t all[kMaxThreads / 64] = {~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull,
                                                   ~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull};
    make_runnable(block, all);
    if (const int rest = block->threads % 64)
      block->runnable[block->threads / 64] &= (uint64_t(1) << rest) - 1;
  } else {
    wait("__syncthreads", file, line);
  }
  race_acquire(lock_of(block, turn));
  const int votes = block->votes[turn];
  if (vote == Vote::kAnd) return votes == block->threads;
  if (vote == Vote::kOr) return votes != 0;
  return votes;
}

const uint64_t* warp_exchange(unsigned mask, uint64_t mine, bool ordered, const char* what, const char* file,
                              int line) {
  const int lane = current->linear % 32, number = current->linear / 32;
  Warp& warp = current->block->warps[number];
  if (!(mask >> lane & 1))
    fail("%s (%s:%d) with mask %08x, which does not name lane %d itself", what, file, line, mask, lane);
  if (mask & ~warp.alive) {
    const int other = __builtin_ctz(mask & ~warp.alive);
    fail("%s (%s:%d) with mask %08x names lane %d, which %s", what, file, line, mask, other,
         number * 32 + other < current->block->threads ? "has exited" : "the block does not have");
  }
  WarpOp* op = nullptr;
  for (WarpOp& candidate : warp.ops) {
    if (candidate.mask == 0) {
      if (!op) op = &candidate;
    } else if (candidate.mask == mask && !(candidate.arrived >> lane & 1) && candidate.what == what &&
               same_place(file, line, candidate.file, candidate.line)) {
      op = &candidate;
      break;
    }
  }
  if (!op) fail("%s (%s:%d): lanes of the warp wait in more than %d places", what, file, line, kWarpOps);
  if (op->mask == 0) {
    op->mask = op->left = mask;
    op->arrived = 0;
    op->what = what;
    op->file = file;
    op->line = line;
  }
  op->value[lane] = mine;
  op->arrived |= 1u << lane;
  void* const lock = lock_of(current->block, 4 + number * kWarpOps + int(op - warp.ops));
  if (ordered) race_release(lock);
  if (op->arrived == mask) {
    state->yields = 0;
    current->block->runnable[number / 2] |= uint64_t(mask) << number % 2 * 32;
  } else {
    wait(what, file, line);
  }
  if (ordered) race_acquire(lock);
  op->left &= ~(1u << lane);
  if (op->left == 0) op->mask = 0;
  return op->value;
}

int lane() { return current->linear % 32; }

void fence() {
  race_release(&state->sync_fence);
  race_acquire(&state->sync_fence);
}

unsigned cluster_rank() { return unsigned(current->block->rank); }
unsigned cluster_size() { return unsigned(current->block->cluster->size); }

void cluster_arrive(const char* file, int line) {
  Cluster* cluster = current->block->cluster;
  if (current->arrived_at_cluster)
    fail("arrives at the cluster barrier (%s:%d) twice without waiting", file, line);
  current->arrived_at_cluster = true;
  current->cluster_phase = cluster->phase;
  race_release(lock_of(cluster->blocks, 2 + (cluster->phase & 1)));
  if (++cluster->arrived < cluster->size * current->block->threads) return;
  cluster->arrived = 0;
  ++cluster->phase;
  state->yields = 0;
  for (int i = 0; i < cluster->size; ++i) {
    Block* block = cluster->blocks + i;
    make_runnable(block, block->at_cluster);
    for (uint64_t& threads : block->at_cluster) threads = 0;
  }
}

void cluster_wait(const char* file, int line) {
  Block* block = current->block;
  if (!current->arrived_at_cluster) fail("waits for the cluster (%s:%d) without having arrived", file, line);
  if (block->cluster->phase == current->cluster_phase) {
    block->at_cluster[current->linear / 64] |= uint64_t(1) << current->linear % 64;
    wait("the cluster barrier", file, line);
  }
  current->arrived_at_cluster = false;
  race_acquire(lock_of(block->cluster->blocks, 2 + (current->cluster_phase & 1)));
}

}  // namespace emulation

long long clock64() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000ll + now.tv_nsec;
}
