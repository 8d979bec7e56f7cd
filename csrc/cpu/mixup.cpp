// Eq. 6 on the CPU in one pass. Results are bit-identical to the reference in monai_wscxr/ops/mixup.py: the extension
// is built with -ffp-contract=off, so products and sums are rounded separately here as well.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <type_traits>

#include "common.h"
#include "mixup_row.h"
#include "philox.h"
#include "search.h"
#include "tensor_checks.h"

#ifdef WSCXR_X86
#include <immintrin.h>  // _mm_sfence
#endif

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

using wscxr::mixing::BFloat16;
using wscxr::mixing::Half;
using wscxr::mixing::MixRow;

constexpr std::int64_t kElementsPerThread = 1 << 15;  // least work that justifies another thread
// Outputs of this many bytes and more bypass the caches, except in freshly allocated memory: the operating system has
// just cleared it page by page, so it is in the caches already.
constexpr std::int64_t kLargeOutput = 16 << 20;

// For all other types and CPUs.
template <typename T, typename Compute>
void mix_row(const T* normal, const T* abnormal, T* mixed, std::int64_t channels, Compute a, Compute b, bool) {
  for (std::int64_t c = 0; c < channels; ++c) {
    mixed[c] = static_cast<T>(a * static_cast<Compute>(abnormal[c]) + b * static_cast<Compute>(normal[c]));
  }
}

// Kernel for this CPU, or for the instruction set that MONAI_WSCXR_CPU or use_kernels names.
template <typename T, typename Compute>
MixRow<T, Compute> row_kernel() {
#ifdef WSCXR_X86
  if constexpr (!std::is_same_v<T, double>) {
    const auto of = [](const wscxr::mixing::RowKernels& kernels) {
      if constexpr (std::is_same_v<T, float>) return kernels.for_float;
      if constexpr (std::is_same_v<T, Half>) return kernels.for_half;
      if constexpr (std::is_same_v<T, BFloat16>) return kernels.for_bfloat16;
    };
    const wscxr::CpuFeatures cpu = wscxr::cpu_features();
    const wscxr::search::Kernels* const named = wscxr::search::named_kernels();
    const bool any = named == nullptr;
    if ((any || named == &wscxr::search::kAvx512Vnni) && cpu.avx512f && cpu.avx512bw && cpu.avx512vl) {
      return of(wscxr::mixing::kAvx512);
    }
    if ((any || named != &wscxr::search::kPortable) && cpu.avx2 && cpu.f16c) return of(wscxr::mixing::kAvx2);
  }
#endif
  return mix_row<T, Compute>;
}

template <typename T, typename Compute>
void mix_rows(const T* normal, const T* abnormal, T* mixed, std::int64_t* source, float* alpha, std::int64_t rows,
              std::int64_t channels, std::uint64_t abnormal_rows, std::uint64_t seed, std::uint64_t offset, float low,
              float high, bool fresh) {
  const MixRow<T, Compute> mix = row_kernel<T, Compute>();
  const bool past_caches = !fresh && rows * channels * static_cast<std::int64_t>(sizeof(T)) >= kLargeOutput;
  const std::int64_t grain = std::max<std::int64_t>(1, kElementsPerThread / std::max<std::int64_t>(channels, 1));
  torch::stable::parallel_for(0, rows, grain, [&](std::int64_t begin, std::int64_t end) {
    const auto draw = [&](std::int64_t row) { return wscxr::philox(offset + static_cast<std::uint64_t>(row), seed); };
    const auto partner_of = [&](const wscxr::PhiloxWords& words) {
      const std::uint64_t u = (static_cast<std::uint64_t>(words.w[1]) << 32) | words.w[0];
      return static_cast<std::int64_t>(wscxr::index_below(u, abnormal_rows));
    };
    wscxr::PhiloxWords following = draw(begin);
    for (std::int64_t row = begin; row < end; ++row) {
      const wscxr::PhiloxWords words = following;
      const std::int64_t partner = partner_of(words);
      following = draw(row + 1);
#if defined(__GNUC__) || defined(__clang__)
      // the next partner may be anywhere in memory: prefetch it while this row is mixed
      const char* next = reinterpret_cast<const char*>(abnormal + partner_of(following) * channels);
      for (std::int64_t i = 0; i < channels * static_cast<std::int64_t>(sizeof(T)); i += 64)
        __builtin_prefetch(next + i);
#endif
      const float uniform = static_cast<float>(words.w[2] >> 8) * 0x1p-24f;  // exact
      const float span = high - low;
      const float scaled = span * uniform;
      const float factor = std::min(low + scaled, high);
      source[row] = partner;
      alpha[row] = factor;
      const Compute a = static_cast<Compute>(factor), b = Compute(1) - a;
      mix(normal + row * channels, abnormal + partner * channels, mixed + row * channels, channels, a, b, past_caches);
    }
#ifdef WSCXR_X86
    if (past_caches) _mm_sfence();  // makes the stores visible to other threads
#endif
  });
}

