// Lazy k-centre greedy algorithm on the CPU; monai_wscxr/ops/coreset.py defines the result.
//
// The distance of a row to its nearest chosen row only decreases while rows are chosen, so an earlier value is an upper
// bound. Rows are kept in a heap ordered by that bound, and only those at the top are updated, against the rows chosen
// since their last update. For radiograph features this saves half of the pairs, and it replaces one pass over all rows
// per choice, which is limited by memory bandwidth, by few passes over blocks that fit into the cache. Distances are
// compared in float64. A float32 sum with a relative error bound skips pairs that cannot be the smallest, so the choice
// is that of a float64 search over all pairs.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "packed_bank.h"
#include "tensor_rows.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define WSCXR_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define WSCXR_CLONES
#endif

constexpr std::int64_t kLanes = 16;
constexpr std::int64_t kRows = 4;      // rows that are compared with a centre while it is in registers
constexpr std::int64_t kBatch = 32;    // rows updated together
constexpr std::int64_t kCentres = 64;  // centres that stay in the cache while rows are compared with them
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));

// Rows as float32, padded with zeros to a multiple of 16.
struct Packed {
  std::int64_t width;
  std::vector<float> values;
  const float* row(std::int64_t i) const { return values.data() + i * width; }
};

template <typename T>
double exact_squared(const T* a, const T* b, std::int64_t channels) {
  double sum[4] = {0, 0, 0, 0};
  std::int64_t c = 0;
  for (; c + 4 <= channels; c += 4) {
    for (int lane = 0; lane < 4; ++lane) {
      const double d = static_cast<double>(a[c + lane]) - static_cast<double>(b[c + lane]);
      sum[lane] += d * d;
    }
  }
  for (; c < channels; ++c) {
    const double d = static_cast<double>(a[c]) - static_cast<double>(b[c]);
    sum[0] += d * d;
  }
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// Compute squared distances in float32 of `kRows` rows to `n` consecutive centres: out[i * kRows + row].
WSCXR_CLONES
void approximate_squared(const float* const* rows, const float* centres, std::int64_t n, std::int64_t width,
                         float* out) {
  const float *row0 = rows[0], *row1 = rows[1], *row2 = rows[2], *row3 = rows[3];
  for (std::int64_t i = 0; i < n; ++i) {
    const float* centre = centres + i * width;
    Lanes sum0 = {}, sum1 = {}, sum2 = {}, sum3 = {};
    for (std::int64_t c = 0; c < width; c += kLanes) {
      Lanes at, r0, r1, r2, r3;
      std::memcpy(&at, centre + c, sizeof(at));
      std::memcpy(&r0, row0 + c, sizeof(r0));
      std::memcpy(&r1, row1 + c, sizeof(r1));
      std::memcpy(&r2, row2 + c, sizeof(r2));
      std::memcpy(&r3, row3 + c, sizeof(r3));
      r0 -= at;
      r1 -= at;
      r2 -= at;
      r3 -= at;
      sum0 += r0 * r0;
      sum1 += r1 * r1;
      sum2 += r2 * r2;
      sum3 += r3 * r3;
    }
    float total[kRows] = {0, 0, 0, 0};
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
      total[0] += sum0[lane];
      total[1] += sum1[lane];
      total[2] += sum2[lane];
      total[3] += sum3[lane];
    }
    std::memcpy(out + i * kRows, total, sizeof(total));
  }
}

