// A fiber runs until it has to wait for other threads; the scheduler then resumes the next one that can run.
#undef _FORTIFY_SOURCE  // its longjmp refuses to switch to another stack
#include "machine.h"

#if !defined(__linux__)
#error "the emulation uses ucontext, as provided by Linux"
#endif
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "device.h"

namespace wscxr {

namespace {

constexpr std::size_t kStackBytes = 128 << 10;
constexpr std::size_t kSharedBytes = 100 << 10;
constexpr std::uintptr_t kSharedAlignment = 128;

enum class Waiting { kNo, kAtBarrier, kAtExchange, kDone };

struct Copy {
  void* to;
  const void* from;
  bool valid;
};

struct Fiber {
  ucontext_t context;  // starts the fiber; later switches use the cheaper longjmp
  jmp_buf jump;
  bool started = false;
  std::unique_ptr<unsigned char[]> stack;
  Waiting waiting = Waiting::kNo;
  std::vector<Copy> issued;                  // asynchronous copies that are not committed yet
  std::vector<std::vector<Copy>> committed;  // groups of copies that the thread has not waited for yet
};

struct Warp {
  dev::LaneValue values[2][kWarp];  // of two exchanges in turn: slow lanes read one while fast lanes write the other
  int arrived = 0;
  int kind = 0;
  int phase = 0;
};

void fail(const char* what) { throw std::logic_error(std::string("emulated kernel: ") + what); }

}  // namespace

struct emulation::Machine::State {
  std::mt19937_64 random;
  bool truncating = true;
  std::function<void()> program;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<std::unique_ptr<unsigned char[]>> spare_stacks;
  std::unique_ptr<unsigned char[]> shared_store{new unsigned char[kSharedBytes + kSharedAlignment]};
  std::size_t shared_bytes = 0;
  std::int64_t block = 0, blocks = 0;
  int threads = 0, current = 0, at_barrier = 0, done = 0;
  jmp_buf scheduler;
  std::exception_ptr failure;

  unsigned char* shared() {
    const auto address = reinterpret_cast<std::uintptr_t>(shared_store.get());
    return shared_store.get() + (kSharedAlignment - address % kSharedAlignment) % kSharedAlignment;
  }

  void resize(int count) {
    while (fibers.size() < static_cast<std::size_t>(count)) {
      if (spare_stacks.empty()) spare_stacks.emplace_back(new unsigned char[kStackBytes]);
      fibers.emplace_back();
      fibers.back().stack = std::move(spare_stacks.back());
      spare_stacks.pop_back();
    }
    while (fibers.size() > static_cast<std::size_t>(count)) {
      spare_stacks.push_back(std::move(fibers.back().stack));
      fibers.pop_back();
    }
    warps.resize(static_cast<std::size_t>(count / kWarp));
    threads = count;
  }

