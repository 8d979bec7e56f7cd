// Interface between the orchestration in search.cpp and the device. cuda_steps.cu implements it on torch's current
// stream, emulation/emulation.cpp on the host.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

#include "problems.h"

namespace wscxr {

struct OutOfMemory : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Kernel that computes the minima of the filter.
enum class Kernel : int {
  kAutomatic = 0,
  kHalf = 1,        // half precision, compute capability 8.0 and later
  kInt8 = 2,        // int8, compute capability 8.0 and later
  kHopperHalf = 3,  // half precision, compute capability 9.0 only
  kHopperInt8 = 4,  // int8, compute capability 9.0 only
  kBrute = 5,       // no filter: every pair in float64
};

class Steps {
 public:
  using Memory = std::shared_ptr<void>;
  virtual ~Steps() = default;

  virtual Memory allocate(std::int64_t bytes) = 0;  // throws OutOfMemory
  virtual std::int64_t free_bytes() = 0;
  virtual void zero(void* to, std::int64_t bytes) = 0;
  virtual void fetch(void* to, const void* from, std::int64_t bytes) = 0;  // to the host; waits for all steps before
  virtual void warn(const std::string& message) = 0;                       // tell the user

  // Largest magnitude and finiteness of a matrix; with `sums` not null also the column sums of every `slab` rows.
  virtual void survey(const Rows& rows, std::int64_t slab, double* sums, unsigned long long* largest,
                      unsigned long long* bad) = 0;
  // Mean of every column from the sums of `parts` slabs.
  virtual void centre(const double* sums, std::int64_t parts, std::int64_t count, std::int64_t channels, double* centre,
                      unsigned long long* largest, unsigned long long* bad) = 0;
  virtual void count_bad_rows(const Rows& rows, unsigned long long* bad_rows) = 0;
  // Low-precision copies of the rows in `list` (all if it is null), centred and multiplied by `factor`.
  virtual void encode(const Rows& rows, const std::int64_t* list, std::int64_t padded, const double* centre,
                      double factor, bool int8, const Encoded& to) = 0;
  // Largest norm and residual norm of every group of bank rows.
  virtual void group_maxima(const float* norm, const float* residual, std::int64_t count, std::int64_t groups,
                            float* group_norm, float* group_residual) = 0;
  // Filter: the two smallest values per query and group.
  virtual void tile_minimum(const TileProblem& problem, Kernel kernel) = 0;
  // Exact nearest rows from the minima of the filter.
  virtual void resolve(const ResolveProblem& problem) = 0;
  // Exact nearest rows from all pairs.
  virtual void brute(const ResolveProblem& problem) = 0;
  // Set best_squared to infinity and best_index to kNoIndex.
  virtual void start(double* best_squared, std::int64_t* best_index, std::int64_t count) = 0;
  // Distances from squared distances.
  virtual void finish(const double* best_squared, std::int64_t count, float* distance) = 0;
  // Mining: smallest distance of the queries `leaders`.
  virtual void cut(const std::int64_t* leaders, std::int64_t count, const double* best_squared, float* cut) = 0;
  // Mining: the queries of `list` whose distance so far is not below the cut, in their order.
  virtual void keep(const std::int64_t* list, std::int64_t count, const double* best_squared, const float* cut,
                    std::int64_t* kept, std::int64_t* kept_count) = 0;
  // Mining: the queries of `list` and their distances.
  virtual void gather(const float* distance, const std::int64_t* list, std::int64_t count, std::int64_t* index,
                      float* gathered) = 0;
  virtual void order_descending(const float* values, std::int64_t count, std::int64_t* order) = 0;  // stable sort
};

}  // namespace wscxr
