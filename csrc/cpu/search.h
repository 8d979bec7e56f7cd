// Interfaces of the exact nearest-row search on the CPU. The algorithm is described at the top of search.cpp.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "common.h"
#include "pages.h"
#include "rows.h"

namespace wscxr::search {

// Columns of a panel: bank rows whose codes are interleaved, four channels of one row per 32-bit word.
constexpr int kColumns = 32;
// Channels that are quantised; further ones count as residual, so that sums of products fit into 32 bits.
constexpr std::int64_t kCodedChannels = 65536;
constexpr int kLargestTile = 12;  // query rows in the largest tile
constexpr int kChunk = 16;        // words whose products are added in 16 bits where they fit

// Result of the quantisation of one row. In scaled units (multiplied by 2^-exponent), the centred row is
// scale * code + e with |e| <= residual.
struct Quantised {
  double scale = 0;
  double norm = 0;       // |scale * code|^2
  double residual = 0;   // infinite: the row is too large to be quantised
  std::int32_t sum = 0;  // sum of the codes
};

// Values of the queries of one tile that the filter needs.
struct Reaches {
  const float* scale;
  const float* reach;  // upper bound of the nearest distance so far, plus the residual of the query
  const float* root;   // |q~|
  const float* norm;   // |q~|^2
};
constexpr float kRounding = 0x1p-18f;  // error of the float32 comparison, relative to (|q| + |b|)^2
constexpr float kTiny = 1e-34f;        // error of the float32 comparison through underflow

// Functions that are compiled for every instruction set. Codes and bounds may differ between sets; exact distances are
// bit-identical.
struct Kernels {
  const char* name;
  int levels;  // codes lie in [-levels, levels]
  int offset;  // bank codes are stored with this added, query codes as they are
  int tile_rows;
  // Quantise one row; codes after the last channel are zero.
  Quantised (*quantise)(const char* row, Type type, const double* centre, const float* centre_float,
                        std::int64_t channels, double unit, std::int8_t* codes, std::int64_t coded);
  // Multiply `tile_rows` queries ([depth][tile_rows] words) with a panel ([depth][kColumns] words) and add `start`.
  // `lanes`, if not null, allows sums of 16 bits: [chunks][tile_rows], for every chunk of kChunk words and each of its
  // two lanes -offset times the sum of the query's codes, modulo 2^16. No sum of a lane may exceed 16 bits then.
  void (*tile)(const std::int32_t* queries, const std::int32_t* start, const std::int32_t* lanes,
               const std::uint8_t* panel, std::int64_t depth, std::int32_t* products);
  // Largest squared norm of a lane of the codes of any column of a panel, at most 65,535. A lane is the first or the
  // second two channels of every word of a chunk. Null if `tile` does not use lanes.
  std::int32_t (*peak)(const std::uint8_t* panel, std::int64_t depth);
  // Find, for each of the `tile_rows` queries, the columns j that may be near enough, as bits:
  // norm_j - scale * scale_j * products_j - (reach + residual_j)^2 <= rounding * (root + longest)^2 - norm.
  void (*sift)(const std::int32_t* products, const float* columns, float longest, const Reaches& queries,
               std::uint32_t* passed);
  // Sum of squared differences in double, in a fixed order of additions.
  double (*squared_distance)(const double* query, const char* row, Type type, std::int64_t channels);
  // Convert a row to double.
  void (*widen)(const char* row, Type type, std::int64_t channels, double* out);
  // Hash of a row's bytes. Sets `finite` to false if a number is NaN or infinite.
  std::uint64_t (*hash)(const char* row, Type type, std::int64_t channels, bool* finite);
};

extern const Kernels kPortable;
#ifdef WSCXR_X86
extern const Kernels kAvx2;
extern const Kernels kAvx512Vnni;
#endif

// The fastest kernels for this CPU, or those that `use_kernels` or the environment variable MONAI_WSCXR_CPU names.
// Throws std::runtime_error if the variable holds an unknown name.
const Kernels& kernels();
const Kernels* named_kernels();                     // null if neither has named any
std::vector<const Kernels*> kernels_of_this_cpu();  // fastest first
bool use_kernels(const char* name);                 // false if this CPU has none of that name

// A packed bank. `columns` holds four groups of kColumns numbers per panel: |b~|^2, 2 * scale, residual, |b~|.
struct Packed {
  const std::uint8_t* codes = nullptr;  // [panels][depth][kColumns] words
  const float* columns = nullptr;       // [panels][4][kColumns]
  const double* centre = nullptr;       // [channels], float32 values unless the bank is float64
  const std::int64_t* row = nullptr;    // [panels * kColumns] bank row of every column, -1 for none
  std::int64_t panels = 0;
  std::int64_t depth = 0;  // words of four channels
  int exponent = 0;
};

inline std::int64_t coded_channels(std::int64_t channels) {
  return channels < kCodedChannels ? channels : kCodedChannels;
}
inline std::int64_t depth_of(std::int64_t channels) { return (coded_channels(channels) + 3) / 4; }
inline std::int64_t panels_of(std::int64_t rows) { return (rows + kColumns - 1) / kColumns; }

// Number of rows that hold NaN or Inf.
std::int64_t count_not_finite(const Kernels& kernels, const Rows& rows);

inline std::vector<float> as_float(const double* numbers, std::int64_t count) {
  return std::vector<float>(numbers, numbers + count);
}

struct PackedOut {
  std::uint8_t* codes = nullptr;
  float* columns = nullptr;
  double* centre = nullptr;
  std::int64_t* row = nullptr;
  int exponent = 0;             // set by pack
  std::int64_t unique = 0;      // set by pack: columns in use, without duplicates
  std::int64_t not_finite = 0;  // set by pack; if not 0, nothing else is set
};
void pack(const Kernels& kernels, const Rows& bank, PackedOut& out);

// Bank row that may be nearest.
struct Candidate {
  double lower;  // lower bound of its distance, scaled units
  std::int64_t row;
};
// Minimum so far of one query.
struct Nearest {
  double upper;                 // upper bound of the nearest distance, scaled units
  double squared;               // smallest exact squared distance so far
  std::int64_t index;           // row that attains it, -1 for none
  std::vector<Candidate> pile;  // rows that may be nearer
};

class Search {
 public:
  // `first_row` is the index of the bank's first row if the bank is a block of a larger one.
  Search(const Kernels& kernels, const Packed& packed, const Rows& bank, const Rows& query, std::int64_t first_row = 0);

