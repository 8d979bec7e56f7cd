// Philox4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011), the random stream of `mixup`.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define WSCXR_HOST_DEVICE __host__ __device__
#else
#define WSCXR_HOST_DEVICE
#endif

namespace wscxr {

struct PhiloxWords {
  std::uint32_t w[4];
};

WSCXR_HOST_DEVICE inline PhiloxWords philox(std::uint64_t counter, std::uint64_t key) {
  std::uint32_t c0 = static_cast<std::uint32_t>(counter), c1 = static_cast<std::uint32_t>(counter >> 32), c2 = 0,
                c3 = 0;
  std::uint32_t k0 = static_cast<std::uint32_t>(key), k1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = static_cast<std::uint64_t>(c0) * 0xD2511F53u;
    const std::uint64_t p1 = static_cast<std::uint64_t>(c2) * 0xCD9E8D57u;
    const std::uint32_t n0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const std::uint32_t n2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<std::uint32_t>(p1);
    c3 = static_cast<std::uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// floor(u * n / 2^64): an index below n from a 64-bit random number, by multiplication of 32-bit limbs.
WSCXR_HOST_DEVICE inline std::uint64_t index_below(std::uint64_t u, std::uint64_t n) {
  const std::uint64_t u0 = u & 0xFFFFFFFFu, u1 = u >> 32, n0 = n & 0xFFFFFFFFu, n1 = n >> 32;
  const std::uint64_t low = u0 * n0, cross0 = u1 * n0, cross1 = u0 * n1;
  const std::uint64_t carry = (low >> 32) + (cross0 & 0xFFFFFFFFu) + (cross1 & 0xFFFFFFFFu);
  return u1 * n1 + (cross0 >> 32) + (cross1 >> 32) + (carry >> 32);
}

}  // namespace wscxr