  void run_block();
};

namespace {

thread_local emulation::Machine::State* machine = nullptr;  // the one that runs a kernel on this host thread

struct MachineScope {
  explicit MachineScope(emulation::Machine::State* state) { machine = state; }
  ~MachineScope() { machine = nullptr; }
};

Fiber& current_fiber() { return machine->fibers[static_cast<std::size_t>(machine->current)]; }

void wait(Waiting reason) {
  current_fiber().waiting = reason;
  if (_setjmp(current_fiber().jump) == 0) _longjmp(machine->scheduler, 1);
}

__attribute__((noinline)) void resume(emulation::Machine::State& m, Fiber& fiber) {
  if (_setjmp(m.scheduler) != 0) return;  // the fiber waits or is done
  if (fiber.started) _longjmp(fiber.jump, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

void enter_fiber() {
  try {
    machine->program();
  } catch (...) {
    if (!machine->failure) machine->failure = std::current_exception();
  }
  current_fiber().waiting = Waiting::kDone;
  _longjmp(machine->scheduler, 1);
}

}  // namespace

void emulation::Machine::State::run_block() {
  std::memset(shared(), kPoison, shared_bytes);
  at_barrier = done = 0;
  for (Warp& warp : warps) warp.arrived = warp.phase = 0;
  for (Fiber& fiber : fibers) {
    fiber.waiting = Waiting::kNo;
    fiber.started = false;
    fiber.issued.clear();
    fiber.committed.clear();
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter_fiber, 0);
  }
  std::vector<int> order(fibers.size());
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  while (done < threads) {
    bool progress = false;
    for (const int index : order) {
      Fiber& fiber = fibers[static_cast<std::size_t>(index)];
      if (fiber.waiting != Waiting::kNo) continue;
      progress = true;
      current = index;
      resume(*this, fiber);
      if (failure) std::rethrow_exception(failure);
      if (fiber.waiting == Waiting::kDone) ++done;
      if (fiber.waiting == Waiting::kAtBarrier && ++at_barrier == threads) {
        for (Fiber& other : fibers) other.waiting = Waiting::kNo;
        at_barrier = 0;
        std::shuffle(order.begin(), order.end(), random);
        break;
      }
    }
    if (!progress) fail("some threads wait at a barrier or a warp instruction that others never reach");
  }
}

emulation::Machine::Machine(std::uint64_t seed, bool truncating) : state_(std::make_unique<State>()) {
  state_->random.seed(seed);
  state_->truncating = truncating;
}

emulation::Machine::~Machine() = default;

void emulation::Machine::run(const std::function<void()>& program, std::int64_t blocks, int threads,
                             std::int64_t shared_bytes) {
  if (blocks < 1 || threads % kWarp != 0 || shared_bytes > static_cast<std::int64_t>(kSharedBytes)) {
    fail("a launch needs at least one block, whole warps and no more shared memory than the device has");
  }
  State& m = *state_;
  const MachineScope scope(&m);
  m.resize(threads);
  m.program = program;
  m.shared_bytes = static_cast<std::size_t>(shared_bytes);
  m.blocks = blocks;
  m.failure = nullptr;
  std::vector<std::int64_t> order(static_cast<std::size_t>(blocks));
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::shuffle(order.begin(), order.end(), m.random);
  for (const std::int64_t block : order) {
    m.block = block;
    m.run_block();
  }
}

namespace dev {

int thread() { return machine->current; }
std::int64_t block() { return machine->block; }
std::int64_t blocks() { return machine->blocks; }
unsigned char* shared() { return machine->shared(); }
void sync_block() { wait(Waiting::kAtBarrier); }

const LaneValue* exchange(int kind, const LaneValue& own) {
  Warp& warp = machine->warps[static_cast<std::size_t>(machine->current / kWarp)];
  const int phase = warp.phase;
  if (warp.arrived == 0) warp.kind = kind;
  if (warp.kind != kind) fail("the lanes of a warp meet at different instructions");
  warp.values[phase][machine->current % kWarp] = own;
  if (++warp.arrived == kWarp) {
    warp.arrived = 0;
    warp.phase = 1 - phase;
    const int first = machine->current / kWarp * kWarp;
    for (int lane = 0; lane < kWarp; ++lane) {
      Fiber& fiber = machine->fibers[static_cast<std::size_t>(first + lane)];
      if (fiber.waiting == Waiting::kAtExchange) fiber.waiting = Waiting::kNo;
    }
  } else {
    wait(Waiting::kAtExchange);
  }
  return warp.values[phase];
}

void copy_async(void* to, const void* from, bool valid) {
  if (reinterpret_cast<std::uintptr_t>(to) % 16 != 0 || reinterpret_cast<std::uintptr_t>(from) % 16 != 0) {
    fail("an asynchronous copy is not aligned to 16 bytes");
  }
  std::memset(to, emulation::kPoison, 16);  // a read before the wait gets NaN
  current_fiber().issued.push_back({to, from, valid});
}

void copy_commit() {
  current_fiber().committed.push_back(std::move(current_fiber().issued));
  current_fiber().issued.clear();
}

void copy_wait_for(int pending) {
  auto& groups = current_fiber().committed;
  while (groups.size() > static_cast<std::size_t>(pending)) {
    for (const Copy& copy : groups.front()) {
      if (copy.valid) {
        std::memcpy(copy.to, copy.from, 16);
      } else {
        std::memset(copy.to, 0, 16);
      }
    }
    groups.erase(groups.begin());
  }
}

void load_matrices(std::uint32_t (&to)[4], const void* row) {
  if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) fail("a matrix row is not aligned to 16 bytes");
  LaneValue own;
  std::memcpy(own.bytes, row, 16);  // before the other lanes arrive: the hardware may read as early
  const LaneValue* const all = exchange(4, own);
  const int lane = thread() % kWarp;
  for (int matrix = 0; matrix < 4; ++matrix) {
    std::memcpy(&to[matrix], all[8 * matrix + lane / 4].bytes + lane % 4 * 4, 4);
  }
}

namespace {

struct Fragments {
  std::uint32_t a[4];
  std::uint32_t b[2];
};

// Gather row `row` of a from the fragments of the lanes: 16 bytes from registers 0 or 1, then 16 from registers 2 or 3.
void row_of_a(const LaneValue* all, int row, unsigned char (&bytes)[32]) {
  for (int part = 0; part < 8; ++part) {  // of four bytes
    Fragments other;
    std::memcpy(&other, all[row % 8 * 4 + part % 4].bytes, sizeof(other));
    std::memcpy(bytes + 4 * part, &other.a[part / 4 * 2 + row / 8], 4);
  }
}

// Gather column `column` of b from the fragments of the lanes.
void column_of_b(const LaneValue* all, int column, unsigned char (&bytes)[32]) {
  for (int part = 0; part < 8; ++part) {
    Fragments other;
    std::memcpy(&other, all[column * 4 + part % 4].bytes, sizeof(other));
    std::memcpy(bytes + 4 * part, &other.b[part / 4], 4);
  }
}

// Add 16 products to a sum in two blocks of eight: products are exact, every addend is truncated 2^-23 below the
// leading digit of the largest one, and the sum of a block is truncated to float32. No matrix unit examined so far is
// less accurate.
float accumulate_truncating(float sum, const double* products) {
  for (int begin = 0; begin < 16; begin += 8) {
    double largest = std::fabs(static_cast<double>(sum));
    for (int i = 0; i < 8; ++i) largest = std::max(largest, std::fabs(products[begin + i]));
    if (largest == 0) continue;
    const double unit = std::ldexp(1.0, std::ilogb(largest) - 23);
    double total = std::trunc(sum / unit) * unit;
    for (int i = 0; i < 8; ++i) total += std::trunc(products[begin + i] / unit) * unit;
    float result = static_cast<float>(total);
    if (std::fabs(static_cast<double>(result)) > std::fabs(total)) result = std::nextafterf(result, 0.0f);
    sum = result;
  }
  return sum;
}

// Call combine(i, row of a, column of b) for each of the four sums that this lane holds.
template <typename Combine>
void for_each_sum(const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1, const Combine& combine) {
  LaneValue own;
  const Fragments fragments{{a[0], a[1], a[2], a[3]}, {b0, b1}};
  std::memcpy(own.bytes, &fragments, sizeof(fragments));
  const LaneValue* const all = exchange(5, own);
  const int lane = thread() % kWarp;
  unsigned char rows[2][32], columns[2][32];
  for (int i = 0; i < 2; ++i) {
    row_of_a(all, lane / 4 + 8 * i, rows[i]);
    column_of_b(all, lane % 4 * 2 + i, columns[i]);
  }
  for (int i = 0; i < 4; ++i) combine(i, rows[i / 2], columns[i % 2]);
}

}  // namespace

void multiply_add(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  for_each_sum(a, b0, b1, [&](int i, const unsigned char* row, const unsigned char* column) {
    double products[16], total = d[i];
    for (int k = 0; k < 16; ++k) {
      Half x, y;
      std::memcpy(&x, row + 2 * k, 2);
      std::memcpy(&y, column + 2 * k, 2);
      products[k] = static_cast<double>(to_float(x)) * static_cast<double>(to_float(y));
      total += products[k];
    }
    const bool truncate = machine->truncating && std::isfinite(total);
    d[i] = truncate ? accumulate_truncating(d[i], products) : static_cast<float>(total);
  });
}

void multiply_add(std::int32_t (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  for_each_sum(a, b0, b1, [&](int i, const unsigned char* row, const unsigned char* column) {
    std::int64_t total = d[i];
    for (int k = 0; k < 32; ++k) {
      total += static_cast<signed char>(row[k]) * static_cast<signed char>(column[k]);
    }
    if (total != static_cast<std::int32_t>(total)) fail("an integer sum overflows 32 bits");
    d[i] = static_cast<std::int32_t>(total);
  });
}

}  // namespace dev

}  // namespace wscxr
