// What the CUDA operators share: torch's stable ABI, device guard, current stream, checks after every call and launch.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>

#include "problems.h"

namespace wscxr {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_cuda(cudaError_t status, const char* what) {
  STD_TORCH_CHECK(status == cudaSuccess, "monai_wscxr: ", what, ": ", cudaGetErrorString(status));
}

inline cudaStream_t current_stream(const Tensor& on) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// The tensor must be contiguous and outlive the rows.
inline Rows rows_of(const Tensor& tensor) {
  Rows rows{tensor.data_ptr(), tensor.size(0), tensor.size(1), Type::kFloat};
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      rows.type = Type::kDouble;
      break;
    case ScalarType::Float:
      rows.type = Type::kFloat;
      break;
    case ScalarType::Half:
      rows.type = Type::kHalf;
      break;
    case ScalarType::BFloat16:
      rows.type = Type::kBFloat16;
      break;
    default:
      STD_TORCH_CHECK(false, "rows must be float64, float32, float16 or bfloat16");
  }
  return rows;
}

}  // namespace wscxr
