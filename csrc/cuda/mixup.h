// Eq. 6 on the device in one pass; the arithmetic of csrc/cpu/mixup.cpp, rounded one operation at a time.
#pragma once

#include <cstdint>
#include <cstring>

#include "philox.h"
#include "rows.h"

namespace wscxr {
inline namespace WSCXR_SIDE {

constexpr int kMixThreads = 256;

#if defined(__CUDACC__)
WSCXR_DEVICE float times(float a, float b) { return __fmul_rn(a, b); }
WSCXR_DEVICE float plus(float a, float b) { return __fadd_rn(a, b); }
WSCXR_DEVICE double times(double a, double b) { return __dmul_rn(a, b); }
WSCXR_DEVICE double plus(double a, double b) { return __dadd_rn(a, b); }
#else  // built with -ffp-contract=off
inline float times(float a, float b) { return a * b; }
inline float plus(float a, float b) { return a + b; }
inline double times(double a, double b) { return a * b; }
inline double plus(double a, double b) { return a + b; }
#endif

template <typename T>
struct Mixing {  // the type that is computed in
  using Compute = float;
};
template <>
struct Mixing<double> {
  using Compute = double;
};

WSCXR_DEVICE double widen(double value) { return value; }
WSCXR_DEVICE float widen(float value) { return value; }
WSCXR_DEVICE float widen(__half value) { return __half2float(value); }
WSCXR_DEVICE float widen(__nv_bfloat16 value) { return __bfloat162float(value); }
WSCXR_DEVICE void narrow(double value, double& to) { to = value; }
WSCXR_DEVICE void narrow(float value, float& to) { to = value; }
WSCXR_DEVICE void narrow(float value, __half& to) { to = __float2half_rn(value); }
WSCXR_DEVICE void narrow(float value, __nv_bfloat16& to) { to = __float2bfloat16_rn(value); }

template <typename T>
struct MixProblem {
  const T* normal;
  const T* abnormal;
  T* mixed;
  std::int64_t* source;
  float* alpha;
  std::int64_t rows;
  std::int64_t channels;
  std::uint64_t abnormal_rows;
  std::uint64_t seed;
  std::uint64_t offset;
  float low;
  float high;
  bool aligned;  // every row of the three matrices begins at a multiple of 16 bytes
};

inline bool mix_aligned(const void* normal, const void* abnormal, const void* mixed, std::int64_t row_bytes) {
  const auto misplaced = [](const void* at) { return reinterpret_cast<std::uintptr_t>(at) % 16 != 0; };
  return row_bytes % 16 == 0 && !misplaced(normal) && !misplaced(abnormal) && !misplaced(mixed);
}

// One warp per row, which depends on (seed, offset + row) alone, whatever the grid.
template <typename T>
WSCXR_KERNEL(kMixThreads)
mixup_kernel(MixProblem<T> p) {
  using Compute = typename Mixing<T>::Compute;
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  constexpr int kWarps = kMixThreads / kWarp;
  const int lane = dev::thread() % kWarp;
  const std::int64_t pieces = p.aligned ? p.channels / kVector : 0;
  for (std::int64_t row = dev::block() * kWarps + dev::thread() / kWarp; row < p.rows; row += dev::blocks() * kWarps) {
    const PhiloxWords words = philox(p.offset + static_cast<std::uint64_t>(row), p.seed);
    const std::uint64_t u = (static_cast<std::uint64_t>(words.w[1]) << 32) | words.w[0];
    const std::int64_t partner = static_cast<std::int64_t>(index_below(u, p.abnormal_rows));
    const float uniform = static_cast<float>(words.w[2] >> 8) * 0x1p-24f;  // exact
    const float factor = fminf(plus(p.low, times(plus(p.high, -p.low), uniform)), p.high);
    if (lane == 0) {
      p.source[row] = partner;
      p.alpha[row] = factor;
    }
    const Compute a = factor, b = plus(Compute(1), -a);
    const T* const normal = p.normal + row * p.channels;
    const T* const abnormal = p.abnormal + partner * p.channels;
    T* const mixed = p.mixed + row * p.channels;
    for (std::int64_t piece = lane; piece < pieces; piece += kWarp) {
      const Bytes16 n_bytes = reinterpret_cast<const Bytes16*>(normal)[piece];
      const Bytes16 a_bytes = reinterpret_cast<const Bytes16*>(abnormal)[piece];
      T n[kVector], m[kVector];
      memcpy(static_cast<void*>(n), &n_bytes, sizeof(n_bytes));
      memcpy(static_cast<void*>(m), &a_bytes, sizeof(a_bytes));
      WSCXR_UNROLL
      for (int j = 0; j < kVector; ++j) narrow(plus(times(a, widen(m[j])), times(b, widen(n[j]))), n[j]);
      Bytes16 out;
      memcpy(&out, n, sizeof(out));
      reinterpret_cast<Bytes16*>(mixed)[piece] = out;
    }
    for (std::int64_t c = pieces * kVector + lane; c < p.channels; c += kWarp) {
      narrow(plus(times(a, widen(abnormal[c])), times(b, widen(normal[c]))), mixed[c]);
    }
  }
}

}  // namespace WSCXR_SIDE
}  // namespace wscxr
