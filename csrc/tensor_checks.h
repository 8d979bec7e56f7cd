// Checks of operator arguments, shared by the CPU and the CUDA operators.
//
// Operators can be called directly, as torch.ops.monai_wscxr.*, without the checks of the Python functions. Kernels
// compute addresses from the sizes of tensors, so every operator checks them before it reads memory.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <limits>

namespace wscxr {

constexpr std::int64_t kNoRow = std::numeric_limits<std::int64_t>::max();  // index of a query without a nearest row

inline bool is_floating(torch::headeronly::ScalarType type) {
  using torch::headeronly::ScalarType;
  return type == ScalarType::Double || type == ScalarType::Float || type == ScalarType::Half ||
         type == ScalarType::BFloat16;
}

inline bool same_device(const torch::stable::Tensor& a, const torch::stable::Tensor& b) {
  return a.defined() && b.defined() && a.is_cuda() == b.is_cuda() && a.is_cpu() == b.is_cpu() &&
         a.get_device_index() == b.get_device_index();
}

inline void check_matrix(const torch::stable::Tensor& rows, const char* op, const char* name) {
  STD_TORCH_CHECK(rows.defined(), op, ": ", name, " is None");
  STD_TORCH_CHECK(rows.dim() == 2, op, ": ", name, " must be a matrix of rows [N, C], got ", rows.dim(), " dimensions");
  STD_TORCH_CHECK(is_floating(rows.scalar_type()), op, ": ", name,
                  " must be float64, float32, float16 or bfloat16; convert it first");
}

// A bank needs at least one row and one channel.
inline void check_bank(const torch::stable::Tensor& bank, const char* op) {
  check_matrix(bank, op, "bank");
  STD_TORCH_CHECK(bank.size(0) > 0 && bank.size(1) > 0, op,
                  ": the bank must have at least one row and one channel, got ", bank.size(0), " x ", bank.size(1));
}

inline void check_search(const torch::stable::Tensor& query, const torch::stable::Tensor& bank, const char* op) {
  check_matrix(query, op, "query");
  check_bank(bank, op);
  STD_TORCH_CHECK(query.size(1) == bank.size(1), op, ": query and bank must have the same number of channels, got ",
                  query.size(1), " and ", bank.size(1));
  STD_TORCH_CHECK(same_device(query, bank), op, ": query and bank must be on one device");
}

// The result for earlier blocks that a search starts from, and the index of the first row of its block.
inline void check_found(const torch::stable::Tensor& query, const torch::stable::Tensor& bank,
                        const torch::stable::Tensor& squared, const torch::stable::Tensor& index,
                        std::int64_t first_row, const char* op) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(squared.defined() && index.defined(), op, ": squared and index must be tensors, got None");
  STD_TORCH_CHECK(squared.scalar_type() == ScalarType::Double && index.scalar_type() == ScalarType::Long, op,
                  ": squared must be float64 and index int64");
  STD_TORCH_CHECK(
      squared.dim() == 1 && index.dim() == 1 && squared.size(0) == query.size(0) && index.size(0) == query.size(0), op,
      ": squared and index must hold one value for each of ", query.size(0), " query rows");
  STD_TORCH_CHECK(same_device(query, squared) && same_device(query, index), op,
                  ": squared and index must be on the device of the query");
  STD_TORCH_CHECK(first_row >= 0 && first_row < kNoRow - bank.size(0), op,
                  ": first_row must be at least 0, and all rows of the block below 2^63 - 1, got ", first_row);
}

inline void check_mined(const torch::stable::Tensor& query, std::int64_t k) {
  STD_TORCH_CHECK(0 <= k && k <= query.size(0), "mine_top_r: k must lie between 0 and ", query.size(0), ", got ", k);
}

inline void check_mixing(const torch::stable::Tensor& normal, const torch::stable::Tensor& abnormal, std::int64_t seed,
                         std::int64_t offset, double alpha_min, double alpha_max) {
  check_matrix(normal, "mixup", "normal");
  check_matrix(abnormal, "mixup", "abnormal");
  STD_TORCH_CHECK(normal.size(1) == abnormal.size(1) && normal.scalar_type() == abnormal.scalar_type() &&
                      same_device(normal, abnormal),
                  "mixup: normal and abnormal must agree in channels, type and device");
  STD_TORCH_CHECK(abnormal.size(0) > 0, "mixup: there is no abnormal row to mix in; mine at least one");
  STD_TORCH_CHECK(0 <= alpha_min && alpha_min <= alpha_max && alpha_max <= 1,
                  "mixup: need 0 <= alpha_min <= alpha_max <= 1, got ", alpha_min, " and ", alpha_max);
  STD_TORCH_CHECK(seed >= 0 && offset >= 0, "mixup: seed and offset must lie in [0, 2^63), got ", seed, " and ",
                  offset);
}

// Whether the memory between the first and the last number of one tensor overlaps with that of another.
inline bool overlap(const torch::stable::Tensor& a, const torch::stable::Tensor& b) {
  if (a.numel() == 0 || b.numel() == 0 || !same_device(a, b)) return false;
  const auto begin = [](const torch::stable::Tensor& t) { return reinterpret_cast<std::uintptr_t>(t.data_ptr()); };
  const auto end = [&](const torch::stable::Tensor& t) {
    std::uintptr_t last = 0;
    for (std::int64_t d = 0; d < t.dim(); ++d) {
      last += static_cast<std::uintptr_t>((t.size(d) - 1) * t.stride(d));
    }
    return begin(t) + (last + 1) * t.element_size();
  };
  return begin(a) < end(b) && begin(b) < end(a);
}

// `mixed` is written while the rows are read.
inline void check_into(const torch::stable::Tensor& normal, const torch::stable::Tensor& abnormal,
                       const torch::stable::Tensor& mixed) {
  STD_TORCH_CHECK(mixed.defined(), "mixup: out is None");
  STD_TORCH_CHECK(mixed.is_contiguous() && mixed.dim() == 2 && mixed.size(0) == normal.size(0) &&
                      mixed.size(1) == normal.size(1) && mixed.scalar_type() == normal.scalar_type() &&
                      same_device(mixed, normal),
                  "mixup: out must be contiguous and have the shape, type and device of the normal rows");
  STD_TORCH_CHECK(!overlap(mixed, normal) && !overlap(mixed, abnormal),
                  "mixup: out shares memory with the rows that are mixed; give a tensor of its own");
}

}  // namespace wscxr
