// Exact nearest-row search: filter candidates, then evaluate them exactly.
//
// Rows are centred, scaled by one power of two and quantised to bytes: x = s * code + e with |e| <= r. Products of
// codes are exact integers, so the distance d~ of two quantised rows is known up to the rounding of a few float32
// operations, and the triangle inequality bounds the true distance d: |d - d~| <= r_q + r_b. A bank row remains a
// candidate of a query only while d~ - r_q - r_b does not exceed the smallest upper bound found so far. Candidates are
// evaluated in float64 from the stored values; ties go to the lowest row. Data with large quantisation errors make the
// search slower, never wrong.
#include "search.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "parallel.h"

namespace wscxr::search {

namespace {

std::atomic<std::int64_t> total_queries{0}, total_evaluated{0};

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::int64_t kBlock = 192, kLargestBlock = 384;  // queries that are compared with a panel one after another
constexpr std::int64_t kBlockBytes = 1 << 18;              // of their codes, so that these stay in the L2 cache
constexpr std::size_t kPile = 96;                          // candidates of one query that trigger pruning
constexpr std::size_t kPileKept = 48;                      // candidates that may remain unevaluated after pruning
constexpr std::int64_t kStride =
    16;  // panels are visited with this stride, so that bounds from all parts of the bank are known early

}  // namespace

std::vector<const Kernels*> kernels_of_this_cpu() {
  std::vector<const Kernels*> found;
#ifdef WSCXR_X86
  const CpuFeatures cpu = cpu_features();
  if (cpu.avx512f && cpu.avx512bw && cpu.avx512dq && cpu.avx512vl && cpu.avx512_vnni) found.push_back(&kAvx512Vnni);
  if (cpu.avx2) found.push_back(&kAvx2);
#endif
  found.push_back(&kPortable);
  return found;
}

namespace {
const Kernels* find(const char* name) {
  for (const Kernels* k : kernels_of_this_cpu()) {
    if (name && std::strcmp(k->name, name) == 0) return k;
  }
  return nullptr;
}

// The kernels that MONAI_WSCXR_CPU or use_kernels names, null for none.
std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> kernels = []() -> const Kernels* {
    const char* name = std::getenv("MONAI_WSCXR_CPU");
    if (!name || !*name) return nullptr;
    if (const Kernels* found = find(name)) return found;
    std::string known;
    for (const Kernels* k : kernels_of_this_cpu()) known += (known.empty() ? "" : ", ") + std::string(k->name);
    throw std::runtime_error("MONAI_WSCXR_CPU names the kernels '" + std::string(name) + "', but this CPU has " +
                             known + "; set one of these, or unset it for the fastest");
  }();
  return kernels;
}
}  // namespace

const Kernels* named_kernels() { return chosen().load(); }

const Kernels& kernels() {
  static const Kernels* const best = kernels_of_this_cpu().front();
  const Kernels* const named = named_kernels();
  return named != nullptr ? *named : *best;
}

bool use_kernels(const char* name) {
  const Kernels* const found = find(name);
  if (found) chosen().store(found);
  return found != nullptr;
}

