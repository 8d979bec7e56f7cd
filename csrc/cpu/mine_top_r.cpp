// Eq. 5 on the CPU: search and selection combined, so that queries that cannot be mined are dropped early.
//
// Upper bounds of the nearest distances only decrease while the bank is scanned. Once k queries are finished, the k-th
// largest of their distances is a lower bound of the final cut. A query whose upper bound is below it cannot be mined.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <numeric>
#include <tuple>
#include <vector>

#include "packed_bank.h"
#include "search.h"
#include "tensor_checks.h"
#include "tensor_rows.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using namespace wscxr::search;
using wscxr::Rows;
using wscxr::rows_of;

constexpr std::int64_t kFirstShare = 24;  // queries are dropped for the first time after 1 / kFirstShare of the panels
constexpr double kGrowth = 1.6;           // growth of the scanned part until the next time

class Mining {
 public:
  Mining(Search& search, std::int64_t queries, std::int64_t k, std::int64_t panels)
      : search_(search), k_(k), panels_(panels), distance_(queries), done_(queries, 0), active_(queries) {
    std::iota(active_.begin(), active_.end(), 0);
  }

  void run() {
    const std::int64_t count = static_cast<std::int64_t>(active_.size());
    std::int64_t scanned = 0, next = k_ < count ? std::max<std::int64_t>(4, panels_ / kFirstShare) : panels_;
    while (scanned < panels_) {
      next = std::min(next, panels_);
      search_.scan(active_, scanned, next);
      scanned = next;
      if (scanned == panels_) break;
      search_.tighten(active_);
      finish_most_likely(scanned);
      drop();
      next = std::max(scanned + 4, static_cast<std::int64_t>(static_cast<double>(scanned) * kGrowth));
    }
    search_.finish(active_);
    for (const std::int64_t query : active_) note(query);
  }

  // The k mined queries, farthest first, ties to the lowest index.
  std::vector<std::int64_t> mined() const {
    std::vector<std::int64_t> order(finished_);
    std::sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
      return distance_[a] != distance_[b] ? distance_[a] > distance_[b] : a < b;
    });
    order.resize(k_);
    return order;
  }
  float distance(std::int64_t query) const { return distance_[query]; }

 private:
  void note(std::int64_t query) {
    distance_[query] = static_cast<float>(std::sqrt(search_[query].squared));
    done_[query] = 1;
    finished_.push_back(query);
  }

  // Finish the k queries with the largest bounds, which are most likely the mined ones.
  void finish_most_likely(std::int64_t scanned) {
    std::vector<std::int64_t> leading(active_);
    const auto bound = [&](std::int64_t q) { return done_[q] ? static_cast<double>(distance_[q]) : search_.upper(q); };
    leading.insert(leading.end(), finished_.begin(), finished_.end());
    if (static_cast<std::int64_t>(leading.size()) > k_) {
      std::nth_element(leading.begin(), leading.begin() + (k_ - 1), leading.end(),
                       [&](std::int64_t a, std::int64_t b) { return bound(a) > bound(b); });
      leading.resize(k_);
    }
    leading.erase(std::remove_if(leading.begin(), leading.end(), [&](std::int64_t q) { return done_[q]; }),
                  leading.end());
    std::sort(leading.begin(), leading.end());
    search_.scan(leading, scanned, panels_);
    search_.finish(leading);
    for (const std::int64_t query : leading) note(query);
    active_.erase(std::remove_if(active_.begin(), active_.end(), [&](std::int64_t q) { return done_[q]; }),
                  active_.end());
  }

  void drop() {
    if (static_cast<std::int64_t>(finished_.size()) < k_) return;
    std::vector<float> largest;
    for (const std::int64_t query : finished_) largest.push_back(distance_[query]);
    std::nth_element(largest.begin(), largest.begin() + (k_ - 1), largest.end(), std::greater<float>());
    // Strictly below, in the precision of the results: a query at the cut can win by its index.
    const float cut = largest[k_ - 1];
    active_.erase(std::remove_if(active_.begin(), active_.end(),
                                 [&](std::int64_t q) { return static_cast<float>(search_.upper(q)) < cut; }),
                  active_.end());
  }

  Search& search_;
  std::int64_t k_, panels_;
  std::vector<float> distance_;
  std::vector<char> done_;
  std::vector<std::int64_t> active_, finished_;
};

std::tuple<Tensor, Tensor> mine(const Tensor& query, const Tensor& bank, const Packed& packed, std::int64_t k) {
  const Rows queries = rows_of(query), rows = rows_of(bank);
  Tensor index = torch::stable::new_empty(query, {k}, ScalarType::Long);
  Tensor distance = torch::stable::new_empty(query, {k}, ScalarType::Float);
  if (k == 0) return {index, distance};
  Search search(kernels(), packed, rows, queries);
  Mining mining(search, queries.count, k, packed.panels);
  mining.run();
  count_search(queries.count, search.evaluated());
  const std::vector<std::int64_t> mined = mining.mined();
  for (std::int64_t i = 0; i < k; ++i) {
    static_cast<std::int64_t*>(index.data_ptr())[i] = mined[i];
    static_cast<float*>(distance.data_ptr())[i] = mining.distance(mined[i]);
  }
  return {index, distance};
}

std::tuple<Tensor, Tensor> mine_top_r(Tensor query, Tensor bank, std::int64_t k) {
  wscxr::check_search(query, bank, "mine_top_r");
  wscxr::check_mined(query, k);
  const Tensor q = torch::stable::contiguous(query), b = torch::stable::contiguous(bank);
  check_finite(rows_of(q), "query");
  return mine(q, b, PackedArrays(rows_of(b)).view(), k);
}

std::tuple<Tensor, Tensor> mine_packed(Tensor query, Tensor bank, Tensor codes, Tensor columns, Tensor centre,
                                       Tensor row, Tensor layout, std::int64_t k) {
  wscxr::check_search(query, bank, "mine_packed");
  wscxr::check_mined(query, k);
  const Tensor q = torch::stable::contiguous(query), b = torch::stable::contiguous(bank);
  check_finite(rows_of(q), "query");
  return with_packed({codes, columns, centre, row, layout}, rows_of(b),
                     [&](const Packed& packed) { return mine(q, b, packed, k); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(monai_wscxr, CPU, m) {
  m.impl("mine_top_r", TORCH_BOX(&mine_top_r));
  m.impl("mine_packed", TORCH_BOX(&mine_packed));
}
