#include "emulation.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>

#include "kernel_steps.h"
#include "machine.h"
#include "mixup.h"
#include "tile_minimum.h"

namespace wscxr::emulation {

namespace {

// Memory and launches of `Steps`, on the emulated machine.
class EmulatedLauncher : public Steps {
 public:
  explicit EmulatedLauncher(const Settings& settings)
      : memory_bytes_(settings.memory_bytes), machine_(settings.seed, settings.truncating) {}

  Report report;

  Memory allocate(std::int64_t bytes) override {
    if (used_ + bytes > memory_bytes_) {
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
  std::int64_t free_bytes() override { return memory_bytes_ - used_; }
  void zero(void* to, std::int64_t bytes) override { std::memset(to, 0, static_cast<std::size_t>(bytes)); }
  void fetch(void* to, const void* from, std::int64_t bytes) override {
    std::memcpy(to, from, static_cast<std::size_t>(bytes));
  }
  void warn(const std::string&) override {}

  void tile_minimum(const TileProblem& problem, Kernel kernel) override {
    ++report.tiles;
    report.pairs += problem.queries * problem.bank_rows;
    const std::int64_t blocks = tiles_of(problem.queries, kTileRows) * tiles_of(problem.bank_rows, kTileColumns);
    if (kernel == Kernel::kInt8 || kernel == Kernel::kHopperInt8) {
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
    machine_.run([&] { kernel(static_cast<Parameters>(arguments)...); }, blocks, threads, shared_bytes);
  }

 private:
  std::int64_t memory_bytes_;
  Machine machine_;
  std::int64_t used_ = 0;
};

using EmulatedSteps = KernelSteps<EmulatedLauncher>;

template <typename Run>
Report run_emulated(SearchOptions options, const Settings& settings, const Run& run) {
  EmulatedSteps steps(settings);
  options.counters = {&steps.report.candidates, &steps.report.rescans};
  run(static_cast<Steps&>(steps), options);
  return steps.report;
}

// Faulty programs for self_check.
void miss_barrier(float*) {
  if (dev::thread() != 5) dev::sync_block();
}
void miss_shuffle(float* out) {
  if (dev::thread() % kWarp != 5) out[dev::thread()] = dev::shuffle(1.0f, 0);
}
void mix_instructions(float* out) {
  out[dev::thread()] = dev::thread() % 2 == 0 ? dev::shuffle(1.0f, 0) : static_cast<float>(dev::ballot(true));
}
void misalign_copy(float* out) { dev::copy_async(dev::shared() + 8, out, true); }
void read_before_wait(float* out) {
  float* const shared = reinterpret_cast<float*>(dev::shared()) + 4 * dev::thread();
  const float before = *out;
  dev::copy_async(shared, out, true);
  dev::copy_commit();
  dev::copy_wait<1>();
  if (dev::thread() == 0) out[kWarp] = before == before && *shared == *shared ? 0.0f : 1.0f;
}
void read_unwritten(float* out) {
  const float value = *reinterpret_cast<float*>(dev::shared());
  if (dev::thread() == 0) out[kWarp] = value == value ? 0.0f : 1.0f;
}

}  // namespace

std::vector<std::string> self_check() {
  std::vector<std::string> messages;
  for (void (*const program)(float*) :
       {miss_barrier, miss_shuffle, mix_instructions, misalign_copy, read_before_wait, read_unwritten}) {
    EmulatedSteps steps{Settings()};
    alignas(16) float out[2 * kWarp] = {};
    try {
      steps.launch(program, 1, kWarp, 1024, static_cast<float*>(out));
      messages.push_back(out[kWarp] == 1.0f ? "not a number" : "nothing");
    } catch (const std::logic_error& error) {
      messages.push_back(error.what());
    }
  }
  return messages;
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

Report min_distance_block(const Rows& query, const Rows& bank, std::int64_t first_row, const SearchOptions& options,
                          const Settings& settings, double* best_squared, std::int64_t* best_index) {
  return run_emulated(options, settings, [&](Steps& steps, const SearchOptions& o) {
    wscxr::min_distance_block(steps, query, bank, first_row, o, best_squared, best_index);
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

void filter(const Rows& query, const Rows& bank, bool int8, double scale, const Settings& settings, float* minima,
            double* bound, double* query_squared) {
  EmulatedSteps steps(settings);
  const std::int64_t groups = tiles_of(bank.count, kGroup), padded = tiles_of(bank.count, kTileColumns) * kTileColumns;
  const std::vector<double> centre(static_cast<std::size_t>(bank.channels), 0.0);
  std::vector<Steps::Memory> memory;
  const auto allocate = [&](std::int64_t bytes) {
    memory.push_back(steps.allocate(bytes));
    return memory.back().get();
  };
  const auto floats = [&](std::int64_t count) { return static_cast<float*>(allocate(count * 4)); };
  Encoded q, b;
  q.row_bytes = b.row_bytes = encoded_row_bytes(bank.channels, int8);
  q.codes = static_cast<unsigned char*>(allocate(query.count * q.row_bytes));
  q.norm = floats(query.count);
  q.residual = floats(query.count);
  q.squared_double = query_squared;
  q.scale = floats(query.count);
  b.codes = static_cast<unsigned char*>(allocate(bank.count * b.row_bytes));
  b.norm = floats(bank.count);
  b.residual = floats(bank.count);
  b.squared = floats(padded);
  b.scale = floats(padded);
  float* const group_norm = floats(groups);
  float* const group_residual = floats(groups);
  steps.encode(query, nullptr, query.count, centre.data(), scale, int8, q);
  steps.encode(bank, nullptr, padded, centre.data(), scale, int8, b);
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
  steps.tile_minimum(p, int8 ? Kernel::kInt8 : Kernel::kHalf);
  const double gamma = int8 ? 0 : accumulation_error(bank.channels);
  for (std::int64_t row = 0; row < query.count; ++row) {
    for (std::int64_t group = 0; group < groups; ++group) {
      bound[row * groups + group] =
          error_bound(q.norm[row], q.residual[row], group_norm[group], group_residual[group], gamma, bank.channels);
    }
  }
}

}  // namespace wscxr::emulation