Search::Search(const Kernels& kernels, const Packed& packed, const Rows& bank, const Rows& query,
               std::int64_t first_row)
    : kernels_(kernels), packed_(packed), bank_(bank), query_(query), first_row_(first_row) {
  const bool wide = bank.type == Type::kDouble || query.type == Type::kDouble;
  floor_ = wide ? std::ldexp(1e-139, -packed.exponent) : std::numeric_limits<double>::denorm_min();
  const std::int64_t bytes = packed.depth * 4;
  codes_.resize(static_cast<std::size_t>(query.count * bytes));
  stats_.resize(static_cast<std::size_t>(query.count));
  nearest_.assign(static_cast<std::size_t>(query.count), Nearest{kInfinity, kInfinity, -1, {}});
  const std::vector<float> centre = as_float(packed.centre, bank.channels);
  const double unit = std::ldexp(1.0, -packed.exponent);
  // float32 arithmetic needs a centre and a unit that are float32 values, which a float64 bank does not have
  const bool widened = bank.type == Type::kDouble && query.type != Type::kDouble;
  for_each(query.count, 16, [&](std::int64_t i) {
    std::vector<double> wide;
    const char* row = query_.at(i);
    Type type = query_.type;
    if (widened) {
      wide.resize(static_cast<std::size_t>(bank_.channels));
      kernels_.widen(row, type, bank_.channels, wide.data());
      row = reinterpret_cast<const char*>(wide.data());
      type = Type::kDouble;
    }
    const Quantised q = kernels_.quantise(row, type, packed_.centre, centre.data(), bank_.channels, unit,
                                          codes_.data() + i * bytes, coded_channels(bank_.channels));
    stats_[static_cast<std::size_t>(i)] = {q.scale,           q.norm, q.residual,
                                           std::sqrt(q.norm), q.sum,  std::isfinite(q.residual)};
  });
  order_.reserve(static_cast<std::size_t>(packed.panels));
  for (std::int64_t first = 0; first < kStride; ++first) {
    for (std::int64_t panel = first; panel < packed.panels; panel += kStride) order_.push_back(panel);
  }
}

double Search::to_scaled(double squared) const {
  const double slack = 1 + (static_cast<double>(bank_.channels) + 16) * 0x1p-51;
  return std::max(std::ldexp(std::sqrt(squared) * slack, -packed_.exponent), floor_);
}

double Search::upper(std::int64_t query) const {
  return std::ldexp((*this)[query].upper, packed_.exponent) * (1 + 0x1p-40);
}

void Search::resume(const double* squared, const std::int64_t* index) {
  for (std::size_t i = 0; i < nearest_.size(); ++i) {
    if (index[i] == std::numeric_limits<std::int64_t>::max()) continue;  // none so far
    nearest_[i].squared = squared[i];
    nearest_[i].index = index[i];
    nearest_[i].upper = to_scaled(squared[i]);
  }
}

