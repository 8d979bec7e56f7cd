// Filter kernel for compute capability 9.0: CUTLASS's warp-specialised product (one producer warp with bulk copies, two
// consumer warp groups, a bank tile shared by a cluster of two) with a custom epilogue that keeps the two smallest
// values per query and group in registers and writes only these. It has been compiled but not run yet, so it is never
// selected automatically, only by MONAI_WSCXR_CUDA_KERNEL=hopper or hopper-int8.
#include "tile_minimum_cuda.h"

#if defined(WSCXR_WITH_CUTLASS)

#include <cutlass/cutlass.h>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/kernel_hardware_info.h>

#include <cute/tensor.hpp>
#include <cutlass/epilogue/collective/detail.hpp>
#include <cutlass/epilogue/dispatch_policy.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>
#include <cutlass/gemm/kernel/tile_scheduler.hpp>
#include <cutlass/util/packed_stride.hpp>

#include "cuda_common.h"
#include "tile_minimum.h"

namespace wscxr {

namespace {

// Accumulator i of a thread in a 64 x 256 product of one warp group is row 16 warp + 8 h + lane / 4 and column
// 8 j + 2 (lane % 4) + k with i = k + 2 h + 4 j: four lanes share a row, as in the portable kernel.
constexpr int kHopperSums = 128;

__host__ __device__ constexpr int sum_row(int thread, int i) {
  return thread / 128 * 64 + thread % 128 / 32 * 16 + i / 2 % 2 * 8 + thread % 32 / 4;
}
__host__ __device__ constexpr int sum_column(int thread, int i) { return i / 4 * 8 + thread % 4 * 2 + i % 2; }

// Epilogue without shared memory, with the interface of CUTLASS's default epilogue.
template <typename Sum>
class MinimaEpilogue {
 public:
  using EpilogueSchedule = cutlass::epilogue::NoSmemWarpSpecialized;
  using DispatchPolicy = EpilogueSchedule;
  using ElementAccumulator = Sum;
  using ElementCompute = float;
  using ElementScalar = float;
  using ElementOutput = float;
  using ElementC = float;
  using ElementD = float;
  using StrideC = cute::Stride<int64_t, cute::Int<1>, int64_t>;
  using StrideD = StrideC;
  using GmemTiledCopyC = void;
  using GmemTiledCopyD = void;
  static const int kOutputAlignment = 1;
  struct ThreadEpilogueOp {
    using ElementAccumulator = Sum;
    using ElementCompute = float;
    using ElementScalar = float;
    using ElementOutput = float;
    using ElementC = float;
    using ElementD = float;
    static const int kCount = 1;
  };
  struct SharedStorage {};
  using TensorStorage = SharedStorage;
  struct Arguments {
    TileProblem problem;
  };
  using Params = Arguments;

  template <class ProblemShape>
  static constexpr Params to_underlying_arguments(const ProblemShape&, const Arguments& arguments, void*) {
    return arguments;
  }
  template <class ProblemShape>
  static size_t get_workspace_size(const ProblemShape&, const Arguments&) {
    return 0;
  }
  template <class ProblemShape>
  static cutlass::Status initialize_workspace(const ProblemShape&, const Arguments&, void*, cudaStream_t,
                                              cutlass::CudaHostAdapter* = nullptr) {
    return cutlass::Status::kSuccess;
  }
  template <class ProblemShape>
  static bool can_implement(const ProblemShape&, const Arguments&) {
    return true;
  }

  CUTLASS_HOST_DEVICE MinimaEpilogue(const Params& given, const SharedStorage& = SharedStorage()) : params(given) {}
  CUTLASS_DEVICE bool is_source_needed() { return false; }

