// Arithmetic of the filter and its error bound.
//
// Notation: q and b are a query and a bank row after centring and scaling by a power of two, which both preserve the
// order of distances. q~ and b~ are their low-precision copies and rho = |x - x~| the norms of the residuals. The
// filter computes t = |b|^2 - 2 q~.b~ in float32, so that |q - b|^2 is approximately t + |q|^2.
#pragma once

#include <cmath>
#include <cstdint>

#include "device.h"
#include "problems.h"

namespace wscxr {

// Store the column in the low bits of the mantissa. This changes t by less than 2^-17 |t|.
WSCXR_DEVICE float pack_minimum(float t, int column) {
  return dev::float_of((dev::bits_of(t) & ~static_cast<std::uint32_t>(kGroupMask)) |
                       static_cast<std::uint32_t>(column));
}
WSCXR_DEVICE int packed_column(float packed) { return static_cast<int>(dev::bits_of(packed) & kGroupMask); }

// Smallest and largest t that a packed value can stand for; both increase with the packed value.
WSCXR_DEVICE float packed_least(float packed) {
  const std::uint32_t bits = dev::bits_of(packed);
  return dev::float_of(bits >> 31 ? bits | kGroupMask : bits & ~static_cast<std::uint32_t>(kGroupMask));
}
WSCXR_DEVICE float packed_largest(float packed) {
  const std::uint32_t bits = dev::bits_of(packed);
  return dev::float_of(bits >> 31 ? bits & ~static_cast<std::uint32_t>(kGroupMask) : bits | kGroupMask);
}

// Keep the two smallest values seen so far.
WSCXR_DEVICE void insert_minimum(Minima& minima, float value) {
  minima.second = fminf(minima.second, fmaxf(minima.first, value));
  minima.first = fminf(minima.first, value);
}
WSCXR_DEVICE void merge_minima(Minima& minima, float first, float second) {
  minima.second = fminf(fmaxf(minima.first, first), fminf(minima.second, second));
  minima.first = fminf(minima.first, first);
}

// Bound of | t + |q|^2 - |q - b|^2 | from the norms and the residual norms of both rows (Cauchy-Schwarz):
//   q.b - q~.b~ = (q - q~).b + q~.(b - b~), and |q~| <= |q| + rho_q;
//   the error of the product is at most gamma |q~||b~|, with gamma = 0 for int8 and accumulation_error (search.h) for
//   half precision;
//   |b|^2, the conversion and scaling of a product, and t itself are rounded once each to float32: 4 x 2^-24;
//   centring, norms and the final float64 evaluation are rounded to float64: a multiple of channels x 2^-53.
WSCXR_DEVICE double error_bound(double query_norm, double query_residual, double bank_norm, double bank_residual,
                                double gamma, std::int64_t channels) {
  const double query = query_norm + query_residual, bank = bank_norm + bank_residual;
  const double rounding = 1.0 / (1 << 22) + static_cast<double>(channels) * (1.0 / (1LL << 50));
  return 2 * (query_residual * bank_norm + query * bank_residual) + 2 * gamma * query * bank +
         rounding * (query + bank) * (query + bank);
}

// Smallest float that is not below `value`, so that an upper bound stays one.
WSCXR_DEVICE float round_up(double value) {
  const float near = static_cast<float>(value);
  return static_cast<double>(near) < value ? nextafterf(near, INFINITY) : near;
}

}  // namespace wscxr