void Search::evaluate(std::int64_t query, Nearest& state, const Candidate* begin, const Candidate* end) const {
  if (begin == end) return;
  thread_local std::vector<double> wide;
  const char* row = query_.at(query);
  const double* q;
  if (query_.type == Type::kDouble) {
    q = reinterpret_cast<const double*>(row);
  } else {
    wide.resize(static_cast<std::size_t>(query_.channels));
    kernels_.widen(row, query_.type, query_.channels, wide.data());
    q = wide.data();
  }
  const std::int64_t bytes = bank_.channels * bytes_of(bank_.type);
  for (const Candidate* c = begin; c != end; ++c) {
    // rows are far apart in memory: prefetch the next one while this one is evaluated
    if (c + 1 != end) {
      for (std::int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(bank_.at(c[1].row) + i);
    }
    const double squared = kernels_.squared_distance(q, bank_.at(c->row), bank_.type, bank_.channels);
    if (squared < state.squared || state.index < 0) {
      state.squared = squared;
      state.index = first_row_ + c->row;
    } else if (squared == state.squared) {
      state.index = std::min(state.index, first_row_ + c->row);
    }
  }
  state.upper = std::min(state.upper, to_scaled(state.squared));
  evaluated_.fetch_add(end - begin, std::memory_order_relaxed);
}

void Search::evaluate_best(std::int64_t query, Nearest& state) const {
  if (state.pile.empty()) return;
  auto best = std::min_element(state.pile.begin(), state.pile.end(),
                               [](const Candidate& a, const Candidate& b) { return a.lower < b.lower; });
  const Candidate chosen = *best;
  *best = state.pile.back();
  state.pile.pop_back();
  if (chosen.lower <= state.upper) evaluate(query, state, &chosen, &chosen + 1);
}

void Search::prune(std::int64_t query, Nearest& state, std::size_t keep) const {
  const auto ruled_out = [&](const Candidate& c) { return c.lower > state.upper; };
  auto& pile = state.pile;
  pile.erase(std::remove_if(pile.begin(), pile.end(), ruled_out), pile.end());
  if (pile.size() <= keep) return;
  // the most promising first: they lower the bound, so that fewer of the others need to be evaluated
  std::sort(pile.begin(), pile.end(), [](const Candidate& a, const Candidate& b) { return a.lower < b.lower; });
  std::size_t i = 0;
  for (std::size_t step = 1; i < pile.size() && pile[i].lower <= state.upper;
       i += step, step = std::min<std::size_t>(2 * step, 8)) {
    evaluate(query, state, pile.data() + i, pile.data() + std::min(pile.size(), i + step));
  }
  pile.clear();
}

void Search::add_candidates(std::int64_t query, Nearest& state, const std::int32_t* products, std::int64_t panel,
                            std::uint32_t passed) const {
  const Query& q = stats_[static_cast<std::size_t>(query)];
  if (!q.coded) return;
  const float* columns = packed_.columns + panel * 4 * kColumns;
  const std::int64_t* row_of = packed_.row + panel * kColumns;
  for (; passed; passed &= passed - 1) {
    const int j = __builtin_ctz(passed);
    if (row_of[j] < 0) continue;
    const double norm = static_cast<double>(columns[j]);
    const double product = q.scale * static_cast<double>(columns[kColumns + j]) * static_cast<double>(products[j]);
    const double squared = norm + q.norm - product, error = 0x1p-22 * (norm + q.norm) + static_cast<double>(kTiny);
    const double residual = q.residual + static_cast<double>(columns[2 * kColumns + j]);
    const double upper = (std::sqrt(std::max(squared, 0.0) + error) + residual) * (1 + 0x1p-40);
    const double lower = std::sqrt(std::max(squared - error, 0.0)) * (1 - 0x1p-40) - residual;
    if (lower > state.upper) continue;
    state.upper = std::min(state.upper, std::max(upper, floor_));
    state.pile.push_back({lower, row_of[j]});
  }
  if (state.pile.size() >= kPile) prune(query, state, kPileKept);
}

// Fill what `tile` needs to add in 16 bits, for `rows` queries at a time; returns the largest norm of a lane of their
// codes.
double Search::fill_lanes(const std::int64_t* queries, std::int64_t count, std::vector<std::int32_t>& lanes) const {
  const std::int64_t rows = kernels_.tile_rows, depth = packed_.depth, chunks = (depth + kChunk - 1) / kChunk;
  lanes.assign(static_cast<std::size_t>((count + rows - 1) / rows * chunks * rows), 0);
  std::int64_t most = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int8_t* codes = codes_.data() + queries[i] * depth * 4;
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
      std::int32_t sums[2] = {0, 0}, squares[2] = {0, 0};
      for (std::int64_t d = chunk * kChunk; d < std::min(depth, (chunk + 1) * kChunk); ++d) {
        for (int c = 0; c < 4; ++c) {
          const std::int32_t code = codes[4 * d + c];
          sums[c / 2] += code;
          squares[c / 2] += code * code;
        }
      }
      most = std::max<std::int64_t>({most, squares[0], squares[1]});
      const auto start = [&](int lane) { return static_cast<std::uint32_t>(-kernels_.offset * sums[lane]) & 0xffffu; };
      lanes[static_cast<std::size_t>((i / rows * chunks + chunk) * rows + i % rows)] =
          static_cast<std::int32_t>(start(0) | start(1) << 16);
    }
  }
  return std::sqrt(static_cast<double>(most));
}

