// Exact nearest-row search by filter, certify, refine: which steps run on which blocks. Nothing here knows CUDA.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "steps.h"

namespace wscxr {

struct SearchOptions {
  Kernel kernel = Kernel::kAutomatic;
  std::int64_t block_bytes = 0;  // working memory of one pair of blocks; 0: a share of the free memory
  std::int64_t query_block = 0;  // queries that are searched together; 0: up to 65,536
  std::int64_t bank_block = 0;   // bank rows of a block; 0: as many as block_bytes allow
  Counters counters;
};

// Sizes of the blocks and the working memory that they take (rows and results not counted).
struct SearchPlan {
  std::int64_t query_block = 0;
  std::int64_t bank_block = 0;
  std::int64_t bytes = 0;
};

// Blocks for a search of `queries` in `bank_rows` rows that fit into `block_bytes`, or the smallest ones there are.
SearchPlan plan_search(std::int64_t queries, std::int64_t bank_rows, std::int64_t channels, bool whole,
                       std::int64_t block_bytes);

class Search {
 public:
  // Looks at all values. Throws std::runtime_error ("query holds NaN or Inf in 3 of 10 rows; ...").
  Search(Steps& steps, const Rows& query, const Rows& bank, const SearchOptions& options);

  // Improves best_squared and best_index, [query.count] each, of the queries in `list` (all where it is null) by the
  // bank rows [begin, end). Indices are counted from first_bank_row + begin.
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
  bool said_ = false;
};

// distance [query.count] and index [query.count] of the nearest bank row.
void min_distance(Steps& steps, const Rows& query, const Rows& bank, const SearchOptions& options, float* distance,
                  std::int64_t* index);

// The k queries farthest from the bank, farthest first, ties to the lowest index: the same rows in the same order as
// min_distance and a stable sort. A query is dropped as soon as its distance so far, which can only fall, lies below
// the distances of k finished ones.
void mine_top_r(Steps& steps, const Rows& query, const Rows& bank, std::int64_t k, const SearchOptions& options,
                std::int64_t* index, float* distance);

// One block of a bank that is searched piece by piece: lowers carry_squared (float64, infinity at first) and
// carry_index to the minimum over all blocks so far. Blocks may come in any order; equal distances keep the lowest
// index.
void min_distance_block(Steps& steps, const Rows& query, const Rows& bank_block, std::int64_t row_offset,
                        const SearchOptions& options, double* carry_squared, std::int64_t* carry_index);

// automatic, portable, int8, hopper, hopper-int8 or brute; throws std::runtime_error otherwise.
Kernel kernel_of(const std::string& name);

}  // namespace wscxr
