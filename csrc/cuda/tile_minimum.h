// Filter kernel for compute capability 8.0 and later: multiply low-precision rows on matrix units, and write only the
// two smallest values per query and group of bank rows.
//
// A block of 8 warps computes a tile of 128 queries x 256 bank rows; each warp holds 64 x 64 sums in registers. Rows
// pass through a ring of stages in shared memory in chunks of 64 bytes. The 16-byte pieces of a chunk are permuted by
// the row number, so that the same piece of eight consecutive rows lies in different memory banks. Half precision and
// int8 differ only in the instruction and the epilogue: their fragments have the same layout in bytes.
#pragma once

#include <cstdint>

#include "filter_math.h"
#include "problems.h"

namespace wscxr {

constexpr int kTileThreads = 256;
constexpr int kStages = 4;
constexpr int kStageBytes = (kTileRows + kTileColumns) * static_cast<int>(kChunkBytes);
constexpr int kTileShared = kStages * kStageBytes;
constexpr int kBand = 16;  // row tiles that run concurrently and share bank tiles in the L2 cache

// Offset of a 16-byte piece of a row within a stage.
WSCXR_DEVICE int piece_offset(int row, int piece) {
  return row * static_cast<int>(kChunkBytes) + ((piece ^ ((row >> 1) & 3)) << 4);
}

WSCXR_DEVICE float filter_value(float product, float squared, float, float) { return fmaf(-2.0f, product, squared); }
WSCXR_DEVICE float filter_value(std::int32_t product, float squared, float query_scale, float bank_scale) {
  return fmaf(static_cast<float>(product) * query_scale, bank_scale, squared);
}

template <typename Sum>  // float: half-precision codes; int32: int8 codes
WSCXR_KERNEL(kTileThreads) tile_minimum_kernel(TileProblem p) {
  constexpr bool kInt8 = sizeof(Sum) == sizeof(std::int32_t) && Sum(0.5f) == Sum(0);
  unsigned char* const shared = dev::shared();
  const int thread = dev::thread(), warp = thread / kWarp, lane = thread % kWarp;
  const std::int64_t row_tiles = tiles_of(p.queries, kTileRows), column_tiles = tiles_of(p.bank_rows, kTileColumns);
  const std::int64_t band = dev::block() / (kBand * column_tiles), within = dev::block() % (kBand * column_tiles);
  const std::int64_t band_rows = row_tiles - band * kBand < kBand ? row_tiles - band * kBand : kBand;
  const std::int64_t first_row = (band * kBand + within % band_rows) * kTileRows;
  const std::int64_t first_column = within / band_rows * kTileColumns;

  // Thread t copies piece t % 4 of rows t / 4, t / 4 + 64, ...: 2 pieces of queries and 4 of bank rows per stage.
  const int piece = thread % 4, copy_row = thread / 4;
  const auto load_stage = [&](int stage, std::int64_t chunk) {
    unsigned char* const to = shared + stage * kStageBytes;
    const std::int64_t offset = chunk * kChunkBytes + piece * 16;
    WSCXR_UNROLL
    for (int i = 0; i < kTileRows / 64; ++i) {
      const int row = copy_row + 64 * i;
      const bool valid = first_row + row < p.queries;
      dev::copy_async(to + piece_offset(row, piece), p.query + (valid ? first_row + row : 0) * p.row_bytes + offset,
                      valid);
    }
    WSCXR_UNROLL
    for (int i = 0; i < kTileColumns / 64; ++i) {
      const int row = copy_row + 64 * i;
      const bool valid = first_column + row < p.bank_rows;
      dev::copy_async(to + kTileRows * kChunkBytes + piece_offset(row, piece),
                      p.bank + (valid ? first_column + row : 0) * p.row_bytes + offset, valid);
    }
  };

  const int warp_row = warp / 4 * 64, warp_column = warp % 4 * 64;
  Sum sum[4][8][4] = {};
  const std::int64_t chunks = p.row_bytes / kChunkBytes;
  WSCXR_UNROLL
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (stage < chunks) load_stage(stage, stage);
    dev::copy_commit();
  }
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    dev::copy_wait<kStages - 2>();
    dev::sync_block();  // all copies of this chunk have completed, and no thread reads the stage that is filled next
    if (chunk + kStages - 1 < chunks) {
      load_stage(static_cast<int>((chunk + kStages - 1) % kStages), chunk + kStages - 1);
    }
    dev::copy_commit();
    const unsigned char* const queries = shared + static_cast<int>(chunk % kStages) * kStageBytes;
    const unsigned char* const bank = queries + kTileRows * kChunkBytes;
    WSCXR_UNROLL
    for (int half = 0; half < 2; ++half) {  // an instruction consumes 32 bytes of each row
      std::uint32_t a[4][4], b[4][4];
      WSCXR_UNROLL
      for (int i = 0; i < 4; ++i) {
        dev::load_matrices(a[i], queries + piece_offset(warp_row + 16 * i + (lane & 15), 2 * half + (lane >> 4)));
      }
      WSCXR_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int row = warp_column + 16 * i + ((lane >> 4) << 3) + (lane & 7);
        dev::load_matrices(b[i], bank + piece_offset(row, 2 * half + ((lane >> 3) & 1)));
      }
      WSCXR_UNROLL
      for (int i = 0; i < 4; ++i) {
        WSCXR_UNROLL
        for (int j = 0; j < 8; ++j) dev::multiply_add(sum[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
  }

  // Epilogue. sum[i][j][2 h + k] is row 16 i + 8 h + lane / 4 and column 8 j + 2 (lane % 4) + k of the warp's tile.
  // Four lanes share a row and together hold its 64 columns, which are one group.
  const std::int64_t group = (first_column + warp_column) / kGroup;
  float squared[8][2], bank_scale[8][2];
  WSCXR_UNROLL
  for (int j = 0; j < 8; ++j) {
    WSCXR_UNROLL
    for (int k = 0; k < 2; ++k) {
      const std::int64_t column = first_column + warp_column + 8 * j + 2 * (lane % 4) + k;
      squared[j][k] = p.bank_squared[column];
      bank_scale[j][k] = kInt8 ? p.bank_scale[column] : 0;
    }
  }
  WSCXR_UNROLL
  for (int i = 0; i < 4; ++i) {
    WSCXR_UNROLL
    for (int h = 0; h < 2; ++h) {
      const std::int64_t row = first_row + warp_row + 16 * i + 8 * h + lane / 4;
      const float query_scale = kInt8 && row < p.queries ? p.query_scale[row] : 0;
      Minima minima{kPadding, kPadding};
      WSCXR_UNROLL
      for (int j = 0; j < 8; ++j) {
        WSCXR_UNROLL
        for (int k = 0; k < 2; ++k) {
          const float t = filter_value(sum[i][j][2 * h + k], squared[j][k], query_scale, bank_scale[j][k]);
          insert_minimum(minima, pack_minimum(t, 8 * j + 2 * (lane % 4) + k));
        }
      }
      WSCXR_UNROLL
      for (int mask = 1; mask <= 2; mask *= 2) {
        const float first = dev::shuffle_xor(minima.first, mask), second = dev::shuffle_xor(minima.second, mask);
        merge_minima(minima, first, second);
      }
      if (lane % 4 == 0 && row < p.queries && group < p.groups) p.minima[row * p.groups + group] = minima;
    }
  }
}

}  // namespace wscxr
