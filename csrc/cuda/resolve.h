// From the minima of the filter to the exact nearest row of every query.
#pragma once

#include <cstdint>

#include "exact_distance.h"
#include "filter_math.h"

namespace wscxr {

constexpr int kResolveThreads = 128;
constexpr std::int64_t kStagedChannels = 4096;  // wider queries do not fit into shared memory
inline std::int64_t resolve_shared_bytes(std::int64_t channels) {
  constexpr std::int64_t kWarps = kResolveThreads / kWarp;
  return 8 * (channels <= kStagedChannels ? channels : 0) + kWarps * 16;
}

// Coordinates of one query as double, from shared memory if they fit.
struct QueryRow {
  const double* staged;
  Rows rows;
  std::int64_t row;
  WSCXR_DEVICE double operator()(std::int64_t channel) const {
    return staged != nullptr ? staged[channel] : load_double(rows, row, channel);
  }
};

// Running minimum; ties go to the lower row.
struct Best {
  double squared = INFINITY;
  std::int64_t index = kNoIndex;
  WSCXR_DEVICE void put(double other, std::int64_t at) {
    if (other < squared || (other == squared && at < index)) {
      squared = other;
      index = at;
    }
  }
};

WSCXR_DEVICE QueryRow stage_query(const ResolveProblem& p, std::int64_t row) {
  double* staged = nullptr;
  if (p.query.channels <= kStagedChannels) {
    staged = reinterpret_cast<double*>(dev::shared() + kResolveThreads / kWarp * 16);
    for (std::int64_t c = dev::thread(); c < p.query.channels; c += kResolveThreads) {
      staged[c] = load_double(p.query, row, c);
    }
  }
  dev::sync_block();
  return {staged, p.query, row};
}

// Store the minimum over the warps of the block and the minimum from earlier bank blocks.
WSCXR_DEVICE void store_best(const ResolveProblem& p, std::int64_t row, Best best) {
  constexpr int kWarps = kResolveThreads / kWarp;
  double* const squared = reinterpret_cast<double*>(dev::shared());
  std::int64_t* const index = reinterpret_cast<std::int64_t*>(squared + kWarps);
  dev::sync_block();
  if (dev::thread() % kWarp == 0) {
    squared[dev::thread() / kWarp] = best.squared;
    index[dev::thread() / kWarp] = best.index;
  }
  dev::sync_block();
  if (dev::thread() == 0) {
    Best all{p.best_squared[row], p.best_index[row]};
    for (int warp = 0; warp < kWarps; ++warp) all.put(squared[warp], index[warp]);
    p.best_squared[row] = all.squared;
    p.best_index[row] = all.index;
  }
}

// Evaluate every bank row that can be nearest. A group can hold the nearest row only if the lower bound from its first
// minimum does not exceed `limit`, an upper bound of the nearest distance. If the lower bound from its second minimum
// does not exceed it either, further rows may qualify and all rows of the group are evaluated. The order of evaluation
// does not affect the result. One block of threads per query.
template <typename T>
WSCXR_KERNEL(kResolveThreads)
resolve_kernel(ResolveProblem p) {
  constexpr int kWarps = kResolveThreads / kWarp;
  const std::int64_t place = dev::block();
  const std::int64_t row = p.rows != nullptr ? p.rows[place] : p.first_query + place;
  const int warp = dev::thread() / kWarp, lane = dev::thread() % kWarp;
  const QueryRow query = stage_query(p, row);
  const Minima* const minima = p.minima + place * p.groups;
  const double norm = p.query_norm[place], residual = p.query_residual[place], squared = p.query_squared[place];
  const auto bound = [&](std::int64_t group) {
    return error_bound(norm, residual, p.group_norm[group], p.group_residual[group], p.gamma, p.query.channels);
  };

  // Find the least upper bound of the nearest distance and the group that gives it.
  double upper = INFINITY;
  std::int64_t at = 0;
  for (std::int64_t group = dev::thread(); group < p.groups; group += kResolveThreads) {
    const double value = packed_largest(minima[group].first) + squared + bound(group);
    if (value < upper) {
      upper = value;
      at = group;
    }
  }
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const double other = dev::shuffle_xor(upper, mask);
    const std::int64_t other_at = dev::shuffle_xor(at, mask);
    if (other < upper || (other == upper && other_at < at)) {
      upper = other;
      at = other_at;
    }
  }
  double* const warp_upper = reinterpret_cast<double*>(dev::shared());
  std::int64_t* const warp_at = reinterpret_cast<std::int64_t*>(warp_upper + kWarps);
  if (lane == 0) {
    warp_upper[warp] = upper;
    warp_at[warp] = at;
  }
  dev::sync_block();
  for (int other = 0; other < kWarps; ++other) {
    if (warp_upper[other] < upper || (warp_upper[other] == upper && warp_at[other] < at)) {
      upper = warp_upper[other];
      at = warp_at[other];
    }
  }
  double limit = fmin(upper, p.best_squared[row] * p.scale_squared);
  dev::sync_block();  // before warp_upper is overwritten

  Best best;
  unsigned long long candidates = 0, rescans = 0;
  const auto evaluate = [&](std::int64_t bank_row) {
    const T* const data = static_cast<const T*>(p.bank.data) + bank_row * p.bank.channels;
    const double exact = exact_squared(query, data, p.bank.channels, p.aligned);
    best.put(exact, p.first_bank_row + bank_row);
    limit = fmin(limit, exact * p.scale_squared);
    ++candidates;
  };
  // Warp 0 evaluates the most promising row first, and its exact distance becomes the limit of all warps. Conditions
  // read "not greater" instead of "at most" so that a NaN excludes nothing.
  const bool promising = !(packed_least(minima[at].first) + squared - bound(at) > limit);
  if (warp == 0) {
    if (promising) evaluate(at * kGroup + packed_column(minima[at].first));
    if (lane == 0) warp_upper[0] = limit;
  }
  dev::sync_block();
  limit = warp_upper[0];

