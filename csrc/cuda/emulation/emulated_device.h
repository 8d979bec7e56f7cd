// The device instructions of device.h on the host. Every thread of a block is a fiber, see machine.h.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace wscxr::dev {

// Value that a lane contributes to a warp-wide instruction.
struct LaneValue {
  alignas(16) unsigned char bytes[64];
};

int thread();
std::int64_t block();
std::int64_t blocks();
unsigned char* shared();
void sync_block();
// Wait until all 32 lanes have reached an instruction of the same kind, and return the values of all of them.
const LaneValue* exchange(int kind, const LaneValue& own);
void copy_async(void* to, const void* from, bool valid);
void copy_commit();
void copy_wait_for(int pending);
void load_matrices(std::uint32_t (&to)[4], const void* row);
void multiply_add(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1);
void multiply_add(std::int32_t (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1);

template <int kPending>
void copy_wait() {
  copy_wait_for(kPending);
}

template <typename T>
T shuffle(T value, int lane) {
  LaneValue own;
  std::memcpy(own.bytes, &value, sizeof(T));
  std::memcpy(&value, exchange(1, own)[lane].bytes, sizeof(T));
  return value;
}

template <typename T>
T shuffle_xor(T value, int mask) {
  LaneValue own;
  std::memcpy(own.bytes, &value, sizeof(T));
  std::memcpy(&value, exchange(2, own)[(thread() % 32) ^ mask].bytes, sizeof(T));
  return value;
}

inline std::uint32_t ballot(bool vote) {
  LaneValue own;
  own.bytes[0] = vote;
  const LaneValue* all = exchange(3, own);
  std::uint32_t bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= static_cast<std::uint32_t>(all[lane].bytes[0]) << lane;
  return bits;
}

inline int lowest_bit(std::uint32_t bits) { return __builtin_ffs(static_cast<int>(bits)) - 1; }
inline int count_bits(std::uint32_t bits) { return __builtin_popcount(bits); }

// Only one fiber runs at a time.
inline void atomic_max(unsigned long long* address, unsigned long long value) {
  if (value > *address) *address = value;
}
inline void atomic_add(unsigned long long* address, unsigned long long value) { *address += value; }

inline std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
inline float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline unsigned long long bits_of(double value) {
  unsigned long long bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

using Half = torch::headeronly::Half;
using BFloat16 = torch::headeronly::BFloat16;
inline float to_float(Half value) { return static_cast<float>(value); }
inline float to_float(BFloat16 value) { return static_cast<float>(value); }
inline Half to_half(float value) { return Half(value); }
inline BFloat16 to_bfloat16(float value) { return BFloat16(value); }

// Rounded separately because the emulation is built with -ffp-contract=off.
inline float multiply_rounded(float a, float b) { return a * b; }
inline double multiply_rounded(double a, double b) { return a * b; }
inline float add_rounded(float a, float b) { return a + b; }
inline double add_rounded(double a, double b) { return a + b; }

}  // namespace wscxr::dev