template <typename T>
void choose(const T* rows, std::int64_t n, std::int64_t channels, std::int64_t count, std::int64_t start,
            std::int64_t* chosen) {
  Packed all{(channels + kLanes - 1) / kLanes * kLanes, {}};
  all.values.assign(n * all.width, 0.0F);
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t c = 0; c < channels; ++c) {
      all.values[i * all.width + c] = static_cast<float>(rows[i * channels + c]);
    }
  }
  Packed centres{all.width, {}};
  centres.values.resize(count * all.width);
  const auto add = [&](std::int64_t step, std::int64_t row) {
    chosen[step] = row;
    std::copy_n(all.row(row), all.width, centres.values.begin() + step * all.width);
  };
  // For float32 rows, subtraction, product and at most width / 16 + 16 additions are rounded, each by a factor within
  // 1 +- 2^-24; the slack is twice that. There is no such bound for values rounded from float64, or outside the range
  // of normal float32 numbers.
  const bool bounded = sizeof(T) == sizeof(float);
  const double slack = 2.0 * static_cast<double>(all.width / kLanes + kLanes + 3) * 0x1p-24;

  using Entry = std::pair<double, std::int64_t>;  // upper bound of the squared distance, row
  const auto later = [](const Entry& a, const Entry& b) {
    return a.first < b.first || (a.first == b.first && a.second > b.second);
  };
  std::vector<Entry> heap;
  heap.reserve(n);
  for (std::int64_t i = 0; i < n; ++i) {
    if (i != start) {
      heap.emplace_back(std::numeric_limits<double>::infinity(), i);
    }
  }
  std::make_heap(heap.begin(), heap.end(), later);
  std::vector<std::int64_t> seen(n, 0);  // number of chosen rows at the last update
  std::vector<Entry> batch;
  add(0, start);
  std::int64_t step = 1;
  // Update batch[begin:end], at most kRows rows.
  const auto update = [&](std::int64_t begin, std::int64_t end) {
    const float* four[kRows];
    std::int64_t first = step;
    for (std::int64_t i = 0; i < kRows; ++i) {
      const std::int64_t row = batch[std::min(begin + i, end - 1)].second;
      four[i] = all.row(row);
      first = std::min(first, seen[row]);
    }
    float approximate[kCentres * kRows];
    for (std::int64_t from = first; from < step; from += kCentres) {
      const std::int64_t tile = std::min(kCentres, step - from);
      approximate_squared(four, centres.row(from), tile, all.width, approximate);
      for (std::int64_t i = begin; i < end; ++i) {
        Entry& entry = batch[i];
        for (std::int64_t c = 0; c < tile; ++c) {
          const float value = approximate[c * kRows + (i - begin)];
          // The relative bound does not hold for subnormal numbers or after an overflow.
          const bool trusted = bounded && value > 1e-30F && value <= std::numeric_limits<float>::max();
          if (trusted && static_cast<double>(value) * (1.0 - slack) >= entry.first) {
            continue;
          }
          const T *a = rows + entry.second * channels, *b = rows + chosen[from + c] * channels;
          entry.first = std::min(entry.first, exact_squared(a, b, channels));
        }
      }
    }
  };
  while (step < count) {
    batch.clear();
    while (!heap.empty() && seen[heap.front().second] < step && static_cast<std::int64_t>(batch.size()) < kBatch) {
      std::pop_heap(heap.begin(), heap.end(), later);
      batch.push_back(heap.back());
      heap.pop_back();
    }
    if (batch.empty()) {  // the top of the heap is up to date, and no other upper bound exceeds it
      const std::int64_t row = heap.front().second;
      std::pop_heap(heap.begin(), heap.end(), later);
      heap.pop_back();
      add(step++, row);
      continue;
    }
    const std::int64_t size = static_cast<std::int64_t>(batch.size()), groups = (size + kRows - 1) / kRows;
    // about 100 microseconds of work justify another thread
    const std::int64_t grain = std::max<std::int64_t>(1, (1 << 20) / (kRows * all.width * step));
    torch::stable::parallel_for(0, groups, grain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t group = begin; group < end; ++group) {
        update(group * kRows, std::min(size, (group + 1) * kRows));
      }
    });
    for (const Entry& entry : batch) {
      seen[entry.second] = step;
      heap.push_back(entry);
      std::push_heap(heap.begin(), heap.end(), later);
    }
  }
}

Tensor coreset(Tensor rows, std::int64_t count, std::int64_t start) {
  STD_TORCH_CHECK(rows.defined() && rows.dim() == 2 && rows.size(1) > 0,
                  "coreset: rows must be [N, C] with at least one channel");
  STD_TORCH_CHECK(rows.scalar_type() == ScalarType::Float || rows.scalar_type() == ScalarType::Double,
                  "coreset: rows must be float32 or float64");
  STD_TORCH_CHECK(1 <= count && count <= rows.size(0), "coreset: count must lie in [1, ", rows.size(0),
                  "], the number of rows, got ", count);
  STD_TORCH_CHECK(0 <= start && start < rows.size(0), "coreset: start must be a row index below ", rows.size(0),
                  ", got ", start);
  const Tensor r = torch::stable::contiguous(rows);
  wscxr::search::check_finite(wscxr::rows_of(r), "coreset: rows");
  Tensor chosen = torch::stable::new_empty(r, {count}, ScalarType::Long);
  std::int64_t* out = static_cast<std::int64_t*>(chosen.data_ptr());
  if (r.scalar_type() == ScalarType::Float) {
    choose(static_cast<const float*>(r.data_ptr()), r.size(0), r.size(1), count, start, out);
  } else {
    choose(static_cast<const double*>(r.data_ptr()), r.size(0), r.size(1), count, start, out);
  }
  return chosen;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(monai_wscxr, CPU, m) { m.impl("coreset", TORCH_BOX(&coreset)); }
