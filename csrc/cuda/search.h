// Orchestration of the exact nearest-row search: which steps run on which blocks. Nothing here depends on CUDA.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "steps.h"

namespace wscxr {

struct SearchOptions {
  Kernel kernel = Kernel::kAutomatic;
  std::int64_t block_bytes = 0;  // working memory for one pair of blocks; 0: a share of the free memory
  std::int64_t query_block = 0;  // queries per block; 0: up to 65,536
  std::int64_t bank_block = 0;   // bank rows per block; 0: as many as block_bytes allows
  Counters counters;
};

// Block sizes and the working memory that they need, without the rows and the results themselves.
struct SearchPlan {
  std::int64_t query_block = 0;
  std::int64_t bank_block = 0;
  std::int64_t bytes = 0;
};

// Choose the largest blocks that fit into `block_bytes`, or the smallest possible ones if none fit.
SearchPlan plan_search(std::int64_t queries, std::int64_t bank_rows, std::int64_t channels, bool int8,
                       std::int64_t block_bytes);

// Relative error of a float32 sum of `channels` half-precision products on matrix units. Their rounding is not
// documented: a truncation of 2^-23 for each of 8 + 1 addends and for each result would be 0.63 of this value.
inline double accumulation_error(std::int64_t channels) {
  return static_cast<double>(channels + 16) * (1.0 / (1 << 22));
}

class Search {
 public:
  // Check all values and compute the centre. Throws std::runtime_error if a row holds NaN or Inf.
  Search(Steps& steps, const Rows& query, const Rows& bank, const SearchOptions& options);

  // Compare the queries in `list` (or the first `count` if it is null) with bank rows [begin, end), and update
  // best_squared and best_index, both [query.count]. The bank row `begin` has index first_bank_row + begin.
  void improve(const std::int64_t* list, std::int64_t count, std::int64_t begin, std::int64_t end,
               std::int64_t first_bank_row, double* best_squared, std::int64_t* best_index);

  Kernel kernel() const { return kernel_; }

 private:
  struct Workspace;
  Workspace workspace(std::int64_t queries, std::int64_t bank_rows);

  Steps& steps_;
  Rows query_, bank_;
  SearchOptions options_;
  Kernel kernel_ = Kernel::kBrute;
  Steps::Memory centre_;
  double factor_ = 1, scale_squared_ = 1;
  bool warned_ = false;
};

// Find distance [query.count] and index [query.count] of the nearest bank row.
void min_distance(Steps& steps, const Rows& query, const Rows& bank, const SearchOptions& options, float* distance,
                  std::int64_t* index);

// Find the k queries farthest from the bank, farthest first, ties to the lowest index: the rows and the order of
// min_distance followed by a stable sort. A query is dropped once its distance so far, which can only decrease, is
// below the distances of k finished queries.
void mine_top_r(Steps& steps, const Rows& query, const Rows& bank, std::int64_t k, const SearchOptions& options,
                std::int64_t* index, float* distance);

// Search one block of a larger bank: update best_squared (infinity before the first block) and best_index to the
// minimum over all blocks so far. Blocks may come in any order; ties go to the lowest index.
void min_distance_block(Steps& steps, const Rows& query, const Rows& bank_block, std::int64_t first_row,
                        const SearchOptions& options, double* best_squared, std::int64_t* best_index);

// Parse a value of MONAI_WSCXR_CUDA_KERNEL; throws std::runtime_error for an unknown name.
Kernel kernel_of(const std::string& name);

}  // namespace wscxr