  template <class ProblemShape, class BlockShape, class BlockCoordinate, class Engine, class Layout, class TiledMma,
            class Residue>
  CUTLASS_DEVICE void operator()(ProblemShape, BlockShape, BlockCoordinate block,
                                 const cute::Tensor<Engine, Layout>& sums, TiledMma, Residue, int thread, char*) {
    static_assert(cute::is_static<Layout>::value && decltype(cute::size(sums))::value == kHopperSums);
    static_assert(cute::size<0>(BlockShape{}) == kTileRows && cute::size<1>(BlockShape{}) == kTileColumns);
    constexpr bool kInt8 = cute::is_same_v<Sum, std::int32_t>;
    const TileProblem& p = params.problem;
    const std::int64_t first_row = static_cast<std::int64_t>(cute::get<0>(block)) * kTileRows;
    const std::int64_t first_column = static_cast<std::int64_t>(cute::get<1>(block)) * kTileColumns;
    // A cluster covers two row tiles and may extend past the last one. All lanes of a warp return together.
    if (first_row >= p.queries || first_column >= p.bank_rows) return;
    WSCXR_UNROLL
    for (int g = 0; g < kTileColumns / kGroup; ++g) {
      WSCXR_UNROLL
      for (int h = 0; h < 2; ++h) {
        const std::int64_t row = first_row + sum_row(thread, 2 * h);
        const float query_scale = kInt8 && row < p.queries ? p.query_scale[row] : 0;
        Minima minima{kPadding, kPadding};
        WSCXR_UNROLL
        for (int j = 0; j < kGroup / 8; ++j) {
          const std::int64_t column = first_column + sum_column(thread, 4 * (g * (kGroup / 8) + j));
          const float2 squared = *reinterpret_cast<const float2*>(p.bank_squared + column);
          const float2 scale =
              kInt8 ? *reinterpret_cast<const float2*>(p.bank_scale + column) : make_float2(0.0f, 0.0f);
          WSCXR_UNROLL
          for (int k = 0; k < 2; ++k) {
            const Sum sum = sums(4 * (g * (kGroup / 8) + j) + 2 * h + k);
            const float t = filter_value(sum, k ? squared.y : squared.x, query_scale, k ? scale.y : scale.x);
            insert_minimum(minima, pack_minimum(t, 8 * j + 2 * (thread % 4) + k));
          }
        }
        WSCXR_UNROLL
        for (int mask = 1; mask <= 2; mask *= 2) {
          const float first = dev::shuffle_xor(minima.first, mask), second = dev::shuffle_xor(minima.second, mask);
          merge_minima(minima, first, second);
        }
        const std::int64_t group = first_column / kGroup + g;
        if (thread % 4 == 0 && row < p.queries && group < p.groups) p.minima[row * p.groups + group] = minima;
      }
    }
  }

 private:
  Params params;
};

template <bool kInt8>
struct Hopper {
  using Element = cute::conditional_t<kInt8, std::int8_t, cutlass::half_t>;
  using Sum = cute::conditional_t<kInt8, std::int32_t, float>;
  using Tile = cute::Shape<cute::Int<kTileRows>, cute::Int<kTileColumns>, cute::Int<128 / sizeof(Element)>>;
  using Cluster = cute::Shape<cute::_2, cute::_1, cute::_1>;
  using Epilogue = cutlass::epilogue::collective::detail::Sm90TmaWarpSpecializedAdapter<MinimaEpilogue<Sum>>;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Element, cutlass::layout::RowMajor, 16 / sizeof(Element),
      Element, cutlass::layout::ColumnMajor, 16 / sizeof(Element), Sum, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename Epilogue::TensorStorage))>,
      cutlass::gemm::KernelTmaWarpSpecializedCooperative>::CollectiveOp;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, Mainloop, Epilogue,
                                                      cutlass::gemm::PersistentScheduler>;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;
  using Mma = typename Mainloop::TiledMma;

