// Preparation of both row matrices for the filter: a survey of their values, and low-precision copies.
#pragma once

#include <cmath>
#include <cstdint>

#include "exact_distance.h"
#include "filter_math.h"

namespace wscxr {

constexpr int kPrepareThreads = 256;

// Largest magnitude and finiteness of a matrix; if `sums` is not null, also the column sums of every slab of rows.
template <typename T>
WSCXR_KERNEL(kPrepareThreads)
survey_kernel(const T* data, std::int64_t count, std::int64_t channels, std::int64_t slab, double* sums,
              unsigned long long* largest, unsigned long long* bad) {
  const std::int64_t across = (channels + kPrepareThreads - 1) / kPrepareThreads;
  const std::int64_t part = dev::block() / across;
  const std::int64_t channel = dev::block() % across * kPrepareThreads + dev::thread();
  const std::int64_t begin = part * slab, end = begin + slab < count ? begin + slab : count;
  double sum = 0, most = 0;
  bool finite = true;
  if (channel < channels) {
    for (std::int64_t row = begin; row < end; ++row) {
      const double value = as_double(data[row * channels + channel]), magnitude = fabs(value);
      if (!(magnitude < INFINITY)) finite = false;
      most = fmax(most, magnitude);
      sum += value;
    }
    if (sums != nullptr) sums[part * channels + channel] = sum;
  }
  for (int mask = kWarp / 2; mask > 0; mask /= 2) most = fmax(most, dev::shuffle_xor(most, mask));
  const bool warp_finite = dev::ballot(!finite) == 0;
  if (dev::thread() % kWarp == 0) {
    dev::atomic_max(largest, dev::bits_of(most));
    if (!warp_finite) dev::atomic_max(bad, 1);
  }
}

// Mean of every column from the sums of the slabs, added in order. Any centre gives exact results; the mean makes norms
// small.
WSCXR_KERNEL(kPrepareThreads)
centre_kernel(const double* sums, std::int64_t parts, std::int64_t count, std::int64_t channels, double* centre,
              unsigned long long* largest, unsigned long long* bad) {
  const std::int64_t channel = dev::block() * kPrepareThreads + dev::thread();
  if (channel >= channels) return;
  double sum = 0;
  for (std::int64_t part = 0; part < parts; ++part) sum += sums[part * channels + channel];
  const double mean = sum / static_cast<double>(count);
  centre[channel] = mean;
  if (!(fabs(mean) < INFINITY)) {
    dev::atomic_max(bad, 1);
  } else {
    dev::atomic_max(largest, dev::bits_of(fabs(mean)));
  }
}

// Number of rows with NaN or Inf; runs only if an error is going to be raised. One warp per row.
template <typename T>
WSCXR_KERNEL(kPrepareThreads)
count_bad_rows_kernel(const T* data, std::int64_t count, std::int64_t channels, unsigned long long* bad_rows) {
  const std::int64_t row = dev::block() * (kPrepareThreads / kWarp) + dev::thread() / kWarp;
  if (row >= count) return;
  bool finite = true;
  for (std::int64_t channel = dev::thread() % kWarp; channel < channels; channel += kWarp) {
    if (!(fabs(as_double(data[row * channels + channel])) < INFINITY)) finite = false;
  }
  const bool bad = dev::ballot(!finite) != 0;
  if (bad && dev::thread() % kWarp == 0) dev::atomic_add(bad_rows, 1);
}

constexpr int kPiece = 4;  // adjacent coordinates that a lane loads at once
template <typename T>
struct alignas(kPiece * sizeof(T) < 16 ? kPiece * sizeof(T) : 16) Piece {
  T at[kPiece];
};

// Centre a row, scale it by a power of two, round it to half precision or to int8 with a step size per row, and compute
// the norm of the rounding error. `rows` selects the rows to encode; null: all. One warp per row.
template <typename T, bool kInt8>
WSCXR_KERNEL(kPrepareThreads)
encode_kernel(const T* data, const std::int64_t* rows, std::int64_t count, std::int64_t padded, std::int64_t channels,
              const double* centre, double factor, Encoded to) {
  const std::int64_t at = dev::block() * (kPrepareThreads / kWarp) + dev::thread() / kWarp;
  const int lane = dev::thread() % kWarp;
  if (at >= padded) return;
  if (at >= count) {  // only the bank is padded
    if (lane == 0) {
      to.squared[at] = kPadding;
      if (kInt8) to.scale[at] = 0;
    }
    return;
  }
  const T* row = data + (rows != nullptr ? rows[at] : at) * channels;
  double step = 1;
  if (kInt8) {
    double most = 0;
    for (std::int64_t c = lane; c < channels; c += kWarp)
      most = fmax(most, fabs((as_double(row[c]) - centre[c]) * factor));
    for (int mask = kWarp / 2; mask > 0; mask /= 2) most = fmax(most, dev::shuffle_xor(most, mask));
    step = round_up(most / 127);
  }
  const std::int64_t width = kInt8 ? to.row_bytes : to.row_bytes / 2;
  double squared = 0, lost = 0;
  const bool aligned = reinterpret_cast<std::uintptr_t>(row) % (kPiece * sizeof(T)) == 0;
  for (std::int64_t base = lane * kPiece; base < width; base += kWarp * kPiece) {
    Piece<T> values = {};
    if (aligned && base + kPiece <= channels) {
      values = *reinterpret_cast<const Piece<T>*>(row + base);
    } else {
      for (int j = 0; j < kPiece; ++j) {
        if (base + j < channels) values.at[j] = row[base + j];
      }
    }
    dev::Half half_codes[kPiece];
    signed char int8_codes[kPiece];
    WSCXR_UNROLL
    for (int j = 0; j < kPiece; ++j) {
      const double value = base + j < channels ? (as_double(values.at[j]) - centre[base + j]) * factor : 0.0;
      double kept;
      if (kInt8) {
        const double code = step > 0 ? fmin(fmax(rint(value / step), -127.0), 127.0) : 0.0;
        int8_codes[j] = static_cast<signed char>(code);
        kept = code * step;
      } else {
        half_codes[j] = dev::to_half(static_cast<float>(value));
        kept = as_double(half_codes[j]);
      }
      squared = fma(value, value, squared);
      lost = fma(value - kept, value - kept, lost);
    }
    if (kInt8) {
      memcpy(to.codes + at * to.row_bytes + base, int8_codes, sizeof(int8_codes));
    } else {
      memcpy(to.codes + at * to.row_bytes + base * 2, half_codes, sizeof(half_codes));
    }
  }
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    squared += dev::shuffle_xor(squared, mask);
    lost += dev::shuffle_xor(lost, mask);
  }
  if (lane == 0) {
    to.norm[at] = round_up(sqrt(squared));
    to.residual[at] = round_up(sqrt(lost));
    if (to.squared_double != nullptr) to.squared_double[at] = squared;
    if (to.squared != nullptr) to.squared[at] = static_cast<float>(squared);
    if (kInt8) to.scale[at] = static_cast<float>(to.squared != nullptr ? -2 * step : step);
  }
}

// Largest norm and largest residual norm in each group of bank rows. One warp per group.
WSCXR_KERNEL(kPrepareThreads)
group_maxima_kernel(const float* norm, const float* residual, std::int64_t count, std::int64_t groups,
                    float* group_norm, float* group_residual) {
  const std::int64_t group = dev::block() * (kPrepareThreads / kWarp) + dev::thread() / kWarp;
  if (group >= groups) return;
  float most_norm = 0, most_residual = 0;
  for (std::int64_t row = group * kGroup + dev::thread() % kWarp; row < (group + 1) * kGroup && row < count;
       row += kWarp) {
    most_norm = fmaxf(most_norm, norm[row]);
    most_residual = fmaxf(most_residual, residual[row]);
  }
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    most_norm = fmaxf(most_norm, dev::shuffle_xor(most_norm, mask));
    most_residual = fmaxf(most_residual, dev::shuffle_xor(most_residual, mask));
  }
  if (dev::thread() % kWarp == 0) {
    group_norm[group] = most_norm;
    group_residual[group] = most_residual;
  }
}

}  // namespace wscxr
