// The steps as kernel launches. CUDA and the emulation share the choice of types, grids and shared memory sizes; each
// provides a `Launcher` with the memory functions of Steps and
//   launch(kernel, blocks, threads, shared_bytes, arguments...).
#pragma once

#include "prepare.h"
#include "resolve.h"
#include "steps.h"

namespace wscxr {

template <typename Launcher>
class KernelSteps : public Launcher {
 public:
  using Launcher::Launcher;

  void survey(const Rows& rows, std::int64_t slab, double* sums, unsigned long long* largest,
              unsigned long long* bad) override {
    if (rows.count == 0) return;
    const std::int64_t blocks = tiles_of(rows.count, slab) * tiles_of(rows.channels, kPrepareThreads);
    with_type(rows.type, [&](auto type) {
      using T = decltype(type);
      this->launch(survey_kernel<T>, blocks, kPrepareThreads, 0, static_cast<const T*>(rows.data), rows.count,
                   rows.channels, slab, sums, largest, bad);
    });
  }

  void centre(const double* sums, std::int64_t parts, std::int64_t count, std::int64_t channels, double* centre,
              unsigned long long* largest, unsigned long long* bad) override {
    this->launch(centre_kernel, tiles_of(channels, kPrepareThreads), kPrepareThreads, 0, sums, parts, count, channels,
                 centre, largest, bad);
  }

  void count_bad_rows(const Rows& rows, unsigned long long* bad_rows) override {
    if (rows.count == 0) return;
    with_type(rows.type, [&](auto type) {
      using T = decltype(type);
      this->launch(count_bad_rows_kernel<T>, warps(rows.count), kPrepareThreads, 0, static_cast<const T*>(rows.data),
                   rows.count, rows.channels, bad_rows);
    });
  }

  void encode(const Rows& rows, const std::int64_t* list, std::int64_t padded, const double* centre, double factor,
              bool int8, const Encoded& to) override {
    with_type(rows.type, [&](auto type) {
      using T = decltype(type);
      const T* const data = static_cast<const T*>(rows.data);
      if (int8) {
        this->launch(encode_kernel<T, true>, warps(padded), kPrepareThreads, 0, data, list, rows.count, padded,
                     rows.channels, centre, factor, to);
      } else {
        this->launch(encode_kernel<T, false>, warps(padded), kPrepareThreads, 0, data, list, rows.count, padded,
                     rows.channels, centre, factor, to);
      }
    });
  }

  void group_maxima(const float* norm, const float* residual, std::int64_t count, std::int64_t groups,
                    float* group_norm, float* group_residual) override {
    this->launch(group_maxima_kernel, warps(groups), kPrepareThreads, 0, norm, residual, count, groups, group_norm,
                 group_residual);
  }

  void resolve(const ResolveProblem& problem) override {
    with_type(problem.bank.type, [&](auto type) {
      this->launch(resolve_kernel<decltype(type)>, problem.count, kResolveThreads,
                   resolve_shared_bytes(problem.query.channels), problem);
    });
  }

  void brute(const ResolveProblem& problem) override {
    with_type(problem.bank.type, [&](auto type) {
      this->launch(brute_kernel<decltype(type)>, problem.count, kResolveThreads,
                   resolve_shared_bytes(problem.query.channels), problem);
    });
  }

  void start(double* best_squared, std::int64_t* best_index, std::int64_t count) override {
    this->launch(start_kernel, tiles_of(count, kListThreads), kListThreads, 0, best_squared, best_index, count);
  }

  void finish(const double* best_squared, std::int64_t count, float* distance) override {
    this->launch(finish_kernel, tiles_of(count, kListThreads), kListThreads, 0, best_squared, count, distance);
  }

  void cut(const std::int64_t* leaders, std::int64_t count, const double* best_squared, float* cut) override {
    this->launch(cut_kernel, 1, kListThreads, 256, leaders, count, best_squared, cut);
  }

  void keep(const std::int64_t* list, std::int64_t count, const double* best_squared, const float* cut,
            std::int64_t* kept, std::int64_t* kept_count) override {
    this->launch(keep_kernel, 1, kListThreads, 256, list, count, best_squared, cut, kept, kept_count);
  }

  void gather(const float* distance, const std::int64_t* list, std::int64_t count, std::int64_t* index,
              float* gathered) override {
    this->launch(gather_kernel, tiles_of(count, kListThreads), kListThreads, 0, distance, list, count, index, gathered);
  }

 private:
  static std::int64_t warps(std::int64_t count) { return tiles_of(count, kPrepareThreads / kWarp); }
};

}  // namespace wscxr
