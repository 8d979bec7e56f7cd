#include "search.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace wscxr {

namespace {

constexpr std::int64_t kQueryBlock = 1 << 16;
constexpr std::int64_t kLeastBlockBytes = 64LL << 20;
constexpr std::int64_t kMostBlockBytes = 3LL << 30;
// From this size of the bank, faster products outweigh the additional exact distances that int8 needs.
constexpr std::int64_t kInt8Rows = 1000000;
constexpr std::int64_t kInt8Channels = 133000;                         // 127 x 127 x channels stays below 2^31
constexpr double kLeastMagnitude = 1e-120, kLargestMagnitude = 1e120;  // squares neither underflow nor overflow
constexpr std::int64_t kSums = 1 << 23;                                // most partial sums of the centre
constexpr std::int64_t kFirstShare = 16;  // mining scans 1 / kFirstShare of the bank before it selects candidates

bool is_int8(Kernel kernel) { return kernel == Kernel::kInt8 || kernel == Kernel::kHopperInt8; }

double double_of(unsigned long long bits) {
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Places arrays in one allocation, each at a multiple of 256 bytes.
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

Offsets offsets_of(std::int64_t queries, std::int64_t bank_rows, std::int64_t channels, bool int8) {
  const std::int64_t row_bytes = encoded_row_bytes(channels, int8), groups = tiles_of(bank_rows, kGroup);
  const std::int64_t padded = tiles_of(bank_rows, kTileColumns) * kTileColumns;
  Layout layout;
  Offsets o{};
  o.query_codes = layout.take(queries * row_bytes);
  o.query_norm = layout.take(queries * 4);
  o.query_residual = layout.take(queries * 4);
  o.query_squared = layout.take(queries * 8);
  o.query_scale = layout.take(int8 ? queries * 4 : 0);
  o.bank_codes = layout.take(bank_rows * row_bytes);
  o.bank_norm = layout.take(bank_rows * 4);
  o.bank_residual = layout.take(bank_rows * 4);
  o.bank_squared = layout.take(padded * 4);
  o.bank_scale = layout.take(int8 ? padded * 4 : 0);
  o.group_norm = layout.take(groups * 4);
  o.group_residual = layout.take(groups * 4);
  o.minima = layout.take(queries * groups * static_cast<std::int64_t>(sizeof(Minima)));
  o.total = layout.total;
  return o;
}

std::int64_t* as_index(const Steps::Memory& memory) { return static_cast<std::int64_t*>(memory.get()); }

}  // namespace

Kernel kernel_of(const std::string& name) {
  if (name.empty() || name == "auto") return Kernel::kAutomatic;
  if (name == "portable") return Kernel::kHalf;
  if (name == "int8") return Kernel::kInt8;
  if (name == "hopper") return Kernel::kHopperHalf;
  if (name == "hopper-int8") return Kernel::kHopperInt8;
  if (name == "brute") return Kernel::kBrute;
  throw std::runtime_error("MONAI_WSCXR_CUDA_KERNEL must be auto, portable, int8, hopper, hopper-int8 or brute, got '" +
                           name + "'");
}

SearchPlan plan_search(std::int64_t queries, std::int64_t bank_rows, std::int64_t channels, bool int8,
                       std::int64_t block_bytes) {
  const auto bytes = [&](std::int64_t q, std::int64_t b) { return offsets_of(q, b, channels, int8).total; };
  SearchPlan plan;
  plan.query_block = std::max<std::int64_t>(1, std::min(queries, kQueryBlock));
  // Queries, and the minima for the smallest bank block, use at most half of the memory.
  while (plan.query_block > kTileRows && bytes(plan.query_block, kTileColumns) > block_bytes / 2) plan.query_block /= 2;
  const std::int64_t most = tiles_of(std::max<std::int64_t>(1, bank_rows), kTileColumns);
  std::int64_t low = 1, high = most;  // binary search for the largest number of tiles that fits
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
    if (summary.query_bad != 0)
      throw std::runtime_error(not_finite_message("query", summary.query_bad_rows, query.count));
    throw std::runtime_error(not_finite_message("bank", summary.bank_bad_rows, bank.count));
  }
  const double largest =
      std::max(double_of(summary.query_largest), double_of(summary.bank_largest)) + double_of(summary.centre_largest);
  if (summary.centre_bad != 0 || !(largest > kLeastMagnitude && largest < kLargestMagnitude)) return;  // brute force
  kernel_ = options.kernel;
  if (kernel_ == Kernel::kAutomatic) kernel_ = bank.count >= kInt8Rows ? Kernel::kInt8 : Kernel::kHalf;
  if (channels > kInt8Channels && kernel_ == Kernel::kInt8) kernel_ = Kernel::kHalf;
  if (channels > kInt8Channels && kernel_ == Kernel::kHopperInt8) kernel_ = Kernel::kHopperHalf;
  const int exponent = kTopExponent - 1 - std::ilogb(largest);  // scaled coordinates stay below 2^kTopExponent
  factor_ = std::ldexp(1.0, exponent);
  scale_squared_ = std::ldexp(1.0, 2 * exponent);
}

