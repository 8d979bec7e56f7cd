// The arithmetic that the certificate of the filter rests on, for host and device.
//
// Notation, after centring by c and scaling by a power of two (both leave the order of distances): q and b are a query
// and a bank row, q~ and b~ their low-precision copies, rho = |x - x~| the residual norms. The filter forms
// t = |b|^2 - 2 q~.b~ in float32, so that |q - b|^2 is about t + |q|^2.
#pragma once

#include <cmath>
#include <cstdint>

#include "device.h"
#include "problems.h"

namespace wscxr {
inline namespace WSCXR_SIDE {

// Replaces the low bits of the mantissa by the column: moves t by less than 2^-17 |t| and keeps the order up to that.
WSCXR_DEVICE float pack_minimum(float t, int column) {
  return dev::float_of((dev::bits_of(t) & ~static_cast<std::uint32_t>(kGroupMask)) |
                       static_cast<std::uint32_t>(column));
}
WSCXR_DEVICE int packed_column(float packed) { return static_cast<int>(dev::bits_of(packed) & kGroupMask); }

// Least and largest t that a packed value can come from; both grow with the packed value.
WSCXR_DEVICE float packed_least(float packed) {
  const std::uint32_t bits = dev::bits_of(packed);
  return dev::float_of(bits >> 31 ? bits | kGroupMask : bits & ~static_cast<std::uint32_t>(kGroupMask));
}
WSCXR_DEVICE float packed_largest(float packed) {
  const std::uint32_t bits = dev::bits_of(packed);
  return dev::float_of(bits >> 31 ? bits & ~static_cast<std::uint32_t>(kGroupMask) : bits | kGroupMask);
}

// Puts one more value among the two smallest.
WSCXR_DEVICE void insert_minimum(Minima& minima, float value) {
  minima.second = fminf(minima.second, fmaxf(minima.first, value));
  minima.first = fminf(minima.first, value);
}
WSCXR_DEVICE void merge_minima(Minima& minima, float first, float second) {
  minima.second = fminf(fmaxf(minima.first, first), fminf(minima.second, second));
  minima.first = fminf(minima.first, first);
}

// Relative error of a float32 accumulation of `channels` half-precision products on matrix units, whose rounding is not
// documented: a truncation of 2^-23 for each of 8 + 1 addends and for each result is 0.63 of this.
WSCXR_BOTH double accumulation_error(std::int64_t channels) {
  return static_cast<double>(channels + 16) * (1.0 / (1 << 22));
}

// Bound of | t + |q|^2 - |q - b|^2 | from the norms and residual norms of both rows (Cauchy-Schwarz):
//   q.b - q~.b~ = (q - q~).b + q~.(b - b~), and |q~| <= |q| + rho_q;
//   the product errs by at most gamma |q~||b~|, gamma = 0 for whole numbers;
//   |b|^2, the conversion and scaling of a product and t itself round once each to float32: 4 x 2^-24;
//   centring, norms and the final float64 evaluation round to float64: a multiple of channels x 2^-53.
WSCXR_BOTH double error_bound(double query_norm, double query_residual, double bank_norm, double bank_residual,
                              double gamma, std::int64_t channels) {
  const double query = query_norm + query_residual, bank = bank_norm + bank_residual;
  const double rounding = 1.0 / (1 << 22) + static_cast<double>(channels) * (1.0 / (1LL << 50));
  return 2 * (query_residual * bank_norm + query * bank_residual) + 2 * gamma * query * bank +
         rounding * (query + bank) * (query + bank);
}

// The next float that is not below a double, so that a bound stays a bound.
WSCXR_BOTH float round_up(double value) {
  const float near = static_cast<float>(value);
  return static_cast<double>(near) < value ? nextafterf(near, INFINITY) : near;
}

}  // namespace WSCXR_SIDE
}  // namespace wscxr
