// Blocks of threads as fibers on the host. One fiber runs until it waits for others; whoever waits for a barrier that
// not everyone reaches, or comes to it with another instruction, is an error that the run reports.
#undef _FORTIFY_SOURCE  // its longjmp refuses to jump to another stack
#include "emulation.h"

#if !defined(__linux__)
#error "the emulation of CUDA kernels uses ucontext of Linux"
#endif
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "kernel_steps.h"
#include "mixup.h"
#include "tile_minimum.h"

namespace wscxr {

namespace {

constexpr std::size_t kStackBytes = 128 << 10;
constexpr std::size_t kSharedBytes = 100 << 10;
constexpr unsigned char kPoison = 0xFF;  // NaN in every floating-point type

enum class State { kReady, kAtBarrier, kAtExchange, kDone };

struct Copy {
  void* to;
  const void* from;
  bool valid;
};

struct Fiber {
  ucontext_t context;  // to start with; later switches are jumps, which are quicker
  jmp_buf jump;
  bool started = false;
  std::unique_ptr<unsigned char[]> stack;
  State state = State::kReady;
  std::vector<Copy> open;                 // issued, not committed
  std::vector<std::vector<Copy>> groups;  // committed, not waited for
};

struct Warp {
  dev::Handed handed[2][kWarp];
  int arrived = 0;
  int kind = 0;
  int phase = 0;
};

struct Machine {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::unique_ptr<unsigned char[]> shared_store{new unsigned char[kSharedBytes + 128]};
  jmp_buf scheduler;
  std::function<void()> program;
  int current = 0, threads = 0, at_barrier = 0, done = 0;
  std::int64_t block = 0, blocks = 0;
  std::size_t shared_bytes = 0;
  bool truncating = true;
  std::exception_ptr failure;

