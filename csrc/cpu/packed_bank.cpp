#include "packed_bank.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>

namespace wscxr::search {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

constexpr std::int64_t kVersion = 1;
constexpr std::int64_t kLargestExponent = 1000;  // see centre_and_exponent

void fail_not_finite(const char* name, std::int64_t bad, std::int64_t count) {
  STD_TORCH_CHECK(false, not_finite_message(name, bad, count));
}

}  // namespace

void check_finite(const Rows& rows, const char* name) {
  const std::int64_t bad = count_not_finite(kernels(), rows);
  if (bad) fail_not_finite(name, bad, rows.count);
}

namespace {

void pack_or_fail(const Rows& bank, PackedOut& out) {
  pack(kernels(), bank, out);
  if (out.not_finite) fail_not_finite("bank", out.not_finite, bank.count);
}

Packed view_of(const PackedOut& out, std::int64_t channels) {
  Packed packed;
  packed.codes = out.codes;
  packed.columns = out.columns;
  packed.centre = out.centre;
  packed.row = out.row;
  packed.panels = panels_of(out.unique);  // without columns that are not in use
  packed.depth = depth_of(channels);
  packed.exponent = out.exponent;
  return packed;
}

PackedOut pointers(const PackedTensors& tensors) {
  PackedOut out;
  out.codes = static_cast<std::uint8_t*>(tensors.codes.data_ptr());
  out.columns = static_cast<float*>(tensors.columns.data_ptr());
  out.centre = static_cast<double*>(tensors.centre.data_ptr());
  out.row = static_cast<std::int64_t*>(tensors.row.data_ptr());
  return out;
}

}  // namespace

PackedArrays::PackedArrays(const Rows& bank) {
  const std::size_t panels = static_cast<std::size_t>(panels_of(bank.count));
  codes_.resize(panels * static_cast<std::size_t>(depth_of(bank.channels) * 4 * kColumns));
  columns_.resize(panels * 4 * kColumns);
  centre_.resize(static_cast<std::size_t>(bank.channels));
  row_.resize(panels * kColumns);
  PackedOut out;
  out.codes = codes_.data();
  out.columns = columns_.data();
  out.centre = centre_.data();
  out.row = row_.data();
  pack_or_fail(bank, out);
  view_ = view_of(out, bank.channels);
}

PackedTensors pack_rows(const Rows& bank, const Tensor& like) {
  const std::int64_t panels = panels_of(bank.count), depth = depth_of(bank.channels);
  PackedTensors packed{torch::stable::new_empty(like, {panels, depth, 4 * kColumns}, ScalarType::Byte),
                       torch::stable::new_empty(like, {panels, 4, kColumns}, ScalarType::Float),
                       torch::stable::new_empty(like, {bank.channels}, ScalarType::Double),
                       torch::stable::new_empty(like, {panels * kColumns}, ScalarType::Long),
                       torch::stable::new_empty(like, {6}, ScalarType::Long)};
  PackedOut out = pointers(packed);
  pack_or_fail(bank, out);
  std::int64_t* layout = static_cast<std::int64_t*>(packed.layout.data_ptr());
  const std::int64_t values[6] = {kVersion, kernels().levels, out.exponent, out.unique, bank.count, bank.channels};
  std::copy_n(values, 6, layout);
  return packed;
}

Packed PackedTensors::view() const {
  const std::int64_t* values = static_cast<const std::int64_t*>(layout.data_ptr());
  PackedOut out = pointers(*this);
  out.exponent = static_cast<int>(values[2]);
  out.unique = values[3];
  return view_of(out, values[5]);
}

namespace {

bool is_plain(const Tensor& tensor, ScalarType type, std::int64_t numel) {
  return tensor.defined() && tensor.is_cpu() && tensor.scalar_type() == type && tensor.is_contiguous() &&
         tensor.numel() == numel;
}

// Whether the first `unique` columns name distinct rows of the bank in ascending order, and the other columns none.
bool names_rows(const std::int64_t* row, std::int64_t columns, std::int64_t unique, std::int64_t count) {
  std::int64_t before = -1;
  for (std::int64_t i = 0; i < columns; ++i) {
    if (i >= unique ? row[i] != -1 : row[i] <= before || row[i] >= count) return false;
    if (i < unique) before = row[i];
  }
  return true;
}

// Whether the norms, scales and residuals of all columns are numbers that packing can give. Others would make the
// comparison of candidates contradict itself.
bool are_bounds(const float* columns, std::int64_t panels, std::int64_t unique) {
  for (std::int64_t panel = 0; panel < panels; ++panel) {
    for (int j = 0; j < kColumns; ++j) {
      const float* const column = columns + panel * 4 * kColumns + j;
      const bool used = panel * kColumns + j < unique;
      if (used ? !std::isfinite(column[0]) || column[0] < 0 : !std::isinf(column[0])) return false;
      for (int part = 1; used && part < 4; ++part) {
        if (!(column[part * kColumns] >= 0)) return false;
      }
    }
  }
  return true;
}

}  // namespace

bool PackedTensors::usable(const Rows& bank) const {
  if (!is_plain(layout, ScalarType::Long, 6)) return false;
  const std::int64_t* values = static_cast<const std::int64_t*>(layout.data_ptr());
  const std::int64_t panels = panels_of(bank.count), unique = values[3];
  if (values[0] != kVersion || values[1] != kernels().levels || values[2] < -kLargestExponent ||
      values[2] > kLargestExponent || unique < 1 || unique > bank.count || values[4] != bank.count ||
      values[5] != bank.channels) {
    return false;
  }
  if (!is_plain(codes, ScalarType::Byte, panels * depth_of(bank.channels) * 4 * kColumns) ||
      !is_plain(columns, ScalarType::Float, panels * 4 * kColumns) ||
      !is_plain(centre, ScalarType::Double, bank.channels) || !is_plain(row, ScalarType::Long, panels * kColumns)) {
    return false;
  }
  const double* const middle = static_cast<const double*>(centre.data_ptr());
  return std::all_of(middle, middle + bank.channels, [](double c) { return std::isfinite(c); }) &&
         names_rows(static_cast<const std::int64_t*>(row.data_ptr()), panels * kColumns, unique, bank.count) &&
         are_bounds(static_cast<const float*>(columns.data_ptr()), panels, unique);
}

}  // namespace wscxr::search
