#include "packed_bank.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>

namespace wscxr::search {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

constexpr std::int64_t kVersion = 1;

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

bool PackedTensors::usable(const Rows& bank) const {
  if (layout.numel() != 6) return false;
  const std::int64_t* values = static_cast<const std::int64_t*>(layout.data_ptr());
  const std::int64_t panels = panels_of(bank.count);
  if (values[0] != kVersion || values[1] != kernels().levels || values[3] < 1 || values[3] > bank.count ||
      values[4] != bank.count || values[5] != bank.channels ||
      codes.numel() != panels * depth_of(bank.channels) * 4 * kColumns || columns.numel() != panels * 4 * kColumns ||
      centre.numel() != bank.channels || row.numel() != panels * kColumns) {
    return false;
  }
  const std::int64_t* rows = static_cast<const std::int64_t*>(row.data_ptr());
  for (std::int64_t i = 0; i < panels * kColumns; ++i) {
    if (rows[i] < -1 || rows[i] >= bank.count) return false;
  }
  return true;
}

}  // namespace wscxr::search
