// The CUDA kernels on the host, for tests on machines without a GPU: same sources, same orchestration, no speed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "search.h"

namespace wscxr::emulation {

struct Report {
  unsigned long long candidates = 0;
  unsigned long long rescans = 0;
  std::int64_t allocation_failures = 0;
  std::int64_t tiles = 0;  // launches of the filter
  std::int64_t pairs = 0;  // that went through it
};

// How the emulation behaves; `seed` shuffles the order in which threads run between two barriers.
struct Settings {
  std::uint64_t seed = 0;
  bool truncating = true;               // matrix units that truncate (the worst the certificate allows for), or round
  std::int64_t memory_bytes = 1 << 30;  // device memory; allocations beyond fail
};

Report min_distance(const Rows& query, const Rows& bank, const SearchOptions& options, const Settings& settings,
                    float* distance, std::int64_t* index);
Report mine_top_r(const Rows& query, const Rows& bank, std::int64_t k, const SearchOptions& options,
                  const Settings& settings, std::int64_t* index, float* distance);
Report min_distance_block(const Rows& query, const Rows& bank, std::int64_t row_offset, const SearchOptions& options,
                          const Settings& settings, double* carry_squared, std::int64_t* carry_index);
void mixup(const Rows& normal, const Rows& abnormal, std::int64_t seed, std::int64_t offset, float low, float high,
           std::int64_t blocks, const Settings& settings, void* mixed, std::int64_t* source, float* alpha);

// Encodes both matrices, multiplies them by the tile kernel and returns the minima [queries, groups] as they are, and
// the bound E of every (query, group) beside them; for tests of the certificate. Distances are in the units of `scale`.
void filter(const Rows& query, const Rows& bank, bool whole, double scale, const Settings& settings, float* minima,
            double* bound, double* query_squared);

// What the emulation says to programs that miss a barrier, miss a shuffle, mix instructions, misplace a copy, read
// before a copy has landed, and read what nobody wrote; for tests of the emulation itself.
std::vector<std::string> self_check();

}  // namespace wscxr::emulation
