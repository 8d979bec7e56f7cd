// Packing of a bank: duplicates are removed, and the remaining rows are centred, scaled, quantised and arranged in
// panels. search.cpp describes the purpose.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "parallel.h"
#include "search.h"

namespace wscxr::search {

namespace {

constexpr std::int64_t kSample = 256;  // rows that determine centre and scale

float float_above(double x) { return std::nextafter(static_cast<float>(x), std::numeric_limits<float>::infinity()); }

// Compute the mean of a sample of rows, and the exponent of the power of two that scales the largest centred number
// among them to about one. Any centre gives exact results; a good one makes the numbers small.
int centre_and_exponent(const Kernels& kernels, const Rows& bank, double* centre) {
  const std::int64_t channels = bank.channels, taken = std::min(bank.count, kSample);
  std::vector<double> wide(static_cast<std::size_t>(channels)), total(wide.size(), 0.0), most(wide.size(), 0.0);
  const auto take = [&](std::int64_t i) {
    // steps of the golden ratio: evenly spread, and not aligned with any regular order of the rows
    const double place = std::fmod(static_cast<double>(i) * 0.6180339887498949, 1.0);
    const std::int64_t row =
        taken < bank.count ? static_cast<std::int64_t>(place * static_cast<double>(bank.count)) : i;
    kernels.widen(bank.at(row), bank.type, channels, wide.data());
  };
  const double weight = 1.0 / static_cast<double>(taken);  // per row: the sum of the rows could overflow
  for (std::int64_t i = 0; i < taken; ++i) {
    take(i);
    for (std::int64_t c = 0; c < channels; ++c) total[c] += wide[c] * weight;
  }
  for (std::int64_t c = 0; c < channels; ++c) {
    centre[c] = bank.type == Type::kDouble ? total[c] : static_cast<double>(static_cast<float>(total[c]));
  }
  for (std::int64_t i = 0; i < taken; ++i) {
    take(i);
    for (std::int64_t c = 0; c < channels; ++c) {
      const double size = std::abs(wide[c] - centre[c]);
      most[c] = size > most[c] ? size : most[c];
    }
  }
  const double largest = *std::max_element(most.begin(), most.end());
  if (!(largest > 0)) return 0;
  const int limit = bank.type == Type::kDouble ? 1000 : 100;
  return std::isfinite(largest) ? std::clamp(std::ilogb(largest), -limit, limit) : limit;
}

// Find the first occurrence of every row, in order. Duplicates cannot be nearest: ties go to the lowest row.
Array<std::int64_t> first_of_equals(const Rows& bank, const Array<std::uint64_t>& hashes) {
  std::size_t slots = 16;
  while (slots < 2 * hashes.size()) slots *= 2;
  Array<std::int64_t> table(slots, -1), kept;
  kept.reserve(hashes.size());
  const std::size_t bytes = static_cast<std::size_t>(bank.channels * bytes_of(bank.type));
  for (std::size_t i = 0; i < hashes.size(); ++i) {
    std::size_t slot = static_cast<std::size_t>(hashes[i]) & (slots - 1);
    bool copy = false;
    while (table[slot] >= 0 && !copy) {
      const std::int64_t other = table[slot];
      copy = hashes[static_cast<std::size_t>(other)] == hashes[i] &&
             std::memcmp(bank.at(other), bank.at(static_cast<std::int64_t>(i)), bytes) == 0;
      slot = (slot + 1) & (slots - 1);
    }
    if (copy) continue;
    table[slot] = static_cast<std::int64_t>(i);
    kept.push_back(static_cast<std::int64_t>(i));
  }
  return kept;
}

}  // namespace

std::int64_t count_not_finite(const Kernels& kernels, const Rows& rows) {
  std::atomic<std::int64_t> bad{0};
  for_each(rows.count, 64, [&](std::int64_t i) {
    bool finite = true;
    kernels.hash(rows.at(i), rows.type, rows.channels, &finite);
    if (!finite) bad.fetch_add(1, std::memory_order_relaxed);
  });
  return bad.load();
}

void pack(const Kernels& kernels, const Rows& bank, PackedOut& out) {
  Array<std::uint64_t> hashes(static_cast<std::size_t>(bank.count));
  std::atomic<std::int64_t> bad{0};
  for_each(bank.count, 64, [&](std::int64_t i) {
    bool finite = true;
    hashes[static_cast<std::size_t>(i)] = kernels.hash(bank.at(i), bank.type, bank.channels, &finite);
    if (!finite) bad.fetch_add(1, std::memory_order_relaxed);
  });
  out.not_finite = bad.load();
  if (out.not_finite) return;
  const Array<std::int64_t> kept = first_of_equals(bank, hashes);
  out.unique = static_cast<std::int64_t>(kept.size());
  out.exponent = centre_and_exponent(kernels, bank, out.centre);
  const double unit = std::ldexp(1.0, -out.exponent);
  const std::vector<float> centre = as_float(out.centre, bank.channels);
  const std::int64_t depth = depth_of(bank.channels), coded = coded_channels(bank.channels);
  // The offset is added to four codes at once: flipping the sign bits adds 128, and this is subtracted afterwards.
  const std::uint32_t lowered = 0x01010101u * static_cast<std::uint32_t>(128 - kernels.offset);
  for_each(panels_of(bank.count), 1, [&](std::int64_t panel) {
    std::vector<std::int8_t> codes(static_cast<std::size_t>(kColumns * depth * 4), 0);
    float* columns = out.columns + panel * 4 * kColumns;
    for (int j = 0; j < kColumns; ++j) {
      const std::int64_t column = panel * kColumns + j;
      const bool used = column < out.unique;
      const std::int64_t row = used ? kept[static_cast<std::size_t>(column)] : -1;
      Quantised q;
      if (used) {
        q = kernels.quantise(bank.at(row), bank.type, out.centre, centre.data(), bank.channels, unit,
                             codes.data() + j * depth * 4, coded);
      }
      out.row[column] = row;
      columns[j] = used ? static_cast<float>(q.norm) : std::numeric_limits<float>::infinity();
      columns[kColumns + j] = static_cast<float>(2 * q.scale);
      columns[2 * kColumns + j] = float_above(q.residual);
      columns[3 * kColumns + j] = float_above(std::sqrt(q.norm));
    }
    std::uint8_t* const to = out.codes + panel * depth * 4 * kColumns;
    for (int j = 0; j < kColumns; ++j) {
      const std::int8_t* const from = codes.data() + j * depth * 4;
      for (std::int64_t d = 0; d < depth; ++d) {
        std::uint32_t word;
        std::memcpy(&word, from + d * 4, 4);
        word = (word ^ 0x80808080u) - lowered;
        std::memcpy(to + (d * kColumns + j) * 4, &word, 4);
      }
    }
  });
}

}  // namespace wscxr::search
