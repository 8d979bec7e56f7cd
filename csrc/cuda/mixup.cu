// Eq. 6 on CUDA. `source` and `alpha` are bit-identical to the reference in monai_wscxr/ops/mixup.py.
#include <algorithm>
#include <tuple>

#include "cuda_common.h"
#include "exact_distance.h"
#include "mixup.h"
#include "tensor_checks.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::tuple<Tensor, Tensor> mixup_into(Tensor normal, Tensor abnormal, std::int64_t seed, std::int64_t offset,
                                      double alpha_min, double alpha_max, Tensor mixed) {
  wscxr::check_mixing(normal, abnormal, seed, offset, alpha_min, alpha_max);
  wscxr::check_into(normal, abnormal, mixed);
  const Tensor n = torch::stable::contiguous(normal), a = torch::stable::contiguous(abnormal);
  const std::int64_t rows = n.size(0), channels = n.size(1);
  Tensor source = torch::stable::new_empty(n, {rows}, ScalarType::Long);
  Tensor alpha = torch::stable::new_empty(n, {rows}, ScalarType::Float);
  if (rows == 0) return {source, alpha};
  const torch::stable::accelerator::DeviceGuard guard(n.get_device_index());
  const cudaStream_t stream = wscxr::current_stream(n);
  int processors = 0;
  wscxr::check_cuda(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, n.get_device_index()),
                    "device of mixup");
  constexpr std::int64_t kWarps = wscxr::kMixThreads / wscxr::kWarp;
  const std::int64_t blocks = std::min<std::int64_t>((rows + kWarps - 1) / kWarps, std::int64_t{16} * processors);
  wscxr::with_type(wscxr::rows_of(n).type, [&](auto type) {
    using T = decltype(type);
    wscxr::MixProblem<T> p{};
    p.normal = static_cast<const T*>(n.data_ptr());
    p.abnormal = static_cast<const T*>(a.data_ptr());
    p.mixed = static_cast<T*>(mixed.data_ptr());
    p.source = static_cast<std::int64_t*>(source.data_ptr());
    p.alpha = static_cast<float*>(alpha.data_ptr());
    p.rows = rows;
    p.channels = channels;
    p.abnormal_rows = static_cast<std::uint64_t>(a.size(0));
    p.seed = static_cast<std::uint64_t>(seed);
    p.offset = static_cast<std::uint64_t>(offset);
    p.low = static_cast<float>(alpha_min);
    p.high = static_cast<float>(alpha_max);
    p.aligned = wscxr::mix_aligned(p.normal, p.abnormal, p.mixed, channels * static_cast<std::int64_t>(sizeof(T)));
    wscxr::mixup_kernel<T><<<static_cast<unsigned>(blocks), wscxr::kMixThreads, 0, stream>>>(p);
  });
  wscxr::check_cuda(cudaGetLastError(), "launch of mixup");
  return {source, alpha};
}

std::tuple<Tensor, Tensor, Tensor> mixup(Tensor normal, Tensor abnormal, std::int64_t seed, std::int64_t offset,
                                         double alpha_min, double alpha_max) {
  wscxr::check_mixing(normal, abnormal, seed, offset, alpha_min, alpha_max);
  Tensor mixed = torch::stable::new_empty(normal, {normal.size(0), normal.size(1)});
  const auto [source, alpha] = mixup_into(normal, abnormal, seed, offset, alpha_min, alpha_max, mixed);
  return {mixed, source, alpha};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(monai_wscxr, CUDA, m) {
  m.impl("mixup", TORCH_BOX(&mixup));
  m.impl("mixup_into", TORCH_BOX(&mixup_into));
}
