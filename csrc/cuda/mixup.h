// Eq. 6 on CUDA in one pass, with the arithmetic of csrc/cpu/mixup.cpp: every operation is rounded separately.
#pragma once

#include <cstdint>
#include <cstring>

#include "device.h"
#include "philox.h"

namespace wscxr {

constexpr int kMixThreads = 256;

template <typename T>
struct Mixing {  // type of the computation
  using Compute = float;
};
template <>
struct Mixing<double> {
  using Compute = double;
};

WSCXR_DEVICE double widen(double value) { return value; }
WSCXR_DEVICE float widen(float value) { return value; }
WSCXR_DEVICE float widen(dev::Half value) { return dev::to_float(value); }
WSCXR_DEVICE float widen(dev::BFloat16 value) { return dev::to_float(value); }
WSCXR_DEVICE void narrow(double value, double& to) { to = value; }
WSCXR_DEVICE void narrow(float value, float& to) { to = value; }
WSCXR_DEVICE void narrow(float value, dev::Half& to) { to = dev::to_half(value); }
WSCXR_DEVICE void narrow(float value, dev::BFloat16& to) { to = dev::to_bfloat16(value); }

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
  bool aligned;  // every row of the three matrices starts at a multiple of 16 bytes
};

inline bool mix_aligned(const void* normal, const void* abnormal, const void* mixed, std::int64_t row_bytes) {
  const auto unaligned = [](const void* at) { return reinterpret_cast<std::uintptr_t>(at) % 16 != 0; };
  return row_bytes % 16 == 0 && !unaligned(normal) && !unaligned(abnormal) && !unaligned(mixed);
}

// A row depends only on (seed, offset + row), not on the grid. One warp per row.
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
    const float factor =
        fminf(dev::add_rounded(p.low, dev::multiply_rounded(dev::add_rounded(p.high, -p.low), uniform)), p.high);
    if (lane == 0) {
      p.source[row] = partner;
      p.alpha[row] = factor;
    }
    const Compute a = factor, b = dev::add_rounded(Compute(1), -a);
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
      for (int j = 0; j < kVector; ++j) {
        narrow(dev::add_rounded(dev::multiply_rounded(a, widen(m[j])), dev::multiply_rounded(b, widen(n[j]))), n[j]);
      }
      Bytes16 out;
      memcpy(&out, n, sizeof(out));
      reinterpret_cast<Bytes16*>(mixed)[piece] = out;
    }
    for (std::int64_t c = pieces * kVector + lane; c < p.channels; c += kWarp) {
      narrow(dev::add_rounded(dev::multiply_rounded(a, widen(abnormal[c])), dev::multiply_rounded(b, widen(normal[c]))),
             mixed[c]);
    }
  }
}

}  // namespace wscxr