void Search::scan_block(const std::int64_t* queries, std::int64_t count, std::int64_t first, std::int64_t last,
                        Nearest* states) const {
  const int rows = kernels_.tile_rows;
  const std::int64_t depth = packed_.depth, groups = (count + rows - 1) / rows;
  std::vector<std::int32_t> words(static_cast<std::size_t>(groups * depth * rows), 0);
  std::vector<std::int32_t> starts(static_cast<std::size_t>(groups * rows), 0);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int8_t* codes = codes_.data() + queries[i] * depth * 4;
    std::int32_t* to = words.data() + (i / rows) * depth * rows + i % rows;
    for (std::int64_t d = 0; d < depth; ++d) std::memcpy(to + d * rows, codes + d * 4, 4);
    starts[static_cast<std::size_t>(i)] = -kernels_.offset * stats_[static_cast<std::size_t>(queries[i])].sum;
  }
  const std::size_t padded = static_cast<std::size_t>(groups * rows);
  std::vector<float> scale(padded, 0.0f), reach(padded, 0.0f), root(padded, 0.0f), norm(padded, 0.0f);
  const auto set_reach = [&](std::int64_t i) {
    reach[i] = static_cast<float>(states[i].upper + stats_[static_cast<std::size_t>(queries[i])].residual);
  };
  for (std::int64_t i = 0; i < count; ++i) {
    const Query& q = stats_[static_cast<std::size_t>(queries[i])];
    scale[i] = static_cast<float>(q.scale);
    root[i] = static_cast<float>(q.root);
    norm[i] = static_cast<float>(q.norm);
    set_reach(i);
  }
  // With few queries, looking at the codes of a panel would take longer than it saves.
  const bool use_lanes = kernels_.peak != nullptr && groups >= 4;
  const std::int64_t chunks = (depth + kChunk - 1) / kChunk;
  std::vector<std::int32_t> lanes;
  const double largest = use_lanes ? fill_lanes(queries, count, lanes) : 0;
  alignas(64) std::int32_t products[kLargestTile * kColumns];
  std::uint32_t passed[kLargestTile];
  std::int64_t check = 8;  // panels after which the best candidates are evaluated, then eight times as many, ...
  for (std::int64_t position = first; position < last; ++position) {
    const std::int64_t panel = order_[static_cast<std::size_t>(position)];
    const std::uint8_t* codes = packed_.codes + panel * depth * 4 * kColumns;
    const float* columns = packed_.columns + panel * 4 * kColumns;
    const float longest = *std::max_element(columns + 3 * kColumns, columns + 4 * kColumns);
    // The next panel comes from memory, and the processor does not foresee which one: every group requests a part of
    // it.
    const std::int64_t panel_bytes = depth * 4 * kColumns;
    const std::int64_t part = (panel_bytes / 64 + groups - 1) / groups * 64;
    const std::uint8_t* const next =
        position + 1 < last ? packed_.codes + order_[static_cast<std::size_t>(position + 1)] * panel_bytes : nullptr;
    // a sum over a lane is at most the product of the norms (Cauchy-Schwarz)
    const bool fits = use_lanes && largest * std::sqrt(static_cast<double>(kernels_.peak(codes, depth))) < 32767;
    for (std::int64_t group = 0; group < groups; ++group) {
      const std::int64_t begin = group * rows;
      for (std::int64_t byte = group * part; next && byte < std::min((group + 1) * part, panel_bytes); byte += 64) {
        __builtin_prefetch(next + byte, 0, 2);
      }
      kernels_.tile(words.data() + begin * depth, starts.data() + begin, fits ? lanes.data() + begin * chunks : nullptr,
                    codes, depth, products);
      kernels_.sift(products, columns, longest, {&scale[begin], &reach[begin], &root[begin], &norm[begin]}, passed);
      for (std::int64_t r = 0; r < std::min<std::int64_t>(rows, count - begin); ++r) {
        if (!passed[r]) continue;
        add_candidates(queries[begin + r], states[begin + r], products + r * kColumns, panel, passed[r]);
        set_reach(begin + r);
      }
    }
    if (position - first + 1 == check) {
      for (std::int64_t i = 0; i < count; ++i) {
        evaluate_best(queries[i], states[i]);
        set_reach(i);
      }
      check *= 8;
    }
  }
}

