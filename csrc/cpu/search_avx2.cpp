// Search kernels for CPUs with AVX2. Codes have seven bits: the sum of four products of bytes then fits into 16 bits.
#include "search.h"

#ifdef WSCXR_X86
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif

namespace wscxr::search {
namespace {

constexpr int kLevels = 63;  // 2 * 2 * (63 + 64) * 63 = 32,004 < 2^15
constexpr int kTile = 12;
constexpr int kVectorBytes = 32;

#include "search_bodies.inl"

// Multiply four queries with half a panel; the eight sums stay in registers. For all codes: two products of bytes are
// added in 16 bits, and then widened.
inline void half_tile(const std::int32_t* queries, const std::int32_t* start, const std::uint8_t* panel,
                      std::int64_t depth, std::int32_t* products) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sums[4][2];
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) sums[r][0] = sums[r][1] = _mm256_set1_epi32(start[r]);
  std::int64_t d = 0;
  for (; d + 2 <= depth; d += 2) {
    const __m256i* near = reinterpret_cast<const __m256i*>(panel + d * 128);
    const __m256i* next = reinterpret_cast<const __m256i*>(panel + d * 128 + 128);
    const __m256i a0 = _mm256_loadu_si256(near), a1 = _mm256_loadu_si256(near + 1);
    const __m256i b0 = _mm256_loadu_si256(next), b1 = _mm256_loadu_si256(next + 1);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const __m256i p = _mm256_set1_epi32(queries[d * kTile + r]), q = _mm256_set1_epi32(queries[(d + 1) * kTile + r]);
      const __m256i s0 = _mm256_add_epi16(_mm256_maddubs_epi16(a0, p), _mm256_maddubs_epi16(b0, q));
      const __m256i s1 = _mm256_add_epi16(_mm256_maddubs_epi16(a1, p), _mm256_maddubs_epi16(b1, q));
      sums[r][0] = _mm256_add_epi32(sums[r][0], _mm256_madd_epi16(s0, ones));
      sums[r][1] = _mm256_add_epi32(sums[r][1], _mm256_madd_epi16(s1, ones));
    }
  }
  if (d < depth) {
    const __m256i* near = reinterpret_cast<const __m256i*>(panel + d * 128);
    const __m256i a0 = _mm256_loadu_si256(near), a1 = _mm256_loadu_si256(near + 1);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const __m256i p = _mm256_set1_epi32(queries[d * kTile + r]);
      sums[r][0] = _mm256_add_epi32(sums[r][0], _mm256_madd_epi16(_mm256_maddubs_epi16(a0, p), ones));
      sums[r][1] = _mm256_add_epi32(sums[r][1], _mm256_madd_epi16(_mm256_maddubs_epi16(a1, p), ones));
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(products + r * kColumns), sums[r][0]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(products + r * kColumns + 8), sums[r][1]);
  }
}

// The same with the products of a chunk added in 16 bits, which saves every second multiplication. Sums may wrap on the
// way as long as the last ones fit; `lanes` removes the offset of the bank's codes from them.
inline void half_tile_in_lanes(const std::int32_t* queries, const std::int32_t* lanes, const std::uint8_t* panel,
                               std::int64_t depth, std::int32_t* products) {
  const __m256i ones = _mm256_set1_epi16(1);
  const auto total = [&](int r, int part) { return reinterpret_cast<__m256i*>(products + r * kColumns + 8 * part); };
  for (std::int64_t begin = 0; begin < depth; begin += kChunk, lanes += kTile) {
    const std::int64_t end = depth < begin + kChunk ? depth : begin + kChunk;
    __m256i sums[4][2];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) sums[r][0] = sums[r][1] = _mm256_set1_epi32(lanes[r]);
    for (std::int64_t d = begin; d < end; ++d) {
      const __m256i* at = reinterpret_cast<const __m256i*>(panel + d * 128);
      const __m256i left = _mm256_loadu_si256(at), right = _mm256_loadu_si256(at + 1);
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        const __m256i q = _mm256_set1_epi32(queries[d * kTile + r]);
        sums[r][0] = _mm256_add_epi16(sums[r][0], _mm256_maddubs_epi16(left, q));
        sums[r][1] = _mm256_add_epi16(sums[r][1], _mm256_maddubs_epi16(right, q));
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      __m256i wide[2] = {_mm256_madd_epi16(sums[r][0], ones), _mm256_madd_epi16(sums[r][1], ones)};
      if (begin) {
        wide[0] = _mm256_add_epi32(wide[0], _mm256_loadu_si256(total(r, 0)));
        wide[1] = _mm256_add_epi32(wide[1], _mm256_loadu_si256(total(r, 1)));
      }
      _mm256_storeu_si256(total(r, 0), wide[0]);
      _mm256_storeu_si256(total(r, 1), wide[1]);
    }
  }
}

