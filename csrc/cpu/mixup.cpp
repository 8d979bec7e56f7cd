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
// Bytes of an output from which it goes past the caches, unless it is fresh memory: the system has just cleared that
// page by page, so it is in the caches anyway.
constexpr std::int64_t kLargeOutput = 16 << 20;

template <typename T, typename Compute>
void mix_row(const T* normal, const T* abnormal, T* mixed, std::int64_t channels, Compute a, Compute b, bool) {
  for (std::int64_t c = 0; c < channels; ++c) {
    mixed[c] = static_cast<T>(a * static_cast<Compute>(abnormal[c]) + b * static_cast<Compute>(normal[c]));
  }
}

#ifdef WSCXR_X86
#define WSCXR_AVX2 __attribute__((target("avx2,f16c")))
#define WSCXR_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl")))

// Eight and sixteen numbers as float32, and back: rounded to nearest even, NaN stays NaN.
WSCXR_AVX2 inline void load(const float* from, __m256& x) { x = _mm256_loadu_ps(from); }
WSCXR_AVX2 inline void load(const Half* from, __m256& x) {
  x = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
WSCXR_AVX2 inline void load(const BFloat16* from, __m256& x) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  x = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
WSCXR_AVX2 inline void store(float* to, __m256 x, bool past_caches) {
  if (past_caches) {
    _mm256_stream_ps(to, x);
  } else {
    _mm256_storeu_ps(to, x);
  }
}
WSCXR_AVX2 inline void store_words(void* to, __m128i x, bool past_caches) {
  if (past_caches) {
    _mm_stream_si128(static_cast<__m128i*>(to), x);
  } else {
    _mm_storeu_si128(static_cast<__m128i*>(to), x);
  }
}
WSCXR_AVX2 inline void store(Half* to, __m256 x, bool past_caches) {
  store_words(to, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT), past_caches);
}
WSCXR_AVX2 inline void store(BFloat16* to, __m256 x, bool past_caches) {
  const __m256i bits = _mm256_castps_si256(x), shifted = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(shifted, _mm256_set1_epi32(1));
  const __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i words = _mm256_blendv_epi8(_mm256_srli_epi32(sum, 16), _mm256_set1_epi32(0x7fc0), nan);
  store_words(to, _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)), past_caches);
}

WSCXR_AVX512 inline void load(const float* from, __m512& x) { x = _mm512_loadu_ps(from); }
WSCXR_AVX512 inline void load(const Half* from, __m512& x) {
  x = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
WSCXR_AVX512 inline void load(const BFloat16* from, __m512& x) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  x = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
WSCXR_AVX512 inline void store(float* to, __m512 x, bool past_caches) {
  if (past_caches) {
    _mm512_stream_ps(to, x);
  } else {
    _mm512_storeu_ps(to, x);
  }
}
WSCXR_AVX512 inline void store_words(void* to, __m256i x, bool past_caches) {
  if (past_caches) {
    _mm256_stream_si256(static_cast<__m256i*>(to), x);
  } else {
    _mm256_storeu_si256(static_cast<__m256i*>(to), x);
  }
}
WSCXR_AVX512 inline void store(Half* to, __m512 x, bool past_caches) {
  store_words(to, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT), past_caches);
}
WSCXR_AVX512 inline void store(BFloat16* to, __m512 x, bool past_caches) {
  const __m512i bits = _mm512_castps_si512(x), shifted = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(shifted, _mm512_set1_epi32(1));
  const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i words = _mm512_mask_mov_epi32(_mm512_srli_epi32(sum, 16), nan, _mm512_set1_epi32(0x7fc0));
  store_words(to, _mm512_cvtepi32_epi16(words), past_caches);
}

template <typename T>
WSCXR_AVX2 void mix_row_avx2(const T* normal, const T* abnormal, T* mixed, std::int64_t channels, float a, float b,
                             bool past_caches) {
  const __m256 factor = _mm256_set1_ps(a), rest = _mm256_set1_ps(b);
  const bool past = past_caches && reinterpret_cast<std::uintptr_t>(mixed) % 32 == 0;
  std::int64_t c = 0;
  for (; c + 8 <= channels; c += 8) {
    __m256 from, into;
    load(abnormal + c, from);
    load(normal + c, into);
    store(mixed + c, _mm256_add_ps(_mm256_mul_ps(factor, from), _mm256_mul_ps(rest, into)), past);
  }
  mix_row<T, float>(normal + c, abnormal + c, mixed + c, channels - c, a, b, false);
}

template <typename T>
WSCXR_AVX512 void mix_row_avx512(const T* normal, const T* abnormal, T* mixed, std::int64_t channels, float a, float b,
                                 bool past_caches) {
  const __m512 factor = _mm512_set1_ps(a), rest = _mm512_set1_ps(b);
  const bool past = past_caches && reinterpret_cast<std::uintptr_t>(mixed) % 64 == 0;
  std::int64_t c = 0;
  for (; c + 16 <= channels; c += 16) {
    __m512 from, into;
    load(abnormal + c, from);
    load(normal + c, into);
    store(mixed + c, _mm512_add_ps(_mm512_mul_ps(factor, from), _mm512_mul_ps(rest, into)), past);
  }
  mix_row<T, float>(normal + c, abnormal + c, mixed + c, channels - c, a, b, false);
}
#endif

template <typename T, typename Compute>
using MixRow = void (*)(const T*, const T*, T*, std::int64_t, Compute, Compute, bool);

template <typename T, typename Compute>
MixRow<T, Compute> row_kernel() {
#ifdef WSCXR_X86
  if constexpr (!std::is_same_v<T, double>) {
    const wscxr::CpuFeatures cpu = wscxr::cpu_features();
    if (cpu.avx512f && cpu.avx512bw && cpu.avx512vl) return mix_row_avx512<T>;
    if (cpu.avx2 && cpu.f16c) return mix_row_avx2<T>;
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
  Tensor mixed = torch::stable::new_empty(normal, {normal.size(0), normal.size(1)});
  const auto [source, alpha] = mix(normal, abnormal, seed, offset, alpha_min, alpha_max, mixed, true);
  return {mixed, source, alpha};
}

std::tuple<Tensor, Tensor> mixup_into(Tensor normal, Tensor abnormal, std::int64_t seed, std::int64_t offset,
                                      double alpha_min, double alpha_max, Tensor mixed) {
  STD_TORCH_CHECK(mixed.is_contiguous() && mixed.dim() == 2 && mixed.size(0) == normal.size(0) &&
                      mixed.size(1) == normal.size(1) && mixed.scalar_type() == normal.scalar_type(),
                  "mixup: out must be contiguous and have the shape and type of the normal rows");
  return mix(normal, abnormal, seed, offset, alpha_min, alpha_max, mixed, false);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(monai_wscxr, CPU, m) {
  m.impl("mixup", TORCH_BOX(&mixup));
  m.impl("mixup_into", TORCH_BOX(&mixup_into));
}
