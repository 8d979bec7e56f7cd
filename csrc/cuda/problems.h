// Plain structures that the parts of a search exchange, the same for host, device and emulation.
#pragma once

#include <cstdint>

#include "rows.h"

namespace wscxr {

constexpr int kGroup = 64;  // bank rows that share one record of the tile kernel
constexpr int kGroupMask = kGroup - 1;
constexpr float kPadding = 3e38f;       // filter value t of a padding row
constexpr float kLargestValue = 1e38f;  // filter values of bank rows are smaller
constexpr int kTopExponent = 15;        // scaled coordinates are below 2^15; the largest half is 65504

// The two smallest filter values of a group of bank rows for one query, each with its column in the low bits of the
// mantissa.
struct alignas(8) Minima {
  float first;
  float second;
};

// Result of the survey. All members start at zero. Magnitudes are the bits of non-negative doubles, which compare like
// integers.
struct Summary {
  unsigned long long query_largest = 0;
  unsigned long long bank_largest = 0;
  unsigned long long centre_largest = 0;
  unsigned long long query_bad = 0;  // 1: at least one NaN or Inf
  unsigned long long bank_bad = 0;
  unsigned long long centre_bad = 0;
  unsigned long long query_bad_rows = 0;  // counted only if there are any
  unsigned long long bank_bad_rows = 0;
};

// Low-precision copies of rows, and the norms that the error bound needs.
struct Encoded {
  unsigned char* codes = nullptr;    // [count, row_bytes], zero after the last channel
  std::int64_t row_bytes = 0;        // a multiple of kChunkBytes
  float* norm = nullptr;             // [count] |x|, rounded up
  float* residual = nullptr;         // [count] |x - x~|, rounded up
  double* squared_double = nullptr;  // [count] |x|^2 (queries)
  float* squared = nullptr;          // [padded] |x|^2 (bank); kPadding after the last row
  float* scale = nullptr;            // [padded] int8 only: step of a query row, -2 x step of a bank row
};

constexpr std::int64_t kChunkBytes = 64;  // bytes per row in one stage of the tile kernel

constexpr std::int64_t encoded_row_bytes(std::int64_t channels, bool int8) {
  const std::int64_t bytes = int8 ? channels : 2 * channels;
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
  const float* query_scale = nullptr;   // [queries], int8 only
  const float* bank_scale = nullptr;    // [bank_rows rounded up to kTileColumns], int8 only: -2 x step
  const float* bank_squared = nullptr;  // [bank_rows rounded up to kTileColumns]
  Minima* minima = nullptr;             // [queries, groups]
  std::int64_t groups = 0;              // bank_rows / kGroup, rounded up
};

constexpr std::int64_t tiles_of(std::int64_t n, std::int64_t tile) { return (n + tile - 1) / tile; }

constexpr std::int64_t kNoIndex = INT64_MAX;

// Counts of exact evaluations, for benchmarks; null pointers: do not count.
struct Counters {
  unsigned long long* candidates = nullptr;  // exact distances
  unsigned long long* rescans = nullptr;     // groups of bank rows evaluated completely
};

struct ResolveProblem {
  Rows query;                          // all queries
  Rows bank;                           // one block of the bank
  const std::int64_t* rows = nullptr;  // [count] query row of each place; null: first_query + place
  std::int64_t first_query = 0;
  std::int64_t count = 0;
  std::int64_t first_bank_row = 0;  // index of the block's first row
  bool aligned = false;             // every bank row starts at a multiple of 16 bytes
  const Minima* minima = nullptr;   // [count, groups]
  std::int64_t groups = 0;
  const float* group_norm = nullptr;      // [groups]
  const float* group_residual = nullptr;  // [groups]
  const float* query_norm = nullptr;      // [count]
  const float* query_residual = nullptr;  // [count]
  const double* query_squared = nullptr;  // [count]
  double gamma = 0;
  double scale_squared = 1;            // (scaled distance / distance)^2, a power of two
  double* best_squared = nullptr;      // [all queries], in and out: exact minimum over the blocks so far
  std::int64_t* best_index = nullptr;  // [all queries], in and out
  Counters counters;
};

}  // namespace wscxr
