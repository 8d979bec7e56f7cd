// Mixing kernels for CPUs with AVX-512 F, BW and VL.
#include "mixup_row.h"

#ifdef WSCXR_X86
#include <immintrin.h>

#include <cstring>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,prefer-vector-width=512")
#endif

namespace wscxr::mixing {
namespace {

constexpr int kLanes = 16;

#include "mixup_row.inl"

inline Floats floats_of_half(HalfWords bits) { return (Floats)_mm512_cvtph_ps((__m256i)bits); }
inline HalfWords half_of_floats(Floats x) { return (HalfWords)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT); }
inline Words widen(HalfWords words) { return (Words)_mm512_cvtepu16_epi32((__m256i)words); }
inline HalfWords narrow(Words words) { return (HalfWords)_mm512_cvtepi32_epi16((__m512i)words); }
inline void store_unaligned(void* to, HalfWords x) { _mm256_storeu_si256(static_cast<__m256i*>(to), (__m256i)x); }
inline void stream(void* to, Floats x) { _mm512_stream_ps(static_cast<float*>(to), (__m512)x); }
inline void stream(void* to, HalfWords x) { _mm256_stream_si256(static_cast<__m256i*>(to), (__m256i)x); }

}  // namespace

const RowKernels kAvx512 = {mix_row<float>, mix_row<Half>, mix_row<BFloat16>};

}  // namespace wscxr::mixing

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
