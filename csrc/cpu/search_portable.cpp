// Search kernels in plain C++, for every CPU.
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "search.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace wscxr::search {
namespace {

constexpr int kLevels = 127;
constexpr int kTile = 12;
constexpr int kVectorBytes = 16;

#include "search_bodies.inl"

#if defined(__SSE2__)
inline void add_pairs(const std::int16_t* bank, std::int16_t first, std::int16_t second, std::int32_t* sums) {
  const __m128i q = _mm_set1_epi32((static_cast<std::int32_t>(second) << 16) | (first & 0xffff));
  for (int j = 0; j < kColumns; j += 4) {
    __m128i* sum = reinterpret_cast<__m128i*>(sums + j);
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bank + 2 * j));
    _mm_store_si128(sum, _mm_add_epi32(_mm_load_si128(sum), _mm_madd_epi16(b, q)));
  }
}
#else
inline void add_pairs(const std::int16_t* bank, std::int16_t first, std::int16_t second, std::int32_t* sums) {
  for (int j = 0; j < kColumns; ++j) {
    sums[j] += static_cast<std::int32_t>(bank[2 * j]) * first + static_cast<std::int32_t>(bank[2 * j + 1]) * second;
  }
}
#endif

// The bytes of the panel are unpacked once to pairs of 16-bit numbers for all queries of the tile. The inner loop then
// consists of widening multiply-adds.
void tile(const std::int32_t* queries, const std::int32_t* start, const std::int32_t*, const std::uint8_t* panel,
          std::int64_t depth, std::int32_t* products) {
  thread_local std::vector<std::int16_t> bank;
  bank.resize(static_cast<std::size_t>(depth * 4 * kColumns));
  for (std::int64_t d = 0; d < depth; ++d) {
    std::int16_t* to = bank.data() + d * 4 * kColumns;
    const std::uint8_t* from = panel + d * 4 * kColumns;
    for (int j = 0; j < kColumns; ++j) {
      to[2 * j] = from[4 * j];
      to[2 * j + 1] = from[4 * j + 1];
      to[2 * kColumns + 2 * j] = from[4 * j + 2];
      to[2 * kColumns + 2 * j + 1] = from[4 * j + 3];
    }
  }
  for (int r = 0; r < kTile; ++r) {
    alignas(16) std::int32_t sums[kColumns];
    for (int j = 0; j < kColumns; ++j) sums[j] = start[r];
    for (std::int64_t d = 0; d < depth; ++d) {
      std::int8_t q[4];
      std::memcpy(q, queries + d * kTile + r, 4);
      add_pairs(bank.data() + d * 4 * kColumns, q[0], q[1], sums);
      add_pairs(bank.data() + d * 4 * kColumns + 2 * kColumns, q[2], q[3], sums);
    }
    std::memcpy(products + r * kColumns, sums, sizeof sums);
  }
}

void sift(const std::int32_t* products, const float* columns, float longest, const Reaches& queries,
          std::uint32_t* passed) {
  for (int r = 0; r < kTile; ++r) {
    const float sum = queries.root[r] + longest, limit = kRounding * (sum * sum) + kTiny - queries.norm[r];
    std::uint32_t bits = 0;
    for (int j = 0; j < kColumns; ++j) {
      const float scaled = queries.scale[r] * columns[kColumns + j] * static_cast<float>(products[r * kColumns + j]);
      const float radius = queries.reach[r] + columns[2 * kColumns + j];
      const float squared = radius * radius, difference = columns[j] - scaled;
      bits |= static_cast<std::uint32_t>(difference - squared <= limit) << j;
    }
    passed[r] = bits;
  }
}

}  // namespace

const Kernels kPortable = {"portable", kLevels,          128,   kTile, quantise, tile, nullptr,
                           sift,       squared_distance, widen, hash};

}  // namespace wscxr::search
