// Conversion of tensors to `Rows`, shared by the CPU and the CUDA operators.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "rows.h"

namespace wscxr {

// View a tensor [N, C] as rows. The tensor must be contiguous and outlive the view.
inline Rows rows_of(const torch::stable::Tensor& tensor) {
  using torch::headeronly::ScalarType;
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
