#include <array>
#include <cstdio>
#include <vector>

#include "cuda_steps.h"
#include "kernel_steps.h"
#include "tile_minimum_cuda.h"

namespace wscxr {

namespace {

class CudaLauncher : public Steps {
 public:
  explicit CudaLauncher(const Tensor& on) : on_(on), stream_(current_stream(on)) {
    check_cuda(cudaDeviceGetAttribute(&major_, cudaDevAttrComputeCapabilityMajor, on.get_device_index()), "device");
    check_cuda(cudaDeviceGetAttribute(&minor_, cudaDevAttrComputeCapabilityMinor, on.get_device_index()), "device");
    STD_TORCH_CHECK(major_ >= 8, "monai_wscxr: the CUDA kernels need compute capability 8.0, this device has ", major_,
                    ".", minor_, "; build with MONAI_WSCXR_BUILD=cpu to use the torch reference on it");
  }

  Memory allocate(std::int64_t bytes) override {
    try {
      const auto tensor = std::make_shared<Tensor>(torch::stable::new_empty(on_, {bytes}, ScalarType::Byte));
      return Memory(tensor, tensor->data_ptr());
    } catch (const std::exception& error) {
      // Do not report an earlier asynchronous fault as a lack of memory.
      check_cuda(cudaGetLastError() == cudaErrorMemoryAllocation ? cudaSuccess : cudaPeekAtLastError(),
                 "before an allocation");
      throw OutOfMemory(error.what());
    }
  }

  std::int64_t free_bytes() override {
    std::size_t free = 0, total = 0;
    check_cuda(cudaMemGetInfo(&free, &total), "free memory");
    return static_cast<std::int64_t>(free);
  }

  void zero(void* to, std::int64_t bytes) override {
    check_cuda(cudaMemsetAsync(to, 0, static_cast<std::size_t>(bytes), stream_), "zeros");
  }

  void fetch(void* to, const void* from, std::int64_t bytes) override {
    check_cuda(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToHost, stream_), "copy");
    check_cuda(cudaStreamSynchronize(stream_), "the kernels of the search");
  }

  void warn(const std::string& message) override { std::fprintf(stderr, "monai_wscxr: %s\n", message.c_str()); }

  void tile_minimum(const TileProblem& problem, Kernel kernel) override {
    if (kernel == Kernel::kHopperHalf || kernel == Kernel::kHopperInt8) {
      const char* const reason = hopper_unavailable(major_, minor_);
      STD_TORCH_CHECK(reason == nullptr, "monai_wscxr: MONAI_WSCXR_CUDA_KERNEL selects the Hopper kernel, but ",
                      reason);
      launch_hopper_tiles(problem, kernel == Kernel::kHopperInt8, stream_);
    } else {
      launch_portable_tiles(problem, kernel == Kernel::kInt8, stream_);
    }
  }

  void order_descending(const float* values, std::int64_t count, std::int64_t* order) override {
    const std::array<std::int64_t, 1> sizes{count}, strides{1};
    const Tensor tensor = torch::stable::from_blob(const_cast<float*>(values), {sizes.data(), 1}, {strides.data(), 1},
                                                   on_.device(), ScalarType::Float);
    // sort.stable(Tensor self, *, bool? stable, int dim, bool descending) -> (values, indices)
    std::array<StableIValue, 4> stack{torch::stable::detail::from(tensor),
                                      torch::stable::detail::from(std::optional<bool>(true)),
                                      torch::stable::detail::from(std::int64_t{0}), torch::stable::detail::from(true)};
    STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
    const Tensor sorted = torch::stable::detail::to<Tensor>(stack[0]);  // takes ownership: frees it
    const Tensor indices = torch::stable::detail::to<Tensor>(stack[1]);
    check_cuda(cudaMemcpyAsync(order, indices.data_ptr(), static_cast<std::size_t>(count) * sizeof(std::int64_t),
                               cudaMemcpyDeviceToDevice, stream_),
               "copy of an order");
  }

  template <typename... Parameters, typename... Arguments>
  void launch(void (*kernel)(Parameters...), std::int64_t blocks, int threads, std::int64_t shared_bytes,
              const Arguments&... arguments) {
    STD_TORCH_CHECK(blocks > 0 && blocks < (std::int64_t{1} << 31), "monai_wscxr: a launch of ", blocks, " blocks");
    kernel<<<static_cast<unsigned>(blocks), threads, static_cast<std::size_t>(shared_bytes), stream_>>>(
        static_cast<Parameters>(arguments)...);
    check_cuda(cudaGetLastError(), "launch of a kernel");
  }

 private:
  Tensor on_;
  cudaStream_t stream_;
  int major_ = 0, minor_ = 0;
};

}  // namespace

std::unique_ptr<Steps> cuda_steps(const Tensor& on) { return std::make_unique<KernelSteps<CudaLauncher>>(on); }

}  // namespace wscxr