  static void launch(const TileProblem& p, cudaStream_t stream) {
    const int rows = static_cast<int>(p.queries), columns = static_cast<int>(p.bank_rows);
    const int depth = static_cast<int>(p.row_bytes / static_cast<std::int64_t>(sizeof(Element)));
    typename Gemm::Arguments arguments;
    arguments.mode = cutlass::gemm::GemmUniversalMode::kGemm;
    arguments.problem_shape = {rows, columns, depth, 1};
    arguments.mainloop.ptr_A = reinterpret_cast<const Element*>(p.query);
    arguments.mainloop.dA =
        cutlass::make_cute_packed_stride(typename Gemm::GemmKernel::StrideA{}, cute::make_shape(rows, depth, 1));
    arguments.mainloop.ptr_B = reinterpret_cast<const Element*>(p.bank);
    arguments.mainloop.dB =
        cutlass::make_cute_packed_stride(typename Gemm::GemmKernel::StrideB{}, cute::make_shape(columns, depth, 1));
    arguments.epilogue.problem = p;
    int device = 0;
    check_cuda(cudaGetDevice(&device), "device of the Hopper kernel");
    arguments.hw_info.device_id = device;
    arguments.hw_info.sm_count = cutlass::KernelHardwareInfo::query_device_multiprocessor_count(device);
    arguments.scheduler.max_swizzle_size = 8;
    STD_TORCH_CHECK(Gemm::get_workspace_size(arguments) == 0, "monai_wscxr: the Hopper kernel needs a workspace");
    STD_TORCH_CHECK(Gemm::can_implement(arguments) == cutlass::Status::kSuccess,
                    "monai_wscxr: the Hopper kernel does not support this problem");
    Gemm gemm;
    STD_TORCH_CHECK(gemm.initialize(arguments, nullptr, stream) == cutlass::Status::kSuccess,
                    "monai_wscxr: the Hopper kernel could not be set up");
    STD_TORCH_CHECK(gemm.run(stream) == cutlass::Status::kSuccess, "monai_wscxr: launch of the Hopper kernel");
    check_cuda(cudaGetLastError(), "launch of the Hopper kernel");
  }

  // Compare the position of every accumulator of every thread, according to CuTe, with sum_row and sum_column.
  static bool layout_is_as_assumed() {
    bool same = cute::size(Mma{}) == kTileThreads;
    const auto tile = cute::make_identity_tensor(cute::Shape<cute::Int<kTileRows>, cute::Int<kTileColumns>>{});
    for (int thread = 0; thread < kTileThreads && same; ++thread) {
      const auto mine = Mma{}.get_slice(thread).partition_C(tile);
      if (static_cast<int>(cute::size(mine)) != kHopperSums) return false;
      for (int i = 0; i < kHopperSums; ++i) {
        same = same && static_cast<int>(cute::get<0>(mine(i))) == sum_row(thread, i) &&
               static_cast<int>(cute::get<1>(mine(i))) == sum_column(thread, i);
      }
    }
    return same;
  }
};

}  // namespace

const char* hopper_unavailable(int major, int minor) {
  return major == 9 && minor == 0 ? nullptr : "the device does not have compute capability 9.0";
}

void launch_hopper_tiles(const TileProblem& problem, bool int8, cudaStream_t stream) {
  if (int8) {
    Hopper<true>::launch(problem, stream);
  } else {
    Hopper<false>::launch(problem, stream);
  }
}

bool hopper_layout_is_as_assumed() {
  return Hopper<false>::layout_is_as_assumed() && Hopper<true>::layout_is_as_assumed();
}

}  // namespace wscxr

#else

namespace wscxr {

const char* hopper_unavailable(int, int) {
  return "the extension was built without the CUTLASS headers (pip install --no-deps nvidia-cutlass==4.2.0.0, or set "
         "CUTLASS_HOME)";
}
void launch_hopper_tiles(const TileProblem&, bool, cudaStream_t) {}
bool hopper_layout_is_as_assumed() { return true; }

}  // namespace wscxr

#endif