  unsigned char* shared() {
    const auto address = reinterpret_cast<std::uintptr_t>(shared_store.get());
    return shared_store.get() + (128 - address % 128) % 128;
  }
};

thread_local Machine* machine = nullptr;

Fiber& self() { return machine->fibers[static_cast<std::size_t>(machine->current)]; }

void wait_as(State state) {
  self().state = state;
  if (_setjmp(self().jump) == 0) _longjmp(machine->scheduler, 1);
}

__attribute__((noinline)) void resume(Machine& m, Fiber& fiber) {
  if (_setjmp(m.scheduler) != 0) return;  // the fiber waits or is done
  if (fiber.started) _longjmp(fiber.jump, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

void fail(const char* what) { throw std::logic_error(std::string("emulated kernel: ") + what); }

void enter_fiber() {
  try {
    machine->program();
  } catch (...) {
    if (!machine->failure) machine->failure = std::current_exception();
  }
  self().state = State::kDone;
  _longjmp(machine->scheduler, 1);
}

void run_block(Machine& m, std::mt19937_64& random) {
  std::memset(m.shared(), kPoison, m.shared_bytes);
  m.at_barrier = m.done = 0;
  for (Warp& warp : m.warps) warp.arrived = warp.phase = 0;
  for (Fiber& fiber : m.fibers) {
    fiber.state = State::kReady;
    fiber.started = false;
    fiber.open.clear();
    fiber.groups.clear();
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter_fiber, 0);
  }
  std::vector<int> order(m.fibers.size());
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  while (m.done < m.threads) {
    bool moved = false;
    for (const int index : order) {
      Fiber& fiber = m.fibers[static_cast<std::size_t>(index)];
      if (fiber.state != State::kReady) continue;
      moved = true;
      m.current = index;
      resume(m, fiber);
      if (m.failure) std::rethrow_exception(m.failure);
      if (fiber.state == State::kDone) ++m.done;
      if (fiber.state == State::kAtBarrier && ++m.at_barrier == m.threads) {
        for (Fiber& other : m.fibers) other.state = State::kReady;
        m.at_barrier = 0;
        std::shuffle(order.begin(), order.end(), random);
        break;
      }
    }
    if (!moved) fail("some threads wait at a barrier or a warp instruction that others never reach");
  }
}

struct MachineScope {
  explicit MachineScope(Machine& m) { machine = &m; }
  ~MachineScope() { machine = nullptr; }
};

}  // namespace

namespace dev {

int thread() { return machine->current; }
int threads() { return machine->threads; }
std::int64_t block() { return machine->block; }
std::int64_t blocks() { return machine->blocks; }
std::int64_t block_y() { return 0; }
unsigned char* shared() { return machine->shared(); }
void sync_block() { wait_as(State::kAtBarrier); }

const Handed* exchange(int kind, const Handed& mine) {
  Warp& warp = machine->warps[static_cast<std::size_t>(machine->current / kWarp)];
  const int phase = warp.phase;
  if (warp.arrived == 0) warp.kind = kind;
  if (warp.kind != kind) fail("the lanes of a warp meet at different instructions");
  warp.handed[phase][machine->current % kWarp] = mine;
  if (++warp.arrived == kWarp) {
    warp.arrived = 0;
    warp.phase = 1 - phase;  // the others still read this phase while fast lanes write the next
    const int first = machine->current / kWarp * kWarp;
    for (int lane = 0; lane < kWarp; ++lane) {
      Fiber& fiber = machine->fibers[static_cast<std::size_t>(first + lane)];
      if (fiber.state == State::kAtExchange) fiber.state = State::kReady;
    }
  } else {
    wait_as(State::kAtExchange);
  }
  return warp.handed[phase];
}

void copy_async(void* to, const void* from, bool valid) {
  if (reinterpret_cast<std::uintptr_t>(to) % 16 != 0 || reinterpret_cast<std::uintptr_t>(from) % 16 != 0) {
    fail("a background copy is not aligned to 16 bytes");
  }
  std::memset(to, kPoison, 16);  // whoever reads before the wait gets this
  self().open.push_back({to, from, valid});
}

void copy_commit() {
  self().groups.push_back(std::move(self().open));
  self().open.clear();
}

void copy_wait_for(int pending) {
  auto& groups = self().groups;
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
  Handed mine;
  // the row is read now, as the hardware may
  std::memcpy(mine.bytes, row, 16);
  const Handed* const all = exchange(4, mine);
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

// Bytes of row `row` of a (two runs of 16 bytes: registers 0/1 and 2/3) or of column `column` of b.
void row_of_a(const Handed* all, int row, unsigned char (&bytes)[32]) {
  for (int part = 0; part < 8; ++part) {  // four bytes each
    Fragments other;
    std::memcpy(&other, all[row % 8 * 4 + part % 4].bytes, sizeof(other));
    std::memcpy(bytes + 4 * part, &other.a[part / 4 * 2 + row / 8], 4);
  }
}
void column_of_b(const Handed* all, int column, unsigned char (&bytes)[32]) {
  for (int part = 0; part < 8; ++part) {
    Fragments other;
    std::memcpy(&other, all[column * 4 + part % 4].bytes, sizeof(other));
    std::memcpy(bytes + 4 * part, &other.b[part / 4], 4);
  }
}

// sum + products in blocks of eight: exact products, all addends cut off 2^-23 below the largest one's leading digit,
// the sum cut off to float32. No matrix unit that has been looked at is worse than that.
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

template <typename Combine>
void for_each_output(const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1, const Combine& combine) {
  Handed mine;
  const Fragments fragments{{a[0], a[1], a[2], a[3]}, {b0, b1}};
  std::memcpy(mine.bytes, &fragments, sizeof(fragments));
  const Handed* const all = exchange(5, mine);
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
  for_each_output(a, b0, b1, [&](int i, const unsigned char* row, const unsigned char* column) {
    double products[16], total = d[i];
    for (int k = 0; k < 16; ++k) {
      __half x, y;
      std::memcpy(&x, row + 2 * k, 2);
      std::memcpy(&y, column + 2 * k, 2);
      products[k] = static_cast<double>(__half2float(x)) * static_cast<double>(__half2float(y));
      total += products[k];
    }
    d[i] =
        machine->truncating && std::isfinite(total) ? accumulate_truncating(d[i], products) : static_cast<float>(total);
  });
}

void multiply_add(std::int32_t (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  for_each_output(a, b0, b1, [&](int i, const unsigned char* row, const unsigned char* column) {
    std::int64_t total = d[i];
    for (int k = 0; k < 32; ++k) {
      total += static_cast<signed char>(row[k]) * static_cast<signed char>(column[k]);
    }
    if (total != static_cast<std::int32_t>(total)) fail("a sum of whole numbers leaves 32 bits");
    d[i] = static_cast<std::int32_t>(total);
  });
}

}  // namespace dev

namespace {

class EmulatedLauncher : public Steps {
 public:
  explicit EmulatedLauncher(const emulation::Settings& settings) : settings_(settings), random_(settings.seed) {
    machine_.truncating = settings.truncating;
  }

  emulation::Report report;

  Memory allocate(std::int64_t bytes) override {
    if (used_ + bytes > settings_.memory_bytes) {
      ++report.allocation_failures;
      throw OutOfMemory("the emulated device has no memory left");
    }
    used_ += bytes;
    void* const memory = std::aligned_alloc(256, static_cast<std::size_t>((bytes + 511) / 256 * 256));
    std::memset(memory, kPoison, static_cast<std::size_t>(bytes));
    return Memory(memory, [this, bytes](void* old) {
      used_ -= bytes;
      std::free(old);
    });
  }
  std::int64_t free_bytes() override { return settings_.memory_bytes - used_; }
  void zero(void* to, std::int64_t bytes) override { std::memset(to, 0, static_cast<std::size_t>(bytes)); }
  void fetch(void* to, const void* from, std::int64_t bytes) override {
    std::memcpy(to, from, static_cast<std::size_t>(bytes));
  }
  void say(const std::string&) override {}

  void tile_minimum(const TileProblem& problem, Kernel kernel) override {
    ++report.tiles;
    report.pairs += problem.queries * problem.bank_rows;
    const std::int64_t blocks = tiles_of(problem.queries, kTileRows) * tiles_of(problem.bank_rows, kTileColumns);
    if (kernel == Kernel::kWhole || kernel == Kernel::kHopperWhole) {
      launch(tile_minimum_kernel<std::int32_t>, blocks, kTileThreads, kTileShared, problem);
    } else {
      launch(tile_minimum_kernel<float>, blocks, kTileThreads, kTileShared, problem);
    }
  }

  void order_descending(const float* values, std::int64_t count, std::int64_t* order) override {
    std::iota(order, order + count, std::int64_t{0});
    std::stable_sort(order, order + count, [&](std::int64_t x, std::int64_t y) { return values[x] > values[y]; });
  }

  template <typename... Parameters, typename... Arguments>
  void launch(void (*kernel)(Parameters...), std::int64_t blocks, int threads, std::int64_t shared_bytes,
              const Arguments&... arguments) {
    if (blocks < 1 || threads % kWarp != 0 || shared_bytes > static_cast<std::int64_t>(kSharedBytes)) {
      fail("a launch without blocks, with part of a warp or with too much shared memory");
    }
    const MachineScope scope(machine_);
    machine_.program = [&] { kernel(static_cast<Parameters>(arguments)...); };
    machine_.threads = threads;
    machine_.shared_bytes = static_cast<std::size_t>(shared_bytes);
    machine_.blocks = blocks;
    machine_.failure = nullptr;
    while (machine_.fibers.size() < static_cast<std::size_t>(threads)) {
      spare_.emplace_back(new unsigned char[kStackBytes]);
      machine_.fibers.emplace_back();
      machine_.fibers.back().stack = std::move(spare_.back());
      spare_.pop_back();
    }
    while (machine_.fibers.size() > static_cast<std::size_t>(threads)) {
      spare_.push_back(std::move(machine_.fibers.back().stack));
      machine_.fibers.pop_back();
    }
    machine_.warps.resize(static_cast<std::size_t>(threads / kWarp));
    std::vector<std::int64_t> order(static_cast<std::size_t>(blocks));
    std::iota(order.begin(), order.end(), std::int64_t{0});
    std::shuffle(order.begin(), order.end(), random_);
    for (const std::int64_t block : order) {
      machine_.block = block;
      run_block(machine_, random_);
    }
  }

 private:
  emulation::Settings settings_;
  std::mt19937_64 random_;
  Machine machine_;
  std::vector<std::unique_ptr<unsigned char[]>> spare_;
  std::int64_t used_ = 0;
};

using EmulatedSteps = KernelSteps<EmulatedLauncher>;

template <typename Run>
emulation::Report run_emulated(SearchOptions options, const emulation::Settings& settings, const Run& run) {
  EmulatedSteps steps(settings);
  options.counters = {&steps.report.candidates, &steps.report.rescans};
  run(static_cast<Steps&>(steps), options);
  return steps.report;
}

}  // namespace

namespace emulation {

namespace {

// Wrong programs, one each for what the emulation promises to notice.
void miss_barrier(float*) {
  if (dev::thread() != 5) dev::sync_block();
}
void miss_shuffle(float* out) {
  if (dev::thread() % kWarp != 5) out[dev::thread()] = dev::shuffle(1.0f, 0);
}
void mix_instructions(float* out) {
  out[dev::thread()] = dev::thread() % 2 == 0 ? dev::shuffle(1.0f, 0) : static_cast<float>(dev::ballot(true));
}
void misplace_copy(float* out) { dev::copy_async(dev::shared() + 8, out, true); }
void forget_to_wait(float* out) {
  float* const shared = reinterpret_cast<float*>(dev::shared()) + 4 * dev::thread();
  const float before = *out;
  dev::copy_async(shared, out, true);
  dev::copy_commit();
  dev::copy_wait<1>();
  if (dev::thread() == 0) out[kWarp] = before == before && *shared == *shared ? 0.0f : 1.0f;
}
void read_what_nobody_wrote(float* out) {
  const float value = *reinterpret_cast<float*>(dev::shared());
  if (dev::thread() == 0) out[kWarp] = value == value ? 0.0f : 1.0f;
}

}  // namespace

std::vector<std::string> self_check() {
  std::vector<std::string> noticed;
  for (void (*const program)(float*) :
       {miss_barrier, miss_shuffle, mix_instructions, misplace_copy, forget_to_wait, read_what_nobody_wrote}) {
    EmulatedSteps steps{Settings()};
    alignas(16) float out[2 * kWarp] = {};
    try {
      steps.launch(program, 1, kWarp, 1024, static_cast<float*>(out));
      noticed.push_back(out[kWarp] == 1.0f ? "not a number" : "nothing");
    } catch (const std::logic_error& error) {
      noticed.push_back(error.what());
    }
  }
  return noticed;
}

Report min_distance(const Rows& query, const Rows& bank, const SearchOptions& options, const Settings& settings,
                    float* distance, std::int64_t* index) {
  return run_emulated(options, settings, [&](Steps& steps, const SearchOptions& o) {
    wscxr::min_distance(steps, query, bank, o, distance, index);
  });
}

Report mine_top_r(const Rows& query, const Rows& bank, std::int64_t k, const SearchOptions& options,
                  const Settings& settings, std::int64_t* index, float* distance) {
  return run_emulated(options, settings, [&](Steps& steps, const SearchOptions& o) {
    wscxr::mine_top_r(steps, query, bank, k, o, index, distance);
  });
}

Report min_distance_block(const Rows& query, const Rows& bank, std::int64_t row_offset, const SearchOptions& options,
                          const Settings& settings, double* carry_squared, std::int64_t* carry_index) {
  return run_emulated(options, settings, [&](Steps& steps, const SearchOptions& o) {
    wscxr::min_distance_block(steps, query, bank, row_offset, o, carry_squared, carry_index);
  });
}

void mixup(const Rows& normal, const Rows& abnormal, std::int64_t seed, std::int64_t offset, float low, float high,
           std::int64_t blocks, const Settings& settings, void* mixed, std::int64_t* source, float* alpha) {
  EmulatedSteps steps(settings);
  with_type(normal.type, [&](auto type) {
    using T = decltype(type);
    MixProblem<T> p{
        static_cast<const T*>(normal.data),
        static_cast<const T*>(abnormal.data),
        static_cast<T*>(mixed),
        source,
        alpha,
        normal.count,
        normal.channels,
        static_cast<std::uint64_t>(abnormal.count),
        static_cast<std::uint64_t>(seed),
        static_cast<std::uint64_t>(offset),
        low,
        high,
        mix_aligned(normal.data, abnormal.data, mixed, normal.channels * static_cast<std::int64_t>(sizeof(T)))};
    steps.launch(mixup_kernel<T>, blocks, kMixThreads, 0, p);
  });
}

void filter(const Rows& query, const Rows& bank, bool whole, double scale, const Settings& settings, float* minima,
            double* bound, double* query_squared) {
  EmulatedSteps steps(settings);
  const std::int64_t groups = tiles_of(bank.count, kGroup), padded = tiles_of(bank.count, kTileColumns) * kTileColumns;
  const std::vector<double> centre(static_cast<std::size_t>(bank.channels), 0.0);
  std::vector<Steps::Memory> kept;
  const auto take = [&](std::int64_t bytes) {
    kept.push_back(steps.allocate(bytes));
    return kept.back().get();
  };
  const auto floats = [&](std::int64_t count) { return static_cast<float*>(take(count * 4)); };
  Encoded q, b;
  q.row_bytes = b.row_bytes = encoded_row_bytes(bank.channels, whole);
  q.codes = static_cast<unsigned char*>(take(query.count * q.row_bytes));
  q.norm = floats(query.count);
  q.residual = floats(query.count);
  q.squared_double = query_squared;
  q.scale = floats(query.count);
  b.codes = static_cast<unsigned char*>(take(bank.count * b.row_bytes));
  b.norm = floats(bank.count);
  b.residual = floats(bank.count);
  b.squared = floats(padded);
  b.scale = floats(padded);
  float* const group_norm = floats(groups);
  float* const group_residual = floats(groups);
  steps.encode(query, nullptr, query.count, centre.data(), scale, whole, q);
  steps.encode(bank, nullptr, padded, centre.data(), scale, whole, b);
  steps.group_maxima(b.norm, b.residual, bank.count, groups, group_norm, group_residual);
  TileProblem p;
  p.query = q.codes;
  p.bank = b.codes;
  p.queries = query.count;
  p.bank_rows = bank.count;
  p.row_bytes = q.row_bytes;
  p.query_scale = q.scale;
  p.bank_scale = b.scale;
  p.bank_squared = b.squared;
  p.minima = reinterpret_cast<Minima*>(minima);
  p.groups = groups;
  steps.tile_minimum(p, whole ? Kernel::kWhole : Kernel::kHalf);
  const double gamma = whole ? 0 : accumulation_error(bank.channels);
  for (std::int64_t row = 0; row < query.count; ++row) {
    for (std::int64_t group = 0; group < groups; ++group) {
      bound[row * groups + group] =
          error_bound(q.norm[row], q.residual[row], group_norm[group], group_residual[group], gamma, bank.channels);
    }
  }
}

}  // namespace emulation
}  // namespace wscxr
