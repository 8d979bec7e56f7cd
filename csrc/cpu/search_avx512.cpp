// Search kernels for CPUs with AVX-512 and the byte dot product of VNNI.
#include "search.h"

#ifdef WSCXR_X86
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,prefer-vector-width=512")
#endif

namespace wscxr::search {
namespace {

constexpr int kLevels = 127;
constexpr int kTile = 12;
constexpr int kVectorBytes = 64;

#include "search_bodies.inl"

void tile(const std::int32_t* queries, const std::int32_t* start, const std::int32_t*, const std::uint8_t* panel,
          std::int64_t depth, std::int32_t* products) {
  __m512i sums[kTile][2];
#pragma GCC unroll 12
  for (int r = 0; r < kTile; ++r) sums[r][0] = sums[r][1] = _mm512_set1_epi32(start[r]);
  for (std::int64_t d = 0; d < depth; ++d) {
    const __m512i left = _mm512_loadu_si512(panel + d * 128), right = _mm512_loadu_si512(panel + d * 128 + 64);
#pragma GCC unroll 12
    for (int r = 0; r < kTile; ++r) {
      const __m512i q = _mm512_set1_epi32(queries[d * kTile + r]);
      sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], left, q);
      sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], right, q);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kTile; ++r) {
    _mm512_storeu_si512(products + r * kColumns, sums[r][0]);
    _mm512_storeu_si512(products + r * kColumns + 16, sums[r][1]);
  }
}

void sift(const std::int32_t* products, const float* columns, float longest, const Reaches& queries,
          std::uint32_t* passed) {
  const __m512 norm[2] = {_mm512_loadu_ps(columns), _mm512_loadu_ps(columns + 16)};
  const __m512 scale[2] = {_mm512_loadu_ps(columns + kColumns), _mm512_loadu_ps(columns + kColumns + 16)};
  const __m512 residual[2] = {_mm512_loadu_ps(columns + 2 * kColumns), _mm512_loadu_ps(columns + 2 * kColumns + 16)};
  for (int r = 0; r < kTile; ++r) {
    const float sum = queries.root[r] + longest;
    const __m512 limit = _mm512_set1_ps(kRounding * (sum * sum) + kTiny - queries.norm[r]);
    const __m512 factor = _mm512_set1_ps(queries.scale[r]), reach = _mm512_set1_ps(queries.reach[r]);
    // fused operations are allowed here: they round less often than the bound assumes
    std::uint32_t bits = 0;
    for (int half = 0; half < 2; ++half) {
      const __m512 product = _mm512_cvtepi32_ps(_mm512_loadu_si512(products + r * kColumns + 16 * half));
      const __m512 difference = _mm512_fnmadd_ps(factor, _mm512_mul_ps(scale[half], product), norm[half]);
      const __m512 radius = _mm512_add_ps(reach, residual[half]);
      const __m512 left = _mm512_fnmadd_ps(radius, radius, difference);
      bits |= static_cast<std::uint32_t>(_mm512_cmp_ps_mask(left, limit, _CMP_LE_OQ)) << (16 * half);
    }
    passed[r] = bits;
  }
}

}  // namespace

const Kernels kAvx512Vnni = {"avx512-vnni", kLevels,          128,   kTile, quantise, tile, nullptr,
                             sift,          squared_distance, widen, hash};

}  // namespace wscxr::search

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
