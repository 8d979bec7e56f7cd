#include "search.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "filter_math.h"

namespace wscxr {

namespace {

constexpr std::int64_t kQueryBlock = 1 << 16;
constexpr std::int64_t kLeastBlockBytes = 64LL << 20;
constexpr std::int64_t kMostBlockBytes = 3LL << 30;
constexpr std::int64_t kWholeFrom =
    1000000;  // bank rows from which int8 pays: its refinement vanishes beside the products
constexpr std::int64_t kWholeChannels = 133000;                        // 127 x 127 x channels stays below 2^31
constexpr double kLeastMagnitude = 1e-120, kLargestMagnitude = 1e120;  // squares stay clear of the ends of float64
constexpr std::int64_t kSums = 1 << 23;                                // numbers held while the centre is summed
constexpr std::int64_t kFirstShare = 16;  // mining looks at this share of the bank before it picks its leaders

bool is_whole(Kernel kernel) { return kernel == Kernel::kWhole || kernel == Kernel::kHopperWhole; }

double double_of(unsigned long long bits) {
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

const unsigned char* row_address(const Rows& rows, std::int64_t row) {
  return static_cast<const unsigned char*>(rows.data) + row * rows.channels * size_of(rows.type);
}

Rows part_of(const Rows& rows, std::int64_t begin, std::int64_t end) {
  return {row_address(rows, begin), end - begin, rows.channels, rows.type};
}

// Bytes of the arrays of one block of queries and of one block of bank rows; every array starts at a multiple of 256.
struct Layout {
  std::int64_t total = 0;
  std::int64_t take(std::int64_t bytes) {
    const std::int64_t at = total;
    total += (bytes + 255) / 256 * 256;
    return at;
  }
};

struct Offsets {
  std::int64_t query_codes, query_norm, query_residual, query_squared, query_scale;
  std::int64_t bank_codes, bank_norm, bank_residual, bank_squared, bank_scale, group_norm, group_residual;
  std::int64_t minima, total;
};

Offsets offsets_of(std::int64_t queries, std::int64_t bank_rows, std::int64_t channels, bool whole) {
  const std::int64_t row_bytes = encoded_row_bytes(channels, whole), groups = tiles_of(bank_rows, kGroup);
  const std::int64_t padded = tiles_of(bank_rows, kTileColumns) * kTileColumns;
  Layout layout;
  Offsets o{};
  o.query_codes = layout.take(queries * row_bytes);
  o.query_norm = layout.take(queries * 4);
  o.query_residual = layout.take(queries * 4);
  o.query_squared = layout.take(queries * 8);
  o.query_scale = layout.take(whole ? queries * 4 : 0);
  o.bank_codes = layout.take(bank_rows * row_bytes);
  o.bank_norm = layout.take(bank_rows * 4);
  o.bank_residual = layout.take(bank_rows * 4);
  o.bank_squared = layout.take(padded * 4);
  o.bank_scale = layout.take(whole ? padded * 4 : 0);
  o.group_norm = layout.take(groups * 4);
  o.group_residual = layout.take(groups * 4);
  o.minima = layout.take(queries * groups * static_cast<std::int64_t>(sizeof(Minima)));
  o.total = layout.total;
  return o;
}

std::string bad_rows(const char* name, unsigned long long bad, std::int64_t count) {
  return std::string(name) + " holds NaN or Inf in " + std::to_string(bad) + " of " + std::to_string(count) +
         " rows; distances to them mean nothing. Look for damaged images or a broken weights file";
}

std::int64_t* as_index(const Steps::Memory& memory) { return static_cast<std::int64_t*>(memory.get()); }

}  // namespace

Kernel kernel_of(const std::string& name) {
  if (name.empty() || name == "auto") return Kernel::kAutomatic;
  if (name == "portable") return Kernel::kHalf;
  if (name == "int8") return Kernel::kWhole;
  if (name == "hopper") return Kernel::kHopperHalf;
  if (name == "hopper-int8") return Kernel::kHopperWhole;
  if (name == "brute") return Kernel::kBrute;
  throw std::runtime_error("WSCXR_CUDA_KERNEL must be auto, portable, int8, hopper, hopper-int8 or brute, got '" +
                           name + "'");
}

SearchPlan plan_search(std::int64_t queries, std::int64_t bank_rows, std::int64_t channels, bool whole,
                       std::int64_t block_bytes) {
  const auto bytes = [&](std::int64_t q, std::int64_t b) { return offsets_of(q, b, channels, whole).total; };
  SearchPlan plan;
  plan.query_block = std::max<std::int64_t>(1, std::min(queries, kQueryBlock));
  // queries and their share of the minima of the smallest bank block take at most half of the memory
  while (plan.query_block > kTileRows && bytes(plan.query_block, kTileColumns) > block_bytes / 2) plan.query_block /= 2;
  const std::int64_t most = tiles_of(std::max<std::int64_t>(1, bank_rows), kTileColumns);
  std::int64_t low = 1, high = most;  // in tiles; the largest that fits
  while (low < high) {
    const std::int64_t middle = (low + high + 1) / 2;
    if (bytes(plan.query_block, middle * kTileColumns) <= block_bytes) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  plan.bank_block = low * kTileColumns;
  plan.bytes = bytes(plan.query_block, plan.bank_block);
  return plan;
}

struct Search::Workspace {
  SearchPlan plan;
  Offsets at;
  Steps::Memory memory;
  template <typename T>
  T* get(std::int64_t offset) const {
    return reinterpret_cast<T*>(static_cast<unsigned char*>(memory.get()) + offset);
  }
};

Search::Search(Steps& steps, const Rows& query, const Rows& bank, const SearchOptions& options)
    : steps_(steps), query_(query), bank_(bank), options_(options) {
  const std::int64_t channels = bank.channels;
  const std::int64_t most_parts = std::max<std::int64_t>(1, std::min<std::int64_t>(1024, kSums / channels));
  const auto slab_of = [&](std::int64_t count) { return std::max<std::int64_t>(64, tiles_of(count, most_parts)); };
  const std::int64_t slab = slab_of(bank.count), parts = tiles_of(bank.count, slab);
  const Steps::Memory summary_memory = steps.allocate(sizeof(Summary));
  const Steps::Memory sums = steps.allocate(parts * channels * 8);
  centre_ = steps.allocate(channels * 8);
  Summary* const on_device = static_cast<Summary*>(summary_memory.get());
  steps.zero(on_device, sizeof(Summary));
  steps.survey(query, slab_of(query.count), nullptr, &on_device->query_largest, &on_device->query_bad);
  steps.survey(bank, slab, static_cast<double*>(sums.get()), &on_device->bank_largest, &on_device->bank_bad);
  steps.centre(static_cast<const double*>(sums.get()), parts, bank.count, channels, static_cast<double*>(centre_.get()),
               &on_device->centre_largest, &on_device->centre_bad);
  Summary summary;
  steps.fetch(&summary, on_device, sizeof(Summary));
  if (summary.query_bad != 0 || summary.bank_bad != 0) {
    steps.count_bad_rows(query, &on_device->query_bad_rows);
    steps.count_bad_rows(bank, &on_device->bank_bad_rows);
    steps.fetch(&summary, on_device, sizeof(Summary));
    if (summary.query_bad != 0) throw std::runtime_error(bad_rows("query", summary.query_bad_rows, query.count));
    throw std::runtime_error(bad_rows("bank", summary.bank_bad_rows, bank.count));
  }
  const double largest =
      std::max(double_of(summary.query_largest), double_of(summary.bank_largest)) + double_of(summary.centre_largest);
  if (summary.centre_bad != 0 || !(largest > kLeastMagnitude && largest < kLargestMagnitude)) return;  // brute
  kernel_ = options.kernel;
  if (kernel_ == Kernel::kAutomatic) kernel_ = bank.count >= kWholeFrom ? Kernel::kWhole : Kernel::kHalf;
  if (channels > kWholeChannels && kernel_ == Kernel::kWhole) kernel_ = Kernel::kHalf;
  if (channels > kWholeChannels && kernel_ == Kernel::kHopperWhole) kernel_ = Kernel::kHopperHalf;
  const int exponent = kTopExponent - 1 - std::ilogb(largest);  // every centred coordinate ends below 2^15
  factor_ = std::ldexp(1.0, exponent);
  scale_squared_ = std::ldexp(1.0, 2 * exponent);
}

Search::Workspace Search::workspace(std::int64_t queries, std::int64_t bank_rows) {
  std::int64_t budget = options_.block_bytes;
  if (budget <= 0) budget = std::clamp(steps_.free_bytes() / 4, kLeastBlockBytes, kMostBlockBytes);
  const bool whole = is_whole(kernel_);
  SearchPlan plan = plan_search(queries, bank_rows, bank_.channels, whole, budget);
  if (options_.query_block > 0) plan.query_block = std::min(options_.query_block, std::max<std::int64_t>(1, queries));
  if (options_.bank_block > 0) plan.bank_block = options_.bank_block;
  for (;;) {
    const Offsets at = offsets_of(plan.query_block, plan.bank_block, bank_.channels, whole);
    plan.bytes = at.total;
    try {
      return {plan, at, steps_.allocate(at.total)};
    } catch (const OutOfMemory&) {
      if (plan.bank_block > kTileColumns) {
        plan.bank_block = tiles_of(plan.bank_block / 2, kTileColumns) * kTileColumns;
      } else if (plan.query_block > kTileRows) {
        plan.query_block /= 2;
      } else {
        throw;
      }
      if (!said_) {
        steps_.say("not enough device memory for " + std::to_string(at.total >> 20) +
                   " MiB of working space; the search goes on with smaller blocks (same result, a little slower)");
        said_ = true;
      }
    }
  }
}

void Search::improve(const std::int64_t* list, std::int64_t count, std::int64_t begin, std::int64_t end,
                     std::int64_t first_bank_row, double* best_squared, std::int64_t* best_index) {
  if (count == 0 || begin >= end) return;
  ResolveProblem resolve;
  resolve.query = query_;
  resolve.aligned =
      reinterpret_cast<std::uintptr_t>(bank_.data) % 16 == 0 && bank_.channels * size_of(bank_.type) % 16 == 0;
  resolve.best_squared = best_squared;
  resolve.best_index = best_index;
  resolve.counters = options_.counters;
  if (kernel_ == Kernel::kBrute) {
    resolve.bank = part_of(bank_, begin, end);
    resolve.first_bank_row = first_bank_row + begin;
    resolve.rows = list;
    resolve.count = count;
    steps_.brute(resolve);
    return;
  }
  const Workspace work = workspace(count, end - begin);
  const bool whole = is_whole(kernel_);
  const double* const centre = static_cast<const double*>(centre_.get());
  Encoded query, bank;
  query.row_bytes = bank.row_bytes = encoded_row_bytes(bank_.channels, whole);
  query.codes = work.get<unsigned char>(work.at.query_codes);
  query.norm = work.get<float>(work.at.query_norm);
  query.residual = work.get<float>(work.at.query_residual);
  query.squared_double = work.get<double>(work.at.query_squared);
  query.scale = whole ? work.get<float>(work.at.query_scale) : nullptr;
  bank.codes = work.get<unsigned char>(work.at.bank_codes);
  bank.norm = work.get<float>(work.at.bank_norm);
  bank.residual = work.get<float>(work.at.bank_residual);
  bank.squared = work.get<float>(work.at.bank_squared);
  bank.scale = whole ? work.get<float>(work.at.bank_scale) : nullptr;
  float* const group_norm = work.get<float>(work.at.group_norm);
  float* const group_residual = work.get<float>(work.at.group_residual);

  TileProblem tile;
  tile.query = query.codes;
  tile.bank = bank.codes;
  tile.row_bytes = query.row_bytes;
  tile.query_scale = query.scale;
  tile.bank_scale = bank.scale;
  tile.bank_squared = bank.squared;
  tile.minima = work.get<Minima>(work.at.minima);
  resolve.minima = tile.minima;
  resolve.group_norm = group_norm;
  resolve.group_residual = group_residual;
  resolve.query_norm = query.norm;
  resolve.query_residual = query.residual;
  resolve.query_squared = query.squared_double;
  resolve.gamma = whole ? 0 : accumulation_error(bank_.channels);
  resolve.scale_squared = scale_squared_;

  std::int64_t encoded = -1;  // first row of the bank block that is encoded
  for (std::int64_t q = 0; q < count; q += work.plan.query_block) {
    const std::int64_t queries = std::min(work.plan.query_block, count - q);
    Rows rows = list != nullptr ? query_ : part_of(query_, q, q + queries);
    rows.count = queries;
    steps_.encode(rows, list != nullptr ? list + q : nullptr, queries, centre, factor_, whole, query);
    for (std::int64_t b = begin; b < end; b += work.plan.bank_block) {
      const std::int64_t bank_rows = std::min(work.plan.bank_block, end - b), groups = tiles_of(bank_rows, kGroup);
      const Rows block = part_of(bank_, b, b + bank_rows);
      if (encoded != b) {
        steps_.encode(block, nullptr, tiles_of(bank_rows, kTileColumns) * kTileColumns, centre, factor_, whole, bank);
        steps_.group_maxima(bank.norm, bank.residual, bank_rows, groups, group_norm, group_residual);
        encoded = b;
      }
      tile.queries = queries;
      tile.bank_rows = bank_rows;
      tile.groups = groups;
      steps_.tile_minimum(tile, kernel_);
      resolve.bank = block;
      resolve.first_bank_row = first_bank_row + b;
      resolve.rows = list != nullptr ? list + q : nullptr;
      resolve.first_query = q;
      resolve.count = queries;
      resolve.groups = groups;
      steps_.resolve(resolve);
    }
  }
}

void min_distance(Steps& steps, const Rows& query, const Rows& bank, const SearchOptions& options, float* distance,
                  std::int64_t* index) {
  Search search(steps, query, bank, options);
  if (query.count == 0) return;
  const Steps::Memory best = steps.allocate(query.count * 8);
  double* const best_squared = static_cast<double*>(best.get());
  steps.start(best_squared, index, query.count);
  search.improve(nullptr, query.count, 0, bank.count, 0, best_squared, index);
  steps.finish(best_squared, query.count, distance);
}

void min_distance_block(Steps& steps, const Rows& query, const Rows& bank_block, std::int64_t row_offset,
                        const SearchOptions& options, double* carry_squared, std::int64_t* carry_index) {
  Search search(steps, query, bank_block, options);
  search.improve(nullptr, query.count, 0, bank_block.count, row_offset, carry_squared, carry_index);
}

void mine_top_r(Steps& steps, const Rows& query, const Rows& bank, std::int64_t k, const SearchOptions& options,
                std::int64_t* index, float* distance) {
  Search search(steps, query, bank, options);
  const std::int64_t n = query.count;
  if (n == 0 || k == 0) return;
  const Steps::Memory best = steps.allocate(n * 8), nearest = steps.allocate(n * 8), order = steps.allocate(n * 8);
  const Steps::Memory running = steps.allocate(n * 4);
  double* const best_squared = static_cast<double*>(best.get());
  float* const distances = static_cast<float*>(running.get());
  steps.start(best_squared, as_index(nearest), n);
  const auto improve = [&](const std::int64_t* list, std::int64_t count, std::int64_t begin, std::int64_t end) {
    search.improve(list, count, begin, end, 0, best_squared, as_index(nearest));
  };
  const auto sort = [&] {
    steps.finish(best_squared, n, distances);
    steps.order_descending(distances, n, as_index(order));
  };

  std::int64_t seen = bank.count;
  if (k < n) seen = std::min(bank.count, tiles_of(tiles_of(bank.count, kFirstShare), kTileColumns) * kTileColumns);
  improve(nullptr, n, 0, seen);
  if (seen < bank.count) {
    // Finish the k queries that lead so far. They certify the cut: whoever falls below all of them cannot be mined.
    sort();
    improve(as_index(order), k, seen, bank.count);
    const Steps::Memory small = steps.allocate(16), lists[2] = {steps.allocate(n * 8), steps.allocate(n * 8)};
    float* const cut = static_cast<float*>(small.get());
    std::int64_t* const kept_count = as_index(small) + 1;
    steps.cut(as_index(order), k, best_squared, cut);
    const std::int64_t* list = as_index(order) + k;
    std::int64_t left = n - k;
    for (int turn = 0; seen < bank.count; turn = 1 - turn) {
      steps.keep(list, left, best_squared, cut, as_index(lists[turn]), kept_count);
      steps.fetch(&left, kept_count, sizeof(left));
      if (left == 0) break;
      list = as_index(lists[turn]);
      const std::int64_t next = std::min(bank.count, 2 * seen);
      improve(list, left, seen, next);
      seen = next;
    }
  }
  sort();  // dropped queries stand below the cut, where at least k others are not
  steps.gather(distances, as_index(order), k, index, distance);
}

}  // namespace wscxr