  for (std::int64_t base = warp * kWarp; base < p.groups; base += kResolveThreads) {
    const std::int64_t mine = base + lane;
    bool some = false, several = false;
    int column = 0;
    if (mine < p.groups) {
      const Minima pair = minima[mine];
      const double shift = squared - bound(mine);
      some = !(packed_least(pair.first) + shift > limit);
      several = some && pair.second < kLargestValue && !(packed_least(pair.second) + shift > limit);
      column = packed_column(pair.first);
    }
    const std::uint32_t rescan = dev::ballot(several);
    for (std::uint32_t left = dev::ballot(some); left != 0; left &= left - 1) {
      const int from = dev::lowest_bit(left);
      const std::int64_t group = base + from;
      const int single = dev::shuffle(column, from);
      if (rescan >> from & 1) {
        ++rescans;
        for (std::int64_t r = group * kGroup; r < (group + 1) * kGroup && r < p.bank.count; ++r) evaluate(r);
      } else if (group != at) {
        evaluate(group * kGroup + single);
      }
    }
  }
  if (p.counters.candidates != nullptr && lane == 0) {
    dev::atomic_add(p.counters.candidates, candidates);
    dev::atomic_add(p.counters.rescans, rescans);
  }
  store_best(p, row, best);
}

// Evaluate every pair in float64, for magnitudes outside the range of the error bound. One block of threads per query.
template <typename T>
WSCXR_KERNEL(kResolveThreads)
brute_kernel(ResolveProblem p) {
  const std::int64_t place = dev::block();
  const std::int64_t row = p.rows != nullptr ? p.rows[place] : p.first_query + place;
  const QueryRow query = stage_query(p, row);
  Best best;
  for (std::int64_t r = dev::thread() / kWarp; r < p.bank.count; r += kResolveThreads / kWarp) {
    const T* const data = static_cast<const T*>(p.bank.data) + r * p.bank.channels;
    best.put(exact_squared(query, data, p.bank.channels, p.aligned), p.first_bank_row + r);
  }
  store_best(p, row, best);
}

constexpr int kListThreads = 256;

WSCXR_KERNEL(kListThreads)
start_kernel(double* best_squared, std::int64_t* best_index, std::int64_t count) {
  const std::int64_t at = dev::block() * kListThreads + dev::thread();
  if (at >= count) return;
  best_squared[at] = INFINITY;
  best_index[at] = kNoIndex;
}

// Distance in the result: root in float64, rounded once to float32.
WSCXR_DEVICE float reported(double squared) { return static_cast<float>(sqrt(squared)); }

WSCXR_KERNEL(kListThreads)
finish_kernel(const double* best_squared, std::int64_t count, float* distance) {
  const std::int64_t at = dev::block() * kListThreads + dev::thread();
  if (at < count) distance[at] = reported(best_squared[at]);
}

// Mining: copy the first `count` query rows of an order, and their distances.
WSCXR_KERNEL(kListThreads)
gather_kernel(const float* distance, const std::int64_t* list, std::int64_t count, std::int64_t* index,
              float* gathered) {
  const std::int64_t at = dev::block() * kListThreads + dev::thread();
  if (at >= count) return;
  index[at] = list[at];
  gathered[at] = distance[list[at]];
}

// Mining: smallest distance of the finished queries `leaders`. At least `count` queries reach it. One block.
WSCXR_KERNEL(kListThreads)
cut_kernel(const std::int64_t* leaders, std::int64_t count, const double* best_squared, float* cut) {
  float least = INFINITY;
  for (std::int64_t i = dev::thread(); i < count; i += kListThreads) {
    least = fminf(least, reported(best_squared[leaders[i]]));
  }
  for (int mask = kWarp / 2; mask > 0; mask /= 2) least = fminf(least, dev::shuffle_xor(least, mask));
  float* const shared = reinterpret_cast<float*>(dev::shared());
  if (dev::thread() % kWarp == 0) shared[dev::thread() / kWarp] = least;
  dev::sync_block();
  if (dev::thread() == 0) {
    for (int warp = 1; warp < kListThreads / kWarp; ++warp) least = fminf(least, shared[warp]);
    *cut = least;
  }
}

// Mining: keep the queries of a list whose distance so far is not below the cut, in their order. Distances only
// decrease, so the others cannot be mined. One block.
WSCXR_KERNEL(kListThreads)
keep_kernel(const std::int64_t* list, std::int64_t count, const double* best_squared, const float* cut,
            std::int64_t* kept, std::int64_t* kept_count) {
  constexpr int kWarps = kListThreads / kWarp;
  int* const shared = reinterpret_cast<int*>(dev::shared());
  const int warp = dev::thread() / kWarp, lane = dev::thread() % kWarp;
  const float least = *cut;
  std::int64_t written = 0;
  for (std::int64_t base = 0; base < count; base += kListThreads) {
    const std::int64_t at = base + dev::thread();
    const std::int64_t row = at < count ? list[at] : 0;
    const bool keep = at < count && !(reported(best_squared[row]) < least);
    const std::uint32_t votes = dev::ballot(keep);
    if (lane == 0) shared[warp] = dev::count_bits(votes);
    dev::sync_block();
    std::int64_t before = written;
    for (int other = 0; other < kWarps; ++other) {
      if (other < warp) before += shared[other];
      written += shared[other];
    }
    if (keep) kept[before + dev::count_bits(votes & ((1u << lane) - 1))] = row;
    dev::sync_block();  // before shared is overwritten
  }
  if (dev::thread() == 0) *kept_count = written;
}

}  // namespace wscxr
