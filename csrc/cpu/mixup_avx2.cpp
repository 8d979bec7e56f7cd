// Mixing kernels for CPUs with AVX2 and F16C.
#include "mixup_row.h"

#ifdef WSCXR_X86
#include <immintrin.h>

#include <cstring>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,f16c")
#endif

namespace wscxr::mixing {
namespace {

constexpr int kLanes = 8;

#include "mixup_row.inl"

inline Floats floats_of_half(HalfWords bits) { return (Floats)_mm256_cvtph_ps((__m128i)bits); }
inline HalfWords half_of_floats(Floats x) { return (HalfWords)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT); }
inline Words widen(HalfWords words) { return (Words)_mm256_cvtepu16_epi32((__m128i)words); }
inline HalfWords narrow(Words words) {
  const __m256i w = (__m256i)words;
  return (HalfWords)_mm_packus_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
}
inline void store_unaligned(void* to, HalfWords x) { _mm_storeu_si128(static_cast<__m128i*>(to), (__m128i)x); }
inline void stream(void* to, Floats x) { _mm256_stream_ps(static_cast<float*>(to), (__m256)x); }
inline void stream(void* to, HalfWords x) { _mm_stream_si128(static_cast<__m128i*>(to), (__m128i)x); }

}  // namespace

const RowKernels kAvx2 = {mix_row<float>, mix_row<Half>, mix_row<BFloat16>};

}  // namespace wscxr::mixing

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