std::tuple<Tensor, Tensor> mix(const Tensor& normal, const Tensor& abnormal, std::int64_t seed, std::int64_t offset,
                               double alpha_min, double alpha_max, const Tensor& mixed, bool fresh) {
  const Tensor n = torch::stable::contiguous(normal), a = torch::stable::contiguous(abnormal);
  const std::int64_t rows = n.size(0), channels = n.size(1);
  Tensor source = torch::stable::new_empty(n, {rows}, ScalarType::Long);
  Tensor alpha = torch::stable::new_empty(n, {rows}, ScalarType::Float);
  const auto run = [&](auto type, auto compute) {
    using T = decltype(type);
    mix_rows<T, decltype(compute)>(
        static_cast<const T*>(n.data_ptr()), static_cast<const T*>(a.data_ptr()), static_cast<T*>(mixed.data_ptr()),
        static_cast<std::int64_t*>(source.data_ptr()), static_cast<float*>(alpha.data_ptr()), rows, channels,
        static_cast<std::uint64_t>(a.size(0)), static_cast<std::uint64_t>(seed), static_cast<std::uint64_t>(offset),
        static_cast<float>(alpha_min), static_cast<float>(alpha_max), fresh);
  };
  switch (n.scalar_type()) {
    case ScalarType::Double:
      run(double{}, double{});
      break;
    case ScalarType::Float:
      run(float{}, float{});
      break;
    case ScalarType::Half:
      run(Half{}, float{});
      break;
    case ScalarType::BFloat16:
      run(BFloat16{}, float{});
      break;
    default:
      STD_TORCH_CHECK(false, "mixup: rows must be float64, float32, float16 or bfloat16");
  }
  return {source, alpha};
}

std::tuple<Tensor, Tensor, Tensor> mixup(Tensor normal, Tensor abnormal, std::int64_t seed, std::int64_t offset,
                                         double alpha_min, double alpha_max) {
  wscxr::check_mixing(normal, abnormal, seed, offset, alpha_min, alpha_max);
  Tensor mixed = torch::stable::new_empty(normal, {normal.size(0), normal.size(1)});
  const auto [source, alpha] = mix(normal, abnormal, seed, offset, alpha_min, alpha_max, mixed, true);
  return {mixed, source, alpha};
}

std::tuple<Tensor, Tensor> mixup_into(Tensor normal, Tensor abnormal, std::int64_t seed, std::int64_t offset,
                                      double alpha_min, double alpha_max, Tensor mixed) {
  wscxr::check_mixing(normal, abnormal, seed, offset, alpha_min, alpha_max);
  wscxr::check_into(normal, abnormal, mixed);
  return mix(normal, abnormal, seed, offset, alpha_min, alpha_max, mixed, false);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(monai_wscxr, CPU, m) {
  m.impl("mixup", TORCH_BOX(&mixup));
  m.impl("mixup_into", TORCH_BOX(&mixup_into));
}
