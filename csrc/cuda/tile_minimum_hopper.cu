#include "tile_minimum_cuda.h"

namespace wscxr {

const char* hopper_tiles_missing(int, int) { return "it was not built"; }
void launch_hopper_tiles(const TileProblem&, bool, cudaStream_t) {}

}  // namespace wscxr