Search::Workspace Search::workspace(std::int64_t queries, std::int64_t bank_rows) {
  std::int64_t budget = options_.block_bytes;
  if (budget <= 0) budget = std::clamp(steps_.free_bytes() / 4, kLeastBlockBytes, kMostBlockBytes);
  const bool int8 = is_int8(kernel_);
  SearchPlan plan = plan_search(queries, bank_rows, bank_.channels, int8, budget);
  if (options_.query_block > 0) plan.query_block = std::min(options_.query_block, std::max<std::int64_t>(1, queries));
  if (options_.bank_block > 0) plan.bank_block = options_.bank_block;
  for (;;) {
    const Offsets at = offsets_of(plan.query_block, plan.bank_block, bank_.channels, int8);
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
      if (!warned_) {
        steps_.warn("not enough device memory for " + std::to_string(at.total >> 20) +
                    " MiB of working memory; the search continues with smaller blocks (same result, slightly slower)");
        warned_ = true;
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
      reinterpret_cast<std::uintptr_t>(bank_.data) % 16 == 0 && bank_.channels * bytes_of(bank_.type) % 16 == 0;
  resolve.best_squared = best_squared;
  resolve.best_index = best_index;
  resolve.counters = options_.counters;
  if (kernel_ == Kernel::kBrute) {
    resolve.bank = bank_.slice(begin, end);
    resolve.first_bank_row = first_bank_row + begin;
    resolve.rows = list;
    resolve.count = count;
    steps_.brute(resolve);
    return;
  }
  const Workspace work = workspace(count, end - begin);
  const bool int8 = is_int8(kernel_);
  const double* const centre = static_cast<const double*>(centre_.get());
  Encoded query, bank;
  query.row_bytes = bank.row_bytes = encoded_row_bytes(bank_.channels, int8);
  query.codes = work.get<unsigned char>(work.at.query_codes);
  query.norm = work.get<float>(work.at.query_norm);
  query.residual = work.get<float>(work.at.query_residual);
  query.squared_double = work.get<double>(work.at.query_squared);
  query.scale = int8 ? work.get<float>(work.at.query_scale) : nullptr;
  bank.codes = work.get<unsigned char>(work.at.bank_codes);
  bank.norm = work.get<float>(work.at.bank_norm);
  bank.residual = work.get<float>(work.at.bank_residual);
  bank.squared = work.get<float>(work.at.bank_squared);
  bank.scale = int8 ? work.get<float>(work.at.bank_scale) : nullptr;
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
  resolve.gamma = int8 ? 0 : accumulation_error(bank_.channels);
  resolve.scale_squared = scale_squared_;

  std::int64_t encoded = -1;  // first row of the bank block that is encoded at present
  for (std::int64_t q = 0; q < count; q += work.plan.query_block) {
    const std::int64_t queries = std::min(work.plan.query_block, count - q);
    Rows rows = list != nullptr ? query_ : query_.slice(q, q + queries);
    rows.count = queries;
    steps_.encode(rows, list != nullptr ? list + q : nullptr, queries, centre, factor_, int8, query);
    for (std::int64_t b = begin; b < end; b += work.plan.bank_block) {
      const std::int64_t bank_rows = std::min(work.plan.bank_block, end - b), groups = tiles_of(bank_rows, kGroup);
      const Rows block = bank_.slice(b, b + bank_rows);
      if (encoded != b) {
        steps_.encode(block, nullptr, tiles_of(bank_rows, kTileColumns) * kTileColumns, centre, factor_, int8, bank);
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

void min_distance_block(Steps& steps, const Rows& query, const Rows& bank_block, std::int64_t first_row,
                        const SearchOptions& options, double* best_squared, std::int64_t* best_index) {
  Search search(steps, query, bank_block, options);
  search.improve(nullptr, query.count, 0, bank_block.count, first_row, best_squared, best_index);
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
    // Finish the k queries that are farthest so far. No query below their smallest distance, the cut, can be mined.
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
  sort();  // dropped queries are below the cut, and at least k others are not
  steps.gather(distances, as_index(order), k, index, distance);
}

}  // namespace wscxr
