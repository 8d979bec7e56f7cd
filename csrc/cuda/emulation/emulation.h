// The CUDA operators on the host, for tests on machines without a GPU: the same kernel sources and the same
// orchestration, on the machine of machine.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "search.h"

namespace wscxr::emulation {

struct Settings {
  std::uint64_t seed = 0;               // of the order of blocks and threads
  bool truncating = true;               // matrix units truncate instead of rounding
  std::int64_t memory_bytes = 1 << 30;  // device memory; larger allocations fail
};

// Work done by one search.
struct Report {
  unsigned long long candidates = 0;     // exact distances evaluated
  unsigned long long rescans = 0;        // groups of bank rows evaluated completely
  std::int64_t allocation_failures = 0;  // each one halves the blocks
  std::int64_t tiles = 0;                // launches of the filter
  std::int64_t pairs = 0;                // pairs of rows that the filter has seen
};

// The operators of search.h and mixup.h; results are written to host memory.
Report min_distance(const Rows& query, const Rows& bank, const SearchOptions& options, const Settings& settings,
                    float* distance, std::int64_t* index);
Report mine_top_r(const Rows& query, const Rows& bank, std::int64_t k, const SearchOptions& options,
                  const Settings& settings, std::int64_t* index, float* distance);
Report min_distance_block(const Rows& query, const Rows& bank, std::int64_t first_row, const SearchOptions& options,
                          const Settings& settings, double* best_squared, std::int64_t* best_index);
void mixup(const Rows& normal, const Rows& abnormal, std::int64_t seed, std::int64_t offset, float low, float high,
           std::int64_t blocks, const Settings& settings, void* mixed, std::int64_t* source, float* alpha);

// Run only the filter, for tests of its error bound: encode both matrices, multiply them with the tile kernel, and
// write the minima [queries, groups], the error bound [queries, groups] and |q|^2 [queries]. Rows are multiplied by
// `scale` and not centred; distances are in scaled units.
void filter(const Rows& query, const Rows& bank, bool int8, double scale, const Settings& settings, float* minima,
            double* bound, double* query_squared);

// Run one faulty program for each kind of error that the machine detects, and return the messages; for tests of the
// machine itself. The programs miss a barrier, miss a shuffle, mix warp instructions, misalign a copy, read before a
// copy has completed, and read memory that was never written.
std::vector<std::string> self_check();

}  // namespace wscxr::emulation
