// Kernels that mix one row, Eq. 6: mixed = a * abnormal + b * normal, with products and sums rounded separately.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

#include "common.h"

namespace wscxr::mixing {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Mixes `channels` numbers. With `past_caches`, the result may be written to memory without passing through the caches.
template <typename T, typename Compute>
using MixRow = void (*)(const T* normal, const T* abnormal, T* mixed, std::int64_t channels, Compute a, Compute b,
                        bool past_caches);

// The kernels of one instruction set.
struct RowKernels {
  MixRow<float, float> for_float;
  MixRow<Half, float> for_half;
  MixRow<BFloat16, float> for_bfloat16;
};

#ifdef WSCXR_X86
extern const RowKernels kAvx2;    // with F16C
extern const RowKernels kAvx512;  // F, BW and VL
#endif

}  // namespace wscxr::mixing
