// Rows of the four floating-point types, read as double, and the exact distance of a pair.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "device.h"
#include "problems.h"

namespace wscxr {
inline namespace WSCXR_SIDE {

WSCXR_BOTH double as_double(double value) { return value; }
WSCXR_BOTH double as_double(float value) { return value; }
WSCXR_BOTH double as_double(__half value) { return static_cast<double>(__half2float(value)); }
WSCXR_BOTH double as_double(__nv_bfloat16 value) { return static_cast<double>(__bfloat162float(value)); }

WSCXR_DEVICE double load_double(const Rows& rows, std::int64_t row, std::int64_t channel) {
  const std::int64_t at = row * rows.channels + channel;
  switch (rows.type) {
    case Type::kDouble:
      return static_cast<const double*>(rows.data)[at];
    case Type::kFloat:
      return static_cast<const float*>(rows.data)[at];
    case Type::kHalf:
      return as_double(static_cast<const __half*>(rows.data)[at]);
    default:
      return as_double(static_cast<const __nv_bfloat16*>(rows.data)[at]);
  }
}

// Calls f with a value of the element type.
template <typename F>
void with_type(Type type, const F& f) {
  switch (type) {
    case Type::kDouble:
      return f(double{});
    case Type::kFloat:
      return f(float{});
    case Type::kHalf:
      return f(__half{});
    case Type::kBFloat16:
      return f(__nv_bfloat16{});
  }
}

// Squared distance in float64 of a query (its coordinates as double through `query`) and a bank row, by one warp. The
// order of the sum depends on the bank's type and width alone: equal rows give equal bits, wherever they lie.
template <typename T, typename Query>
WSCXR_DEVICE double exact_squared(const Query& query, const T* row, std::int64_t channels, bool aligned) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  double sum = 0;
  for (std::int64_t base = (dev::thread() % kWarp) * kVector; base < channels; base += kWarp * kVector) {
    if (aligned && base + kVector <= channels) {
      const Bytes16 bytes = *reinterpret_cast<const Bytes16*>(row + base);
      T piece[kVector];
      memcpy(static_cast<void*>(piece), &bytes, sizeof(bytes));
      WSCXR_UNROLL
      for (int j = 0; j < kVector; ++j) {
        const double difference = query(base + j) - as_double(piece[j]);
        sum = fma(difference, difference, sum);
      }
    } else {
      for (std::int64_t at = base; at < base + kVector && at < channels; ++at) {
        const double difference = query(at) - as_double(row[at]);
        sum = fma(difference, difference, sum);
      }
    }
  }
  for (int mask = kWarp / 2; mask > 0; mask /= 2) sum += dev::shuffle_xor(sum, mask);
  return sum;
}

}  // namespace WSCXR_SIDE
}  // namespace wscxr