  // Start from the minima over other blocks; index 2^63 - 1 for none.
  void resume(const double* squared, const std::int64_t* index);
  // Compare the queries with the panels at positions [first, last) of the visiting order.
  void scan(const std::vector<std::int64_t>& queries, std::int64_t first, std::int64_t last);
  // Evaluate the best candidate of every query, which lowers the upper bounds.
  void tighten(const std::vector<std::int64_t>& queries);
  // Evaluate all remaining candidates. `squared` and `index` are final afterwards if all panels were scanned.
  void finish(const std::vector<std::int64_t>& queries);

  const Nearest& operator[](std::int64_t query) const { return nearest_[static_cast<std::size_t>(query)]; }
  // Upper bound of the nearest distance in the units of the data.
  double upper(std::int64_t query) const;
  // Number of pairs evaluated exactly.
  std::int64_t evaluated() const { return evaluated_.load(); }

 private:
  struct Query {
    double scale, norm, residual, root;
    std::int32_t sum;
    bool coded;
  };
  double fill_lanes(const std::int64_t* queries, std::int64_t count, std::vector<std::int32_t>& lanes) const;
  void scan_block(const std::int64_t* queries, std::int64_t count, std::int64_t first, std::int64_t last,
                  Nearest* states) const;
  void add_candidates(std::int64_t query, Nearest& state, const std::int32_t* products, std::int64_t panel,
                      std::uint32_t passed) const;
  // Drop excluded candidates; if more than `keep` remain, evaluate them.
  void prune(std::int64_t query, Nearest& state, std::size_t keep) const;
  void evaluate(std::int64_t query, Nearest& state, const Candidate* begin, const Candidate* end) const;
  void evaluate_best(std::int64_t query, Nearest& state) const;
  void evaluate_all(std::int64_t query, Nearest& state) const;
  double to_scaled(double squared) const;

  const Kernels& kernels_;
  Packed packed_;
  Rows bank_, query_;
  Array<std::int8_t> codes_;  // [queries][depth * 4]
  std::vector<Query> stats_;
  std::vector<Nearest> nearest_;
  std::vector<std::int64_t> order_;
  std::int64_t first_row_ = 0;
  double floor_ = 0;  // smallest upper bound in use, scaled units: smaller ones have squares that underflow
  mutable std::atomic<std::int64_t> evaluated_{0};
};

// Totals since the process started, for benchmarks: queries searched and pairs evaluated exactly.
void count_search(std::int64_t queries, std::int64_t evaluated);
struct SearchCounts {
  std::int64_t queries, evaluated;
};
SearchCounts search_counts();

}  // namespace wscxr::search
