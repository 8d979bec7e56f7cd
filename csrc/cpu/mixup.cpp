// Eq. 6 on the CPU in one pass: the same bits of `source` and `alpha` as the reference in monai_wscxr/ops/mixup.py.
// Built with -ffp-contract=off, so that products and sums are rounded one by one as there.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <tuple>

#include "philox.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Numbers below which a share of the rows is not worth a thread.
constexpr std::int64_t kElementsPerThread = 1 << 15;

template <typename T, typename Compute>
void mix_rows(const T* normal, const T* abnormal, T* mixed, std::int64_t* source, float* alpha, std::int64_t rows,
              std::int64_t channels, std::uint64_t abnormal_rows, std::uint64_t seed, std::uint64_t offset, float low,
              float high) {
  const std::int64_t grain = std::max<std::int64_t>(1, kElementsPerThread / std::max<std::int64_t>(channels, 1));
  torch::stable::parallel_for(0, rows, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const wscxr::PhiloxWords words = wscxr::philox(offset + static_cast<std::uint64_t>(row), seed);
      const std::uint64_t u = (static_cast<std::uint64_t>(words.w[1]) << 32) | words.w[0];
      const std::uint64_t partner = wscxr::index_below(u, abnormal_rows);
      const float uniform = static_cast<float>(words.w[2] >> 8) * 0x1p-24f;  // exact
      const float span = high - low;
      const float scaled = span * uniform;
      const float factor = std::min(low + scaled, high);
      source[row] = static_cast<std::int64_t>(partner);
      alpha[row] = factor;
      const Compute a = static_cast<Compute>(factor), b = Compute(1) - a;
      const T* from_normal = normal + row * channels;
      const T* from_abnormal = abnormal + static_cast<std::int64_t>(partner) * channels;
      T* to = mixed + row * channels;
      for (std::int64_t c = 0; c < channels; ++c) {
        to[c] = static_cast<T>(a * static_cast<Compute>(from_abnormal[c]) + b * static_cast<Compute>(from_normal[c]));
      }
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> mixup(Tensor normal, Tensor abnormal, std::int64_t seed, std::int64_t offset,
                                         double alpha_min, double alpha_max) {
  const Tensor n = torch::stable::contiguous(normal), a = torch::stable::contiguous(abnormal);
  const std::int64_t rows = n.size(0), channels = n.size(1);
  Tensor mixed = torch::stable::new_empty(n, {rows, channels});
  Tensor source = torch::stable::new_empty(n, {rows}, ScalarType::Long);
  Tensor alpha = torch::stable::new_empty(n, {rows}, ScalarType::Float);
  const auto run = [&](auto type, auto compute) {
    using T = decltype(type);
    mix_rows<T, decltype(compute)>(
        static_cast<const T*>(n.data_ptr()), static_cast<const T*>(a.data_ptr()), static_cast<T*>(mixed.data_ptr()),
        static_cast<std::int64_t*>(source.data_ptr()), static_cast<float*>(alpha.data_ptr()), rows, channels,
        static_cast<std::uint64_t>(a.size(0)), static_cast<std::uint64_t>(seed), static_cast<std::uint64_t>(offset),
        static_cast<float>(alpha_min), static_cast<float>(alpha_max));
  };
  switch (n.scalar_type()) {
    case ScalarType::Double:
      run(double{}, double{});
      break;
    case ScalarType::Float:
      run(float{}, float{});
      break;
    case ScalarType::Half:
      run(torch::headeronly::Half{}, float{});
      break;
    case ScalarType::BFloat16:
      run(torch::headeronly::BFloat16{}, float{});
      break;
    default:
      STD_TORCH_CHECK(false, "mixup: rows must be float64, float32, float16 or bfloat16");
  }
  return {mixed, source, alpha};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(monai_wscxr, CPU, m) { m.impl("mixup", TORCH_BOX(&mixup)); }
