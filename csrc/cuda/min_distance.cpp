// The search operators on the CUDA key. Which steps run is in search.cpp, the kernels are in the headers it names.
#include <cstdlib>
#include <tuple>

#include "cuda_common.h"
#include "cuda_steps.h"
#include "search.h"
#include "statistics.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// WSCXR_CUDA_KERNEL and WSCXR_CUDA_BLOCK_BYTES, read at every call: tests and benchmarks switch between kernels.
wscxr::SearchOptions options_of_environment() {
  wscxr::SearchOptions options;
  if (const char* kernel = std::getenv("WSCXR_CUDA_KERNEL")) options.kernel = wscxr::kernel_of(kernel);
  if (const char* bytes = std::getenv("WSCXR_CUDA_BLOCK_BYTES")) {
    char* end = nullptr;
    options.block_bytes = std::strtoll(bytes, &end, 10);
    STD_TORCH_CHECK(*bytes != '\0' && *end == '\0' && options.block_bytes > 0,
                    "WSCXR_CUDA_BLOCK_BYTES must be a positive number of bytes, got '", bytes, "'");
  }
  return options;
}

// A search with everything that a CUDA call needs around it; counts its exact distances where somebody asked for that.
template <typename Run>
void search_on(const Tensor& query, const Run& run) {
  const torch::stable::accelerator::DeviceGuard guard(query.get_device_index());
  const std::unique_ptr<wscxr::Steps> steps = wscxr::cuda_steps(query);
  wscxr::SearchOptions options = options_of_environment();
  if (!wscxr::SearchStatistics::wanted()) return run(*steps, options);
  const wscxr::Steps::Memory counters = steps->allocate(2 * sizeof(unsigned long long));
  steps->zero(counters.get(), 2 * sizeof(unsigned long long));
  options.counters.candidates = static_cast<unsigned long long*>(counters.get());
  options.counters.rescans = options.counters.candidates + 1;
  run(*steps, options);
  unsigned long long counted[2];
  steps->fetch(counted, counters.get(), sizeof(counted));
  wscxr::SearchStatistics::keep(counted[0], counted[1]);
}

std::tuple<Tensor, Tensor> min_distance(Tensor query, Tensor bank) {
  const Tensor q = torch::stable::contiguous(query), b = torch::stable::contiguous(bank);
  Tensor distance = torch::stable::new_empty(q, {q.size(0)}, ScalarType::Float);
  Tensor index = torch::stable::new_empty(q, {q.size(0)}, ScalarType::Long);
  search_on(q, [&](wscxr::Steps& steps, const wscxr::SearchOptions& options) {
    wscxr::min_distance(steps, wscxr::rows_of(q), wscxr::rows_of(b), options, static_cast<float*>(distance.data_ptr()),
                        static_cast<std::int64_t*>(index.data_ptr()));
  });
  return {distance, index};
}

std::tuple<Tensor, Tensor> mine_top_r(Tensor query, Tensor bank, std::int64_t k) {
  const Tensor q = torch::stable::contiguous(query), b = torch::stable::contiguous(bank);
  STD_TORCH_CHECK(0 <= k && k <= q.size(0), "mine_top_r: k must lie between 0 and ", q.size(0), ", got ", k);
  Tensor index = torch::stable::new_empty(q, {k}, ScalarType::Long);
  Tensor distance = torch::stable::new_empty(q, {k}, ScalarType::Float);
  search_on(q, [&](wscxr::Steps& steps, const wscxr::SearchOptions& options) {
    wscxr::mine_top_r(steps, wscxr::rows_of(q), wscxr::rows_of(b), k, options,
                      static_cast<std::int64_t*>(index.data_ptr()), static_cast<float*>(distance.data_ptr()));
  });
  return {index, distance};
}

// One block of a bank that is streamed through the device. The carried tensors are lowered in place: carry_squared
// float64 [Nq], infinity at first, and carry_index int64 [Nq]; row_offset is the number of the block's first row in the
// whole bank. Each block is centred by itself, so blocks may come in any order and sizes, also from several streams
// into carries of their own, merged by (squared, index). The distance is sqrt(carry_squared), rounded once to float32.
void min_distance_block(Tensor query, Tensor bank, Tensor carry_squared, Tensor carry_index, std::int64_t row_offset) {
  STD_TORCH_CHECK(
      query.dim() == 2 && bank.dim() == 2 && query.size(1) == bank.size(1) && query.size(1) > 0 && bank.size(0) > 0,
      "_min_distance_block: query and bank must be rows of the same width, and the block not empty");
  STD_TORCH_CHECK(bank.is_cuda() && bank.get_device_index() == query.get_device_index(),
                  "_min_distance_block: query and bank block must be on one device");
  for (const Tensor& carry : {carry_squared, carry_index}) {
    STD_TORCH_CHECK(carry.is_cuda() && carry.get_device_index() == query.get_device_index() && carry.dim() == 1 &&
                        carry.is_contiguous() && carry.size(0) == query.size(0),
                    "_min_distance_block: the carries must be contiguous, one number per query, on the query's device");
  }
  STD_TORCH_CHECK(carry_squared.scalar_type() == ScalarType::Double && carry_index.scalar_type() == ScalarType::Long,
                  "_min_distance_block: carry_squared must be float64 and carry_index int64");
  const Tensor q = torch::stable::contiguous(query), b = torch::stable::contiguous(bank);
  search_on(q, [&](wscxr::Steps& steps, const wscxr::SearchOptions& options) {
    wscxr::min_distance_block(steps, wscxr::rows_of(q), wscxr::rows_of(b), row_offset, options,
                              static_cast<double*>(carry_squared.data_ptr()),
                              static_cast<std::int64_t*>(carry_index.data_ptr()));
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(monai_wscxr, m) {
  m.def(
      "_min_distance_block(Tensor query, Tensor bank, Tensor(a!) carry_squared, Tensor(b!) carry_index, int row_offset)"
      " -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(monai_wscxr, CUDA, m) {
  m.impl("min_distance", TORCH_BOX(&min_distance));
  m.impl("mine_top_r", TORCH_BOX(&mine_top_r));
  m.impl("_min_distance_block", TORCH_BOX(&min_distance_block));
}
