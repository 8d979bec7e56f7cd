// A matrix of floating-point rows, as the CPU and the CUDA operators see a tensor.
#pragma once

#include <cstdint>
#include <string>

namespace wscxr {

enum class Type : int { kDouble = 0, kFloat = 1, kHalf = 2, kBFloat16 = 3 };

inline std::int64_t bytes_of(Type type) { return type == Type::kDouble ? 8 : type == Type::kFloat ? 4 : 2; }

// Contiguous [count, channels] matrix in host or device memory. Does not own the memory.
struct Rows {
  const void* data = nullptr;
  std::int64_t count = 0;
  std::int64_t channels = 0;
  Type type = Type::kFloat;

  // Address of the first number of a row.
  const char* at(std::int64_t row) const { return static_cast<const char*>(data) + row * channels * bytes_of(type); }
  // Rows [begin, end).
  Rows slice(std::int64_t begin, std::int64_t end) const { return {at(begin), end - begin, channels, type}; }
};

// Error message for a matrix in which `bad` of `count` rows hold NaN or Inf; monai_wscxr/ops/checks.py matches it.
inline std::string not_finite_message(const std::string& name, std::int64_t bad, std::int64_t count) {
  return name + " holds NaN or Inf in " + std::to_string(bad) + " of " + std::to_string(count) +
         " rows; distances to them mean nothing. Look for damaged images or a broken weights file";
}

}  // namespace wscxr
