// The device instructions that the kernels are written in. nvcc maps them to the hardware. The host compiler maps them
// to emulation/emulated_device.h, so that the tests run the same kernel sources, slowly, without a GPU. Host code of
// the shipped module must not include this header.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define WSCXR_DEVICE __device__ __forceinline__
#define WSCXR_KERNEL(threads) __global__ void __launch_bounds__(threads, 1)
#define WSCXR_UNROLL _Pragma("unroll")
#elif defined(WSCXR_EMULATION)
#include "emulation/emulated_device.h"
#define WSCXR_DEVICE inline
#define WSCXR_KERNEL(threads) void
#define WSCXR_UNROLL
#else
#error "kernels are compiled by nvcc, or by the host compiler with WSCXR_EMULATION defined"
#endif

namespace wscxr {

constexpr int kWarp = 32;

struct alignas(16) Bytes16 {
  std::uint32_t word[4];
};

#if defined(__CUDACC__)
namespace dev {

WSCXR_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
WSCXR_DEVICE std::int64_t block() { return blockIdx.x; }
WSCXR_DEVICE std::int64_t blocks() { return gridDim.x; }

WSCXR_DEVICE unsigned char* shared() {
  extern __shared__ __align__(128) unsigned char wscxr_shared[];
  return wscxr_shared;
}

WSCXR_DEVICE void sync_block() { __syncthreads(); }

template <typename T>
WSCXR_DEVICE T shuffle(T value, int lane) {
  return __shfl_sync(0xFFFFFFFFu, value, lane);
}

template <typename T>
WSCXR_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xFFFFFFFFu, value, mask);
}

WSCXR_DEVICE std::uint32_t ballot(bool vote) { return __ballot_sync(0xFFFFFFFFu, vote); }
WSCXR_DEVICE int lowest_bit(std::uint32_t bits) { return __ffs(static_cast<int>(bits)) - 1; }
WSCXR_DEVICE int count_bits(std::uint32_t bits) { return __popc(bits); }

// Use atomics only where the order of the calls cannot change the result: maxima, flags and integer counts.
WSCXR_DEVICE void atomic_max(unsigned long long* address, unsigned long long value) { atomicMax(address, value); }
WSCXR_DEVICE void atomic_add(unsigned long long* address, unsigned long long value) { atomicAdd(address, value); }

WSCXR_DEVICE std::uint32_t bits_of(float value) { return __float_as_uint(value); }
WSCXR_DEVICE float float_of(std::uint32_t bits) { return __uint_as_float(bits); }
WSCXR_DEVICE unsigned long long bits_of(double value) {
  return static_cast<unsigned long long>(__double_as_longlong(value));
}

using Half = __half;
using BFloat16 = __nv_bfloat16;
WSCXR_DEVICE float to_float(Half value) { return __half2float(value); }
WSCXR_DEVICE float to_float(BFloat16 value) { return __bfloat162float(value); }
WSCXR_DEVICE Half to_half(float value) { return __float2half_rn(value); }
WSCXR_DEVICE BFloat16 to_bfloat16(float value) { return __float2bfloat16_rn(value); }

// Product and sum that are rounded separately: the compiler does not fuse these into one instruction.
WSCXR_DEVICE float multiply_rounded(float a, float b) { return __fmul_rn(a, b); }
WSCXR_DEVICE double multiply_rounded(double a, double b) { return __dmul_rn(a, b); }
WSCXR_DEVICE float add_rounded(float a, float b) { return __fadd_rn(a, b); }
WSCXR_DEVICE double add_rounded(double a, double b) { return __dadd_rn(a, b); }

// Copy 16 bytes from global to shared memory asynchronously. If `valid` is false, the source is not read and zeros are
// written.
WSCXR_DEVICE void copy_async(void* to, const void* from, bool valid) {
  const std::uint32_t address = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(from), "r"(bytes) : "memory");
}
WSCXR_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Wait until at most `kPending` committed groups of this thread are unfinished.
template <int kPending>
WSCXR_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Load four 8 x 8 matrices of 16-bit elements; lanes 8 m to 8 m + 7 give the row addresses of matrix m.
WSCXR_DEVICE void load_matrices(std::uint32_t (&to)[4], const void* row) {
  const std::uint32_t address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

// d += a b with a [16, 16] half, b [16, 8] half, d [16, 8] float.
WSCXR_DEVICE void multiply_add(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d += a b with a [16, 32] int8, b [32, 8] int8, d [16, 8] int32.
WSCXR_DEVICE void multiply_add(std::int32_t (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace dev
#endif

}  // namespace wscxr
