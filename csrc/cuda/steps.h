// The steps of a search on a device, as the orchestration in search.cpp sees them. CUDA runs them on the current stream
// (cuda_steps.cu), the emulation on the host (emulation.cpp).
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

// Which kernel makes the minima of the filter.
enum class Kernel : int {
  kAutomatic = 0,
  kHalf = 1,         // half precision, any device from compute capability 8.0 on
  kWhole = 2,        // int8, likewise
  kHopperHalf = 3,   // half precision with the instructions of compute capability 9.0
  kHopperWhole = 4,  // int8, likewise
  kBrute = 5,        // no filter: every pair in float64
};

class Steps {
 public:
  using Memory = std::shared_ptr<void>;
  virtual ~Steps() = default;

  virtual Memory allocate(std::int64_t bytes) = 0;  // throws OutOfMemory
  virtual std::int64_t free_bytes() = 0;
  virtual void zero(void* to, std::int64_t bytes) = 0;
  virtual void fetch(void* to, const void* from, std::int64_t bytes) = 0;  // to the host; waits for the steps before
  virtual void say(const std::string& sentence) = 0;                       // something the user should know

  virtual void survey(const Rows& rows, std::int64_t slab, double* sums, unsigned long long* largest,
                      unsigned long long* bad) = 0;
  virtual void centre(const double* sums, std::int64_t parts, std::int64_t count, std::int64_t channels, double* centre,
                      unsigned long long* largest, unsigned long long* bad) = 0;
  virtual void count_bad_rows(const Rows& rows, unsigned long long* bad_rows) = 0;
  virtual void encode(const Rows& rows, const std::int64_t* list, std::int64_t padded, const double* centre,
                      double factor, bool whole, const Encoded& to) = 0;
  virtual void group_maxima(const float* norm, const float* residual, std::int64_t count, std::int64_t groups,
                            float* group_norm, float* group_residual) = 0;
  virtual void tile_minimum(const TileProblem& problem, Kernel kernel) = 0;
  virtual void resolve(const ResolveProblem& problem) = 0;
  virtual void brute(const ResolveProblem& problem) = 0;
  virtual void start(double* best_squared, std::int64_t* best_index, std::int64_t count) = 0;
  virtual void finish(const double* best_squared, std::int64_t count, float* distance) = 0;
  virtual void cut(const std::int64_t* leaders, std::int64_t count, const double* best_squared, float* cut) = 0;
  virtual void keep(const std::int64_t* list, std::int64_t count, const double* best_squared, const float* cut,
                    std::int64_t* kept, std::int64_t* kept_count) = 0;
  virtual void gather(const float* distance, const std::int64_t* list, std::int64_t count, std::int64_t* index,
                      float* gathered) = 0;
  virtual void order_descending(const float* values, std::int64_t count, std::int64_t* order) = 0;  // stable
};

}  // namespace wscxr
