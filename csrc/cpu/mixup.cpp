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
#include <type_traits>

#include "../common.h"
#include "pages.h"
#include "philox.h"

#ifdef WSCXR_X86
#include <immintrin.h>
#endif

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Numbers below which a share of the rows is not worth a thread.
constexpr std::int64_t kElementsPerThread = 1 << 15;
// Bytes of an output from which it goes past the caches, and asks the system for large pages.
constexpr std::int64_t kLargeOutput = 32 << 20;

template <typename T, typename Compute>
void mix_row(const T* normal, const T* abnormal, T* mixed, std::int64_t channels, Compute a, Compute b, bool) {
  for (std::int64_t c = 0; c < channels; ++c) {
    mixed[c] = static_cast<T>(a * static_cast<Compute>(abnormal[c]) + b * static_cast<Compute>(normal[c]));
  }
}

#ifdef WSCXR_X86
__attribute__((target("avx"))) void mix_row_avx(const float* normal, const float* abnormal, float* mixed,
                                                std::int64_t channels, float a, float b, bool past_caches) {
  const __m256 factor = _mm256_set1_ps(a), rest = _mm256_set1_ps(b);
  std::int64_t c = 0;
  const bool aligned = reinterpret_cast<std::uintptr_t>(mixed) % 32 == 0;
  for (; c + 8 <= channels; c += 8) {
    const __m256 sum = _mm256_add_ps(_mm256_mul_ps(factor, _mm256_loadu_ps(abnormal + c)),
                                     _mm256_mul_ps(rest, _mm256_loadu_ps(normal + c)));
    if (past_caches && aligned) {
      _mm256_stream_ps(mixed + c, sum);
    } else {
      _mm256_storeu_ps(mixed + c, sum);
    }
  }
  mix_row<float, float>(normal + c, abnormal + c, mixed + c, channels - c, a, b, false);
}

__attribute__((target("avx2,f16c"))) void mix_row_f16c(const Half* normal, const Half* abnormal, Half* mixed,
                                                       std::int64_t channels, float a, float b, bool past_caches) {
  const __m256 factor = _mm256_set1_ps(a), rest = _mm256_set1_ps(b);
  std::int64_t c = 0;
  const bool aligned = reinterpret_cast<std::uintptr_t>(mixed) % 16 == 0;
  for (; c + 8 <= channels; c += 8) {
    const __m256 from = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(abnormal + c)));
    const __m256 into = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(normal + c)));
    const __m256 sum = _mm256_add_ps(_mm256_mul_ps(factor, from), _mm256_mul_ps(rest, into));
    const __m128i narrow = _mm256_cvtps_ph(sum, _MM_FROUND_TO_NEAREST_INT);
    __m128i* to = reinterpret_cast<__m128i*>(mixed + c);
    if (past_caches && aligned) {
      _mm_stream_si128(to, narrow);
    } else {
      _mm_storeu_si128(to, narrow);
    }
  }
  mix_row<Half, float>(normal + c, abnormal + c, mixed + c, channels - c, a, b, false);
}

// Eight float32 as bfloat16 in the low halves of 32-bit words, rounded to nearest even; NaN stays NaN.
__attribute__((target("avx2"))) inline __m256i rounded_bfloat16(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x), shifted = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(shifted, _mm256_set1_epi32(1));
  const __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(_mm256_srli_epi32(sum, 16), _mm256_set1_epi32(0x7fc0), nan);
}

__attribute__((target("avx2"))) void mix_row_avx2(const BFloat16* normal, const BFloat16* abnormal, BFloat16* mixed,
                                                  std::int64_t channels, float a, float b, bool past_caches) {
  const __m256 factor = _mm256_set1_ps(a), rest = _mm256_set1_ps(b);
  std::int64_t c = 0;
  const bool aligned = reinterpret_cast<std::uintptr_t>(mixed) % 16 == 0;
  for (; c + 8 <= channels; c += 8) {
    const __m128i from = _mm_loadu_si128(reinterpret_cast<const __m128i*>(abnormal + c));
    const __m128i into = _mm_loadu_si128(reinterpret_cast<const __m128i*>(normal + c));
    const __m256 x = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(from), 16));
    const __m256 y = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(into), 16));
    const __m256i sum = rounded_bfloat16(_mm256_add_ps(_mm256_mul_ps(factor, x), _mm256_mul_ps(rest, y)));
    const __m128i narrow = _mm_packus_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    __m128i* to = reinterpret_cast<__m128i*>(mixed + c);
    if (past_caches && aligned) {
      _mm_stream_si128(to, narrow);
    } else {
      _mm_storeu_si128(to, narrow);
    }
  }
  mix_row<BFloat16, float>(normal + c, abnormal + c, mixed + c, channels - c, a, b, false);
}
#endif

template <typename T, typename Compute>
using MixRow = void (*)(const T*, const T*, T*, std::int64_t, Compute, Compute, bool);

template <typename T, typename Compute>
MixRow<T, Compute> row_kernel() {
#ifdef WSCXR_X86
  const wscxr::CpuFeatures cpu = wscxr::cpu_features();
  if constexpr (std::is_same_v<T, float>) {
    if (cpu.avx2) return mix_row_avx;
  } else if constexpr (std::is_same_v<T, Half>) {
    if (cpu.avx2 && cpu.f16c) return mix_row_f16c;
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    if (cpu.avx2) return mix_row_avx2;
  }
#endif
  return mix_row<T, Compute>;
}

template <typename T, typename Compute>
void mix_rows(const T* normal, const T* abnormal, T* mixed, std::int64_t* source, float* alpha, std::int64_t rows,
              std::int64_t channels, std::uint64_t abnormal_rows, std::uint64_t seed, std::uint64_t offset, float low,
              float high) {
  const MixRow<T, Compute> mix = row_kernel<T, Compute>();
  const std::int64_t bytes = rows * channels * static_cast<std::int64_t>(sizeof(T));
  const bool past_caches = bytes >= kLargeOutput;
  if (past_caches) wscxr::ask_for_large_pages(mixed, static_cast<std::size_t>(bytes));
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
      // the next partner lies anywhere: fetch it while this row is mixed
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
    if (past_caches) _mm_sfence();  // the stores become visible to other threads
#endif
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
      run(Half{}, float{});
      break;
    case ScalarType::BFloat16:
      run(BFloat16{}, float{});
      break;
    default:
      STD_TORCH_CHECK(false, "mixup: rows must be float64, float32, float16 or bfloat16");
  }
  return {mixed, source, alpha};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(monai_wscxr, CPU, m) { m.impl("mixup", TORCH_BOX(&mixup)); }
