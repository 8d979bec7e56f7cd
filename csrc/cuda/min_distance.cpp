// Eq. 4 and 5 on CUDA: the search operators. search.cpp holds the orchestration, kernel_steps.h the kernel launches.
#include <cstdlib>
#include <tuple>

#include "cuda_common.h"
#include "cuda_steps.h"
#include "search.h"
#include "statistics.h"
#include "tensor_checks.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Read MONAI_WSCXR_CUDA_KERNEL and MONAI_WSCXR_CUDA_BLOCK_BYTES. They are read at every call, so that tests and
// benchmarks can switch between kernels.
wscxr::SearchOptions options_of_environment() {
  wscxr::SearchOptions options;
  if (const char* kernel = std::getenv("MONAI_WSCXR_CUDA_KERNEL")) options.kernel = wscxr::kernel_of(kernel);
  if (const char* bytes = std::getenv("MONAI_WSCXR_CUDA_BLOCK_BYTES")) {
    char* end = nullptr;
    options.block_bytes = std::strtoll(bytes, &end, 10);
    STD_TORCH_CHECK(*bytes != '\0' && *end == '\0' && options.block_bytes > 0,
                    "MONAI_WSCXR_CUDA_BLOCK_BYTES must be a positive number of bytes, got '", bytes, "'");
  }
  return options;
}

// Run a search on the device of `query`, and count its exact distances if SearchStatistics is enabled.
template <typename Run>
void search_on(const Tensor& query, const Run& run) {
  const torch::stable::accelerator::DeviceGuard guard(query.get_device_index());
  const std::unique_ptr<wscxr::Steps> steps = wscxr::cuda_steps(query);
  wscxr::SearchOptions options = options_of_environment();
  if (!wscxr::SearchStatistics::enabled()) return run(*steps, options);
  const wscxr::Steps::Memory counters = steps->allocate(2 * sizeof(unsigned long long));
  steps->zero(counters.get(), 2 * sizeof(unsigned long long));
  options.counters.candidates = static_cast<unsigned long long*>(counters.get());
  options.counters.rescans = options.counters.candidates + 1;
  run(*steps, options);
  unsigned long long counted[2];
  steps->fetch(counted, counters.get(), sizeof(counted));
  wscxr::SearchStatistics::record(counted[0], counted[1]);
}

std::tuple<Tensor, Tensor> min_distance(Tensor query, Tensor bank) {
  wscxr::check_search(query, bank, "min_distance");
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
  wscxr::check_search(query, bank, "mine_top_r");
  wscxr::check_mined(query, k);
  const Tensor q = torch::stable::contiguous(query), b = torch::stable::contiguous(bank);
  Tensor index = torch::stable::new_empty(q, {k}, ScalarType::Long);
  Tensor distance = torch::stable::new_empty(q, {k}, ScalarType::Float);
  search_on(q, [&](wscxr::Steps& steps, const wscxr::SearchOptions& options) {
    wscxr::mine_top_r(steps, wscxr::rows_of(q), wscxr::rows_of(b), k, options,
                      static_cast<std::int64_t*>(index.data_ptr()), static_cast<float*>(distance.data_ptr()));
  });
  return {index, distance};
}

// Search one block of a bank that is streamed through the device, as documented in monai_wscxr/ops/min_distance.py.
// Every block has its own centre, so blocks may come in any order and size.
std::tuple<Tensor, Tensor> search_block(Tensor query, Tensor bank, Tensor squared, Tensor index,
                                        std::int64_t first_row) {
  wscxr::check_search(query, bank, "search_block");
  wscxr::check_found(query, bank, squared, index, first_row, "search_block");
  const Tensor q = torch::stable::contiguous(query), b = torch::stable::contiguous(bank);
  const torch::stable::accelerator::DeviceGuard guard(q.get_device_index());
  Tensor least = torch::stable::clone(torch::stable::contiguous(squared));
  Tensor row = torch::stable::clone(torch::stable::contiguous(index));
  search_on(q, [&](wscxr::Steps& steps, const wscxr::SearchOptions& options) {
    wscxr::min_distance_block(steps, wscxr::rows_of(q), wscxr::rows_of(b), first_row, options,
                              static_cast<double*>(least.data_ptr()), static_cast<std::int64_t*>(row.data_ptr()));
  });
  return {least, row};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(monai_wscxr, CUDA, m) {
  m.impl("min_distance", TORCH_BOX(&min_distance));
  m.impl("mine_top_r", TORCH_BOX(&mine_top_r));
  m.impl("search_block", TORCH_BOX(&search_block));
}
