// Launch of the portable filter kernel, tile_minimum.h.
#include "cuda_common.h"
#include "tile_minimum.h"
#include "tile_minimum_cuda.h"

namespace wscxr {

namespace {

template <typename Sum>
void launch_tiles(const TileProblem& problem, cudaStream_t stream) {
  const std::int64_t blocks = tiles_of(problem.queries, kTileRows) * tiles_of(problem.bank_rows, kTileColumns);
  STD_TORCH_CHECK(blocks < (std::int64_t{1} << 31), "min_distance: too many tiles in one launch; use smaller blocks");
  check_cuda(cudaFuncSetAttribute(tile_minimum_kernel<Sum>, cudaFuncAttributeMaxDynamicSharedMemorySize, kTileShared),
             "shared memory of the filter kernel");
  tile_minimum_kernel<Sum><<<static_cast<unsigned>(blocks), kTileThreads, kTileShared, stream>>>(problem);
  check_cuda(cudaGetLastError(), "launch of the filter kernel");
}

}  // namespace

void launch_portable_tiles(const TileProblem& problem, bool int8, cudaStream_t stream) {
  if (int8) {
    launch_tiles<std::int32_t>(problem, stream);
  } else {
    launch_tiles<float>(problem, stream);
  }
}

}  // namespace wscxr
