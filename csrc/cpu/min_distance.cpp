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

std::tuple<Tensor, Tensor> min_distance(Tensor query, Tensor bank) {
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
  const Tensor b = torch::stable::contiguous(bank);
  const PackedTensors packed = pack_rows(rows_of(b), b);
  return {packed.codes, packed.columns, packed.centre, packed.row, packed.layout};
}

std::tuple<Tensor, Tensor> search_packed(Tensor query, Tensor bank, Tensor codes, Tensor columns, Tensor centre,
                                         Tensor row, Tensor layout, Tensor squared, Tensor index,
                                         std::int64_t first_row) {
  const Tensor q = torch::stable::contiguous(query), b = torch::stable::contiguous(bank);
  const Rows queries = rows_of(q), rows = rows_of(b);
  check_finite(queries, "query");
  return with_packed({codes, columns, centre, row, layout}, rows, [&](const Packed& packed) {
    return nearest(queries, rows, packed, torch::stable::clone(squared), torch::stable::clone(index), first_row);
  });
}

std::tuple<Tensor, Tensor> search_block(Tensor query, Tensor bank, Tensor squared, Tensor index,
                                        std::int64_t first_row) {
  const Tensor q = torch::stable::contiguous(query), b = torch::stable::contiguous(bank);
  const Rows queries = rows_of(q), rows = rows_of(b);
  check_finite(queries, "query");
  const PackedArrays packed(rows);
  return nearest(queries, rows, packed.view(), torch::stable::clone(squared), torch::stable::clone(index), first_row);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(monai_wscxr, CPU, m) {
  m.impl("min_distance", TORCH_BOX(&min_distance));
  m.impl("pack_bank", TORCH_BOX(&pack_bank));
  m.impl("search_packed", TORCH_BOX(&search_packed));
  m.impl("search_block", TORCH_BOX(&search_block));
}
