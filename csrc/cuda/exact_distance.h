// Exact distance of a pair of rows in float64, for rows of the four floating-point types.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "device.h"
#include "problems.h"

namespace wscxr {

WSCXR_DEVICE double as_double(double value) { return value; }
WSCXR_DEVICE double as_double(float value) { return value; }
WSCXR_DEVICE double as_double(dev::Half value) { return static_cast<double>(dev::to_float(value)); }
WSCXR_DEVICE double as_double(dev::BFloat16 value) { return static_cast<double>(dev::to_float(value)); }

WSCXR_DEVICE double load_double(const Rows& rows, std::int64_t row, std::int64_t channel) {
  const std::int64_t at = row * rows.channels + channel;
  switch (rows.type) {
    case Type::kDouble:
      return static_cast<const double*>(rows.data)[at];
    case Type::kFloat:
      return static_cast<const float*>(rows.data)[at];
    case Type::kHalf:
      return as_double(static_cast<const dev::Half*>(rows.data)[at]);
    default:
      return as_double(static_cast<const dev::BFloat16*>(rows.data)[at]);
  }
}

// Call f with a value of the element type.
template <typename F>
void with_type(Type type, const F& f) {
  switch (type) {
    case Type::kDouble:
      return f(double{});
    case Type::kFloat:
      return f(float{});
    case Type::kHalf:
      return f(dev::Half{});
    case Type::kBFloat16:
      return f(dev::BFloat16{});
  }
}

// Compute the squared distance of a query and a bank row with one warp. query(c) is coordinate c as double. The order
// of the additions depends only on the type and width of the bank, so equal rows give equal bits at every position.
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

}  // namespace wscxr
