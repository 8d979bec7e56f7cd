// The steps of a search on the device of a tensor, on torch's current stream and with torch's memory.
#pragma once

#include <memory>

#include "cuda_common.h"
#include "steps.h"

namespace wscxr {

std::unique_ptr<Steps> cuda_steps(const Tensor& on);

}  // namespace wscxr
