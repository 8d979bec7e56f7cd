// Launch functions of the filter kernels.
#pragma once

#include <cuda_runtime.h>

#include "problems.h"

namespace wscxr {

// Compute capability 8.0 and later.
void launch_portable_tiles(const TileProblem& problem, bool int8, cudaStream_t stream);

// Compute capability 9.0, if built with CUTLASS. hopper_unavailable returns the reason why the kernel cannot run, or
// null if it can.
const char* hopper_unavailable(int major, int minor);
void launch_hopper_tiles(const TileProblem& problem, bool int8, cudaStream_t stream);
// Check, on the host, that CUTLASS distributes the sums over the threads as the epilogue assumes.
bool hopper_layout_is_as_assumed();

}  // namespace wscxr
