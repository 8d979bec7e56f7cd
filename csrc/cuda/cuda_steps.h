// The steps of a search on a CUDA device.
#pragma once

#include <memory>

#include "cuda_common.h"
#include "steps.h"

namespace wscxr {

// Steps on the device of `on`, with torch's current stream and torch's allocator.
std::unique_ptr<Steps> cuda_steps(const Tensor& on);

}  // namespace wscxr
