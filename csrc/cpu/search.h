// Exact nearest-row search on the CPU: what its parts share. The algorithm is described at the top of search.cpp.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "common.h"
#include "pages.h"
#include "rows.h"

namespace wscxr::search {

// Columns of a panel: bank rows whose codes lie side by side, four channels of one row in one 32-bit word.
constexpr int kColumns = 32;
// Channels that are coded; further ones count as residual, so that sums of products fit 32 bits.
constexpr std::int64_t kCodedChannels = 65536;
constexpr int kLargestTile = 12;  // query rows of the largest tile

// What is known of one row after quantisation. In scaled units (multiplied by 2^-exponent) the centred row is
// scale * code + e with |e| <= residual.
struct Quantised {
  double scale = 0;
  double norm = 0;       // |scale * code|^2
  double residual = 0;   // infinite: the row is too large to be coded
  std::int32_t sum = 0;  // of the codes
};

// What the filter asks of the queries of one tile.
struct Reaches {
  const float* scale;
  const float* reach;  // least upper bound of the distance so far, plus the query's residual
  const float* root;   // |q~|
  const float* norm;   // |q~|^2
};
constexpr float kRounding = 0x1p-18f;  // of the float32 test, relative to (|q| + |b|)^2
constexpr float kTiny = 1e-34f;        // what underflows there

// Functions compiled once per instruction set. Codes and bounds may differ between sets, exact distances have the same
// bits.
struct Kernels {
  const char* name;
  int levels;  // codes lie in [-levels, levels]
  int offset;  // bank codes are stored with this added, query codes as they are
  int tile_rows;
  // Codes of one row, zero beyond its channels; `wide` holds `channels` numbers of room.
  Quantised (*quantise)(const char* row, Type type, const double* centre, const float* centre_float,
                        std::int64_t channels, double unit, std::int8_t* codes, std::int64_t coded);
  // Products of `tile_rows` queries ([depth][tile_rows] words) with a panel ([depth][kColumns] words) plus `start`.
  void (*tile)(const std::int32_t* queries, const std::int32_t* start, const std::uint8_t* panel, std::int64_t depth,
               std::int32_t* products);
  // For each of the `tile_rows` queries the columns j that may be near enough, as bits:
  // norm_j - scale * scale_j * products_j - (reach + residual_j)^2 <= rounding * (root + longest)^2 - norm.
  void (*sift)(const std::int32_t* products, const float* columns, float longest, const Reaches& queries,
               std::uint32_t* passed);
  // Sum of squared differences in double, in one fixed order of additions.
  double (*squared_distance)(const double* query, const char* row, Type type, std::int64_t channels);
  void (*widen)(const char* row, Type type, std::int64_t channels, double* out);
  // Hash of a row's bytes; `finite` becomes false when a number is NaN or infinite.
  std::uint64_t (*hash)(const char* row, Type type, std::int64_t channels, bool* finite);
};

extern const Kernels kPortable;
#ifdef WSCXR_X86
extern const Kernels kAvx2;
extern const Kernels kAvx512Vnni;
#endif

// The best of them for this CPU, or the one that `use_kernels` or the environment variable MONAI_WSCXR_CPU names;
// throws std::runtime_error where that variable names none.
const Kernels& kernels();
const Kernels* named_kernels();  // null if neither has named any
std::vector<const Kernels*> kernels_of_this_cpu();  // the best first
bool use_kernels(const char* name);                 // false when this CPU has none of that name

// A bank in panels. `columns` holds per panel four groups of kColumns numbers: |b~|^2, 2 * scale, residual, |b~|.
struct Packed {
  const std::uint8_t* codes = nullptr;  // [panels][depth][kColumns] words
  const float* columns = nullptr;       // [panels][4][kColumns]
  const double* centre = nullptr;       // [channels], each a float32 number unless the bank is float64
  const std::int64_t* row = nullptr;    // [panels * kColumns] bank row of a column, -1 for none
  std::int64_t panels = 0;
  std::int64_t depth = 0;  // words of four channels
  int exponent = 0;
};

inline std::int64_t coded_channels(std::int64_t channels) {
  return channels < kCodedChannels ? channels : kCodedChannels;
}
inline std::int64_t depth_of(std::int64_t channels) { return (coded_channels(channels) + 3) / 4; }
inline std::int64_t panels_of(std::int64_t rows) { return (rows + kColumns - 1) / kColumns; }

// Rows that are not finite; 0 when all are.
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
  std::int64_t unique = 0;      // set by pack: columns in use; of equal rows only the first is kept
  std::int64_t not_finite = 0;  // set by pack; when not 0, nothing else is
};
void pack(const Kernels& kernels, const Rows& bank, PackedOut& out);

// Running minimum of one query.
struct Candidate {
  double lower;  // bound of the distance in scaled units
  std::int64_t row;
};
struct Nearest {
  double upper;                 // certified bound of the least distance, scaled units
  double squared;               // least exact squared distance so far
  std::int64_t index;           // row that attains it, -1 for none
  std::vector<Candidate> pile;  // rows that may be nearer
};

class Search {
 public:
  // `first_row` is the number of the bank's first row, where the bank is a part of a larger one.
  Search(const Kernels& kernels, const Packed& packed, const Rows& bank, const Rows& query, std::int64_t first_row = 0);

  // Start from minima of other rows that are known already; index 2^63 - 1 where there is none.
  void carry(const double* squared, const std::int64_t* index);
  // Compare the queries with the panels at positions [first, last) of the visiting order.
  void scan(const std::vector<std::int64_t>& queries, std::int64_t first, std::int64_t last);
  // Bring the bounds of the queries down to exact distances of their best candidates.
  void tighten(const std::vector<std::int64_t>& queries);
  // Evaluate what is left; `squared` and `index` are final afterwards. Needs all panels scanned.
  void finish(const std::vector<std::int64_t>& queries);

  const Nearest& operator[](std::int64_t query) const { return nearest_[static_cast<std::size_t>(query)]; }
  // Bound of the least distance in the units of the data.
  double upper(std::int64_t query) const;
  // Pairs that were evaluated exactly.
  std::int64_t evaluated() const { return evaluated_.load(); }

 private:
  struct Query {
    double scale, norm, residual, root;
    std::int32_t sum;
    bool coded;
  };
  void scan_block(const std::int64_t* queries, std::int64_t count, std::int64_t first, std::int64_t last,
                  Nearest* states) const;
  void add_candidates(std::int64_t query, Nearest& state, const std::int32_t* products, std::int64_t panel,
                      std::uint32_t passed) const;
  void tidy(std::int64_t query, Nearest& state, std::size_t keep) const;
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
  double floor_ = 0;  // least upper bound that is used, scaled units: below it float64 squares underflow
  mutable std::atomic<std::int64_t> evaluated_{0};
};

// Totals since the process started, for benchmarks: queries searched and pairs evaluated exactly.
void count_search(std::int64_t queries, std::int64_t evaluated);
struct SearchCounts {
  std::int64_t queries, evaluated;
};
SearchCounts search_counts();

}  // namespace wscxr::search
