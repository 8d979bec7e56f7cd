// Packed banks as arrays and as tensors, for the search operators.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "search.h"

namespace wscxr::search {

// Raise an error with the number of affected rows if any row holds NaN or Inf.
void check_finite(const Rows& rows, const char* name);

// Packed bank for the duration of one call.
class PackedArrays {
 public:
  explicit PackedArrays(const Rows& bank);
  const Packed& view() const { return view_; }

 private:
  Array<std::uint8_t> codes_;
  Array<float> columns_;
  Array<double> centre_;
  Array<std::int64_t> row_;
  Packed view_;
};

// Packed bank as tensors. `layout` holds version, levels, exponent, columns in use, bank rows and channels.
struct PackedTensors {
  torch::stable::Tensor codes, columns, centre, row, layout;
  Packed view() const;
  // Whether it was packed from a bank of this shape, for the instruction set in use, and holds numbers that packing
  // can give. Whether they belong to the rows is not checked.
  bool usable(const Rows& bank) const;
};
PackedTensors pack_rows(const Rows& bank, const torch::stable::Tensor& like);

// Call `use` with these tensors, or pack the bank again if they do not match it.
template <typename Use>
auto with_packed(const PackedTensors& tensors, const Rows& bank, Use use) {
  if (tensors.usable(bank)) return use(tensors.view());
  const PackedArrays repacked(bank);
  return use(repacked.view());
}

}  // namespace wscxr::search