void Search::scan(const std::vector<std::int64_t>& queries, std::int64_t first, std::int64_t last) {
  const std::int64_t count = static_cast<std::int64_t>(queries.size()), panels = last - first;
  if (count == 0 || panels <= 0) return;
  // Divide the queries equally among the threads; if there are few queries, divide the panels as well.
  const std::int64_t threads = std::max<std::int64_t>(1, torch::stable::get_num_threads()), rows = kernels_.tile_rows;
  const std::int64_t block_size = std::clamp(kBlockBytes / (packed_.depth * 4), kBlock, kLargestBlock);
  const std::int64_t rounds = (count + threads * block_size - 1) / (threads * block_size);
  std::int64_t size = (count + threads * rounds - 1) / (threads * rounds);
  size = (std::max(size, rows) + rows - 1) / rows * rows;
  const std::int64_t blocks = (count + size - 1) / size;
  const std::int64_t parts = std::max<std::int64_t>(1, std::min(threads / blocks, panels / 16));
  std::vector<std::vector<Nearest>> own(static_cast<std::size_t>(blocks * parts));
  for_each(blocks * parts, 1, [&](std::int64_t unit) {
    const std::int64_t block = unit / parts, part = unit % parts, begin = block * size;
    const std::int64_t members = std::min(size, count - begin);
    std::vector<Nearest>& states = own[static_cast<std::size_t>(unit)];
    states.reserve(static_cast<std::size_t>(members));
    for (std::int64_t i = 0; i < members; ++i) {
      Nearest& state = nearest_[static_cast<std::size_t>(queries[begin + i])];
      if (parts == 1) {
        states.push_back(std::move(state));
      } else {
        states.push_back({state.upper, kInfinity, -1, {}});
      }
    }
    scan_block(queries.data() + begin, members, first + panels * part / parts, first + panels * (part + 1) / parts,
               states.data());
    if (parts > 1) return;
    for (std::int64_t i = 0; i < members; ++i) {
      nearest_[static_cast<std::size_t>(queries[begin + i])] = std::move(states[static_cast<std::size_t>(i)]);
    }
  });
  if (parts == 1) return;
  for (std::int64_t unit = 0; unit < blocks * parts; ++unit) {
    const std::int64_t begin = unit / parts * size;
    const auto& states = own[static_cast<std::size_t>(unit)];
    for (std::size_t i = 0; i < states.size(); ++i) {
      Nearest& into = nearest_[static_cast<std::size_t>(queries[begin + static_cast<std::int64_t>(i)])];
      const Nearest& from = states[i];
      into.upper = std::min(into.upper, from.upper);
      into.pile.insert(into.pile.end(), from.pile.begin(), from.pile.end());
      if (from.index < 0) continue;
      if (into.index < 0 || from.squared < into.squared || (from.squared == into.squared && from.index < into.index)) {
        into.squared = from.squared;
        into.index = from.index;
      }
    }
  }
}

void Search::tighten(const std::vector<std::int64_t>& queries) {
  for_each(static_cast<std::int64_t>(queries.size()), 16,
           [&](std::int64_t i) { evaluate_best(queries[i], nearest_[static_cast<std::size_t>(queries[i])]); });
}

void Search::evaluate_all(std::int64_t query, Nearest& state) const {
  for (std::int64_t column = 0; column < packed_.panels * kColumns; ++column) {
    if (packed_.row[column] < 0) continue;
    const Candidate one{0.0, packed_.row[column]};
    evaluate(query, state, &one, &one + 1);
  }
}

void Search::finish(const std::vector<std::int64_t>& queries) {
  for_each(static_cast<std::int64_t>(queries.size()), 4, [&](std::int64_t i) {
    Nearest& state = nearest_[static_cast<std::size_t>(queries[i])];
    if (stats_[static_cast<std::size_t>(queries[i])].coded) {
      prune(queries[i], state, 0);
    } else {
      evaluate_all(queries[i], state);
    }
    // the squares overflow float64, so all rows tie
    if (!(state.squared < kInfinity)) state.index = state.index < 0 ? first_row_ : std::min(state.index, first_row_);
  });
}

void count_search(std::int64_t queries, std::int64_t evaluated) {
  total_queries += queries;
  total_evaluated += evaluated;
}

SearchCounts search_counts() { return {total_queries.load(), total_evaluated.load()}; }

}  // namespace wscxr::search
