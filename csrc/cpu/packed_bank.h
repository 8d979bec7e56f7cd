// Tensors as rows and packed banks: what the search operators share.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "search.h"

namespace wscxr::search {

// Stops with a message that counts the rows holding NaN or Inf.
void check_finite(const Rows& rows, const char* name);

// Packed form of a bank that one call makes and uses.
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

// Packed form of a bank as tensors. `layout` holds version, levels, exponent, columns in use, bank rows and channels.
struct PackedTensors {
  torch::stable::Tensor codes, columns, centre, row, layout;
  Packed view() const;
  // Whether it was packed from a bank of this shape for the instruction set that runs here.
  bool usable(const Rows& bank) const;
};
PackedTensors pack_rows(const Rows& bank, const torch::stable::Tensor& like);

// Calls `use` with these tensors, or with the bank packed anew where they do not fit it.
template <typename Use>
auto with_packed(const PackedTensors& tensors, const Rows& bank, Use use) {
  if (tensors.usable(bank)) return use(tensors.view());
  const PackedArrays anew(bank);
  return use(anew.view());
}

}  // namespace wscxr::search
