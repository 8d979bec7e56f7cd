// Eq. 4 on the CPU: exact nearest-row search in plain and in packed banks. search.cpp describes the algorithm.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cmath>
#include <cstdint>
#include <limits>
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

constexpr std::int64_t kQueriesAtOnce = 1 << 15;  // queries per block, whose codes are in memory together

std::tuple<Tensor, Tensor> nearest(const Rows& query, const Rows& bank, const Packed& packed, const Tensor& squared,
                                   const Tensor& index, std::int64_t first_row) {
  double* least = static_cast<double*>(squared.data_ptr());
  std::int64_t* at = static_cast<std::int64_t*>(index.data_ptr());
  for (std::int64_t begin = 0; begin < query.count; begin += kQueriesAtOnce) {
    const Rows part = query.slice(begin, std::min(begin + kQueriesAtOnce, query.count));
    Search search(kernels(), packed, bank, part, first_row);
    search.resume(least + begin, at + begin);
    std::vector<std::int64_t> all(static_cast<std::size_t>(part.count));
    std::iota(all.begin(), all.end(), 0);
    search.scan(all, 0, packed.panels);
    search.finish(all);
    for (std::int64_t i = 0; i < part.count; ++i) {
      least[begin + i] = search[i].squared;
      at[begin + i] = search[i].index;
    }
    count_search(part.count, search.evaluated());
  }
  return {squared, index};
}

// Check the values that a search starts from, and return copies of them, which it overwrites.
std::tuple<Tensor, Tensor> start_from(const Tensor& squared, const Tensor& index, const char* op) {
  Tensor least = torch::stable::clone(torch::stable::contiguous(squared));
  Tensor at = torch::stable::clone(torch::stable::contiguous(index));
  const double* const value = static_cast<const double*>(least.data_ptr());
  const std::int64_t* const row = static_cast<const std::int64_t*>(at.data_ptr());
  for (std::int64_t i = 0; i < least.size(0); ++i) {
    STD_TORCH_CHECK(value[i] >= 0 && row[i] >= 0 && (row[i] != wscxr::kNoRow || std::isinf(value[i])), op,
                    ": squared and index must come from an earlier block or from nothing_found, but query ", i,
                    " has the squared distance ", value[i], " and the row ", row[i]);
  }
  return {least, at};
}

std::tuple<Tensor, Tensor> min_distance(Tensor query, Tensor bank) {
  wscxr::check_search(query, bank, "min_distance");
  const Tensor q = torch::stable::contiguous(query), b = torch::stable::contiguous(bank);
  const Rows queries = rows_of(q), rows = rows_of(b);
  check_finite(queries, "query");
  const PackedArrays packed(rows);
  Tensor squared = torch::stable::new_empty(q, {queries.count}, ScalarType::Double);
  Tensor index = torch::stable::new_empty(q, {queries.count}, ScalarType::Long);
  Tensor distance = torch::stable::new_empty(q, {queries.count}, ScalarType::Float);
  std::fill_n(static_cast<std::int64_t*>(index.data_ptr()), queries.count, std::numeric_limits<std::int64_t>::max());
  nearest(queries, rows, packed.view(), squared, index, 0);
  const double* least = static_cast<const double*>(squared.data_ptr());
  float* out = static_cast<float*>(distance.data_ptr());
  for (std::int64_t i = 0; i < queries.count; ++i) out[i] = static_cast<float>(std::sqrt(least[i]));
  return {distance, index};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> pack_bank(Tensor bank) {
  wscxr::check_bank(bank, "PackedBank");
  const Tensor b = torch::stable::contiguous(bank);
  const PackedTensors packed = pack_rows(rows_of(b), b);
  return {packed.codes, packed.columns, packed.centre, packed.row, packed.layout};
}

std::tuple<Tensor, Tensor> search_packed(Tensor query, Tensor bank, Tensor codes, Tensor columns, Tensor centre,
                                         Tensor row, Tensor layout, Tensor squared, Tensor index,
                                         std::int64_t first_row) {
  wscxr::check_search(query, bank, "search_packed");
  wscxr::check_found(query, bank, squared, index, first_row, "search_packed");
  const Tensor q = torch::stable::contiguous(query), b = torch::stable::contiguous(bank);
  const Rows queries = rows_of(q), rows = rows_of(b);
  check_finite(queries, "query");
  const auto [least, at] = start_from(squared, index, "search_packed");
  return with_packed({codes, columns, centre, row, layout}, rows, [&, &least = least, &at = at](const Packed& packed) {
    return nearest(queries, rows, packed, least, at, first_row);
  });
}

std::tuple<Tensor, Tensor> search_block(Tensor query, Tensor bank, Tensor squared, Tensor index,
                                        std::int64_t first_row) {
  wscxr::check_search(query, bank, "search_block");
  wscxr::check_found(query, bank, squared, index, first_row, "search_block");
  const Tensor q = torch::stable::contiguous(query), b = torch::stable::contiguous(bank);
  const Rows queries = rows_of(q), rows = rows_of(b);
  check_finite(queries, "query");
  const auto [least, at] = start_from(squared, index, "search_block");
  const PackedArrays packed(rows);
  return nearest(queries, rows, packed.view(), least, at, first_row);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(monai_wscxr, CPU, m) {
  m.impl("min_distance", TORCH_BOX(&min_distance));
  m.impl("pack_bank", TORCH_BOX(&pack_bank));
  m.impl("search_packed", TORCH_BOX(&search_packed));
  m.impl("search_block", TORCH_BOX(&search_block));
}
