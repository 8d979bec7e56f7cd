// Search kernels in plain C++, for every CPU.
#include <cmath>
#include <cstring>
#include <limits>

#include "search.h"

namespace wscxr::search {
namespace {

constexpr int kLevels = 127;
constexpr int kTile = 4;

#include "search_bodies.inl"

void tile(const std::int32_t* queries, const std::int32_t* start, const std::uint8_t* panel, std::int64_t depth,
          std::int32_t* products) {
  for (int r = 0; r < kTile; ++r) {
    for (int j = 0; j < kColumns; ++j) products[r * kColumns + j] = start[r];
  }
  for (std::int64_t d = 0; d < depth; ++d) {
    // the four channels of a word side by side for all columns, which compilers turn into vectors
    std::int16_t bank[4][kColumns];
    for (int j = 0; j < kColumns; ++j) {
      for (int c = 0; c < 4; ++c) bank[c][j] = panel[d * 128 + j * 4 + c];
    }
    for (int r = 0; r < kTile; ++r) {
      std::int8_t q[4];
      std::memcpy(q, queries + d * kTile + r, 4);
      for (int c = 0; c < 4; ++c) {
        const std::int16_t factor = q[c];
        for (int j = 0; j < kColumns; ++j) {
          products[r * kColumns + j] += static_cast<std::int32_t>(bank[c][j]) * static_cast<std::int32_t>(factor);
        }
      }
    }
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

const Kernels kPortable = {"portable", kLevels, 128, kTile, quantise, tile, sift, squared_distance, widen, hash};

}  // namespace wscxr::search
