// Launchers of the filter kernels, each compiled in a file of its own.
#pragma once

#include <cuda_runtime.h>

#include "problems.h"

namespace wscxr {

// Any device from compute capability 8.0 on.
void launch_portable_tiles(const TileProblem& problem, bool whole, cudaStream_t stream);

// Compute capability 9.0 with the CUTLASS kernels compiled in; says why not otherwise, null where it can run.
const char* hopper_tiles_missing(int major, int minor);
void launch_hopper_tiles(const TileProblem& problem, bool whole, cudaStream_t stream);
// Whether CUTLASS lays the sums out over the threads as the epilogue takes them to be; asked on the host.
bool hopper_layout_is_as_assumed();

}  // namespace wscxr
