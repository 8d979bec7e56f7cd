// The device instructions of device.h on the host. Every thread of a block is a fiber; barriers, shuffles and matrix
// products meet in emulation.cpp, which reports a barrier that some threads miss. Copies in the background happen as
// late as the program allows, and memory that nothing has written holds NaN, so that a wait that is missing shows.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace wscxr::dev {

// What a lane hands to the other lanes of its warp at a collective instruction.
struct Handed {
  alignas(16) unsigned char bytes[64];
};

int thread();
int threads();
std::int64_t block();
std::int64_t blocks();
std::int64_t block_y();
unsigned char* shared();
void sync_block();
// Waits until all 32 lanes have come with the same kind of instruction; returns what each of them handed.
const Handed* exchange(int kind, const Handed& mine);
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
  Handed mine;
  std::memcpy(mine.bytes, &value, sizeof(T));
  std::memcpy(&value, exchange(1, mine)[lane].bytes, sizeof(T));
  return value;
}

template <typename T>
T shuffle_xor(T value, int mask) {
  Handed mine;
  std::memcpy(mine.bytes, &value, sizeof(T));
  std::memcpy(&value, exchange(2, mine)[(thread() % 32) ^ mask].bytes, sizeof(T));
  return value;
}

inline std::uint32_t ballot(bool vote) {
  Handed mine;
  mine.bytes[0] = vote;
  const Handed* all = exchange(3, mine);
  std::uint32_t bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= static_cast<std::uint32_t>(all[lane].bytes[0]) << lane;
  return bits;
}

inline int lowest_bit(std::uint32_t bits) { return __builtin_ffs(static_cast<int>(bits)) - 1; }
inline int count_bits(std::uint32_t bits) { return __builtin_popcount(bits); }

inline void atomic_max(unsigned long long* place, unsigned long long value) {
  if (value > *place) *place = value;
}
inline void atomic_add(unsigned long long* place, unsigned long long value) { *place += value; }

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

}  // namespace wscxr::dev
