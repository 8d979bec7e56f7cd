// What the parts of a search hand to each other: plain structures, the same for host, device and emulation.
#pragma once

#include <cstdint>

namespace wscxr {

enum class Type : int { kDouble = 0, kFloat = 1, kHalf = 2, kBFloat16 = 3 };

inline std::int64_t size_of(Type type) { return type == Type::kDouble ? 8 : type == Type::kFloat ? 4 : 2; }

// A contiguous matrix of rows in device memory.
struct Rows {
  const void* data = nullptr;
  std::int64_t count = 0;
  std::int64_t channels = 0;
  Type type = Type::kFloat;
};

constexpr int kGroup = 64;  // bank rows that share one record of the tile kernel
constexpr int kGroupMask = kGroup - 1;
constexpr float kNothing = 3e38f;    // t of a bank row that is not there; real ones stay far below
constexpr float kSomething = 1e38f;  // every real t is smaller
constexpr int kTopExponent = 15;     // scaled coordinates lie below 2^15, half precision ends at 65504

// The two smallest values of a group of bank rows for one query, each with its column in the low bits of the mantissa.
struct alignas(8) Minima {
  float first;
  float second;
};

// Filled by the survey, all zero before. Magnitudes are the bits of non-negative doubles, which order as integers do.
struct Summary {
  unsigned long long query_largest = 0;
  unsigned long long bank_largest = 0;
  unsigned long long centre_largest = 0;
  unsigned long long query_bad = 0;  // not 0: there is a NaN or Inf
  unsigned long long bank_bad = 0;
  unsigned long long centre_bad = 0;
  unsigned long long query_bad_rows = 0;  // counted only where there is one
  unsigned long long bank_bad_rows = 0;
};

// Low-precision copy of rows and what the certificate needs to know of each of them.
struct Encoded {
  unsigned char* codes = nullptr;    // [count, row_bytes], zeros behind the last channel
  std::int64_t row_bytes = 0;        // a multiple of kChunkBytes
  float* norm = nullptr;             // [count] |x|, rounded up
  float* residual = nullptr;         // [count] |x - x~|, rounded up
  double* squared_double = nullptr;  // [count] |x|^2 (queries)
  float* squared = nullptr;          // [padded] |x|^2 (bank); kNothing behind the last row
  float* scale = nullptr;            // [padded] whole-number codes only: step of a query row, -2 x step of a bank row
};

constexpr std::int64_t kChunkBytes = 64;  // bytes of a row that one stage of the tile kernel takes

constexpr std::int64_t encoded_row_bytes(std::int64_t channels, bool whole) {
  const std::int64_t bytes = whole ? channels : 2 * channels;
  return (bytes + kChunkBytes - 1) / kChunkBytes * kChunkBytes;
}

constexpr int kTileRows = 128;
constexpr int kTileColumns = 256;
struct TileProblem {
  const unsigned char* query = nullptr;  // [queries, row_bytes]
  const unsigned char* bank = nullptr;   // [bank_rows, row_bytes]
  std::int64_t queries = 0;
  std::int64_t bank_rows = 0;
  std::int64_t row_bytes = 0;
  const float* query_scale = nullptr;   // [queries], whole numbers only
  const float* bank_scale = nullptr;    // [bank_rows rounded up to kTileColumns], whole numbers only: -2 x step
  const float* bank_squared = nullptr;  // [bank_rows rounded up to kTileColumns]
  Minima* minima = nullptr;             // [queries, groups]
  std::int64_t groups = 0;              // bank_rows / kGroup, rounded up
};

constexpr std::int64_t tiles_of(std::int64_t n, std::int64_t tile) { return (n + tile - 1) / tile; }

constexpr std::int64_t kNoIndex = INT64_MAX;

// How much was recomputed, for benchmarks; null pointers where nobody asks.
struct Counters {
  unsigned long long* candidates = nullptr;  // exact distances
  unsigned long long* rescans = nullptr;     // groups whose every row was recomputed
};

struct ResolveProblem {
  Rows query;                          // all of them
  Rows bank;                           // the block at hand
  const std::int64_t* rows = nullptr;  // [count] the query row of each place, if not first_query + place
  std::int64_t first_query = 0;
  std::int64_t count = 0;
  std::int64_t first_bank_row = 0;  // number of the block's first row
  bool aligned = false;             // bank rows begin at multiples of 16 bytes
  const Minima* minima = nullptr;   // [count, groups]
  std::int64_t groups = 0;
  const float* group_norm = nullptr;      // [groups]
  const float* group_residual = nullptr;  // [groups]
  const float* query_norm = nullptr;      // [count]
  const float* query_residual = nullptr;  // [count]
  const double* query_squared = nullptr;  // [count]
  double gamma = 0;
  double scale_squared = 1;            // (distance in the filter's units)^2 / distance^2, a power of two
  double* best_squared = nullptr;      // [all queries], in and out: exact minimum over the blocks so far
  std::int64_t* best_index = nullptr;  // [all queries], in and out
  Counters counters;
};

}  // namespace wscxr
