// Emulated GPU: runs the blocks of a kernel one after another on the host, every thread of a block as a fiber.
//
// The machine makes errors in a kernel visible. Blocks and threads run in shuffled orders. Asynchronous copies complete
// as late as the program allows. Memory that has not been written holds NaN. A barrier or a warp instruction that some
// threads never reach is an error, and so are lanes of a warp that meet at different instructions.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace wscxr::emulation {

constexpr unsigned char kPoison = 0xFF;  // fills unwritten memory: NaN in every floating-point type

class Machine {
 public:
  // `seed` determines the order of blocks and threads. `truncating` matrix units truncate sums, the worst behaviour
  // that the error bound of the filter allows for; otherwise they round.
  Machine(std::uint64_t seed, bool truncating);
  ~Machine();

  // Run `program` in every thread of every block. Throws std::logic_error if the program breaks a rule of the device.
  void run(const std::function<void()>& program, std::int64_t blocks, int threads, std::int64_t shared_bytes);

  struct State;

 private:
  std::unique_ptr<State> state_;
};

}  // namespace wscxr::emulation