// Half a panel stays in the L1 cache for all queries of the tile.
void tile(const std::int32_t* queries, const std::int32_t* start, const std::int32_t* lanes, const std::uint8_t* panel,
          std::int64_t depth, std::int32_t* products) {
  for (int half = 0; half < 2; ++half) {
    for (int r = 0; r < kTile; r += 4) {
      std::int32_t* const to = products + r * kColumns + 16 * half;
      if (lanes) {
        half_tile_in_lanes(queries + r, lanes + r, panel + 64 * half, depth, to);
      } else {
        half_tile(queries + r, start + r, panel + 64 * half, depth, to);
      }
    }
  }
}

std::int32_t peak(const std::uint8_t* panel, std::int64_t depth) {
  const __m256i offset = _mm256_set1_epi8(64);
  __m256i most = _mm256_setzero_si256();
  for (std::int64_t begin = 0; begin < depth; begin += kChunk) {
    const std::int64_t end = depth < begin + kChunk ? depth : begin + kChunk;
    __m256i squares[4] = {};
    for (std::int64_t d = begin; d < end; ++d) {
#pragma GCC unroll 4
      for (int part = 0; part < 4; ++part) {
        const __m256i stored = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel + d * 128) + part);
        const __m256i size = _mm256_abs_epi8(_mm256_sub_epi8(stored, offset));
        squares[part] =
            _mm256_adds_epu16(squares[part], _mm256_maddubs_epi16(size, size));  // 65,535 instead of wrapping
      }
    }
#pragma GCC unroll 4
    for (int part = 0; part < 4; ++part) most = _mm256_max_epu16(most, squares[part]);
  }
  std::uint16_t lanes[16];
  std::memcpy(lanes, &most, sizeof lanes);
  std::int32_t largest = 0;
  for (const std::uint16_t lane : lanes) largest = lane > largest ? lane : largest;
  return largest;
}

void sift(const std::int32_t* products, const float* columns, float longest, const Reaches& queries,
          std::uint32_t* passed) {
  for (int r = 0; r < kTile; ++r) {
    const float sum = queries.root[r] + longest;
    const __m256 limit = _mm256_set1_ps(kRounding * (sum * sum) + kTiny - queries.norm[r]);
    const __m256 factor = _mm256_set1_ps(queries.scale[r]), reach = _mm256_set1_ps(queries.reach[r]);
    std::uint32_t bits = 0;
    for (int part = 0; part < 4; ++part) {
      const float* column = columns + 8 * part;
      const __m256i whole = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(products + r * kColumns + 8 * part));
      const __m256 scaled =
          _mm256_mul_ps(_mm256_mul_ps(factor, _mm256_loadu_ps(column + kColumns)), _mm256_cvtepi32_ps(whole));
      const __m256 radius = _mm256_add_ps(reach, _mm256_loadu_ps(column + 2 * kColumns));
      const __m256 left = _mm256_sub_ps(_mm256_sub_ps(_mm256_loadu_ps(column), scaled), _mm256_mul_ps(radius, radius));
      bits |= static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(left, limit, _CMP_LE_OQ))) << (8 * part);
    }
    passed[r] = bits;
  }
}

}  // namespace

const Kernels kAvx2 = {"avx2", kLevels, 64, kTile, quantise, tile, peak, sift, squared_distance, widen, hash};

}  // namespace wscxr::search

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
