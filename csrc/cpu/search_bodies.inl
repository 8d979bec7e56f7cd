// Bodies of the search kernels, included by every search_*.cpp inside an unnamed namespace and compiled for its
// instruction set. The vectors are the compiler's generic ones, which it splits if registers are narrower. Products and
// sums are rounded separately (-ffp-contract=off), so all sets give the same bits.

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are not passed between files

constexpr int kFloats = kVectorBytes / 4, kDoubles = kVectorBytes / 8;
using Floats = float __attribute__((vector_size(kVectorBytes)));
using Words = std::uint32_t __attribute__((vector_size(kVectorBytes)));
using Integers = std::int32_t __attribute__((vector_size(kVectorBytes)));
using Doubles = double __attribute__((vector_size(kVectorBytes)));
using HalfWords = std::uint16_t __attribute__((vector_size(kVectorBytes / 2)));
using HalfFloats = float __attribute__((vector_size(kVectorBytes / 2)));
using HalfIntegers = std::int32_t __attribute__((vector_size(kVectorBytes / 2)));

template <typename V>
inline V load(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof(V));
  return v;
}

template <typename V>
inline void store(void* to, const V& v) {
  std::memcpy(to, &v, sizeof(V));
}

// Convert a vector of stored numbers to float32, exactly.
inline void floats_of_half(const void* from, Floats* out) {
  const Words bits = __builtin_convertvector(load<HalfWords>(from), Words);
  const Words shifted = (bits & 0x7fffu) << 13;
  Floats magnitude;
  std::memcpy(&magnitude, &shifted, sizeof magnitude);
  magnitude = magnitude * 0x1p112f;  // corrects the exponent, also of subnormal numbers
  Words result;
  std::memcpy(&result, &magnitude, sizeof result);
  result |= (bits & 0x8000u) << 16;
  std::memcpy(out, &result, sizeof result);
}

inline void floats_of_bfloat16(const void* from, Floats* out) {
  const Words result = __builtin_convertvector(load<HalfWords>(from), Words) << 16;
  std::memcpy(out, &result, sizeof result);
}

// Load a vector of channels from `first` on as float32, zero after the last channel. kInside: all lanes are in the row.
template <bool kInside>
inline void floats_at(const char* row, Type type, std::int64_t first, std::int64_t channels, Floats* out) {
  const std::int64_t width = type == Type::kFloat ? 4 : 2;
  const char* from = row + first * width;
  char room[kVectorBytes] = {0};
  if (!kInside && first + kFloats > channels) {
    std::memcpy(room, from, static_cast<std::size_t>((channels - first) * width));
    from = room;
  }
  if (type == Type::kFloat) {
    *out = load<Floats>(from);
  } else if (type == Type::kHalf) {
    floats_of_half(from, out);
  } else {
    floats_of_bfloat16(from, out);
  }
}

template <typename S>
inline void padded(const S* from, std::int64_t first, std::int64_t channels, std::int64_t lanes, S* room) {
  const std::int64_t there = channels - first < lanes ? channels - first : lanes;
  std::memcpy(room, from + first, static_cast<std::size_t>(there) * sizeof(S));
}

// The two precisions of quantisation: float64 for float64 rows, float32 for all others.
struct Single {
  using V = Floats;
  using I = Integers;
  using Scalar = float;
  static constexpr int kLanes = kFloats;
  using Bytes = std::int8_t __attribute__((vector_size(kLanes)));
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding and subtracting it rounds to an integer
  static constexpr double kUnit = 0x1p-24, kTiny = 0x1p-125;
  static void centred(const char* row, Type type, const double*, const float* centre, std::int64_t first,
                      std::int64_t channels, float unit, V* out) {
    V x, c = {};
    floats_at<false>(row, type, first, channels, &x);
    if (first + kLanes <= channels) {
      c = load<V>(centre + first);
    } else {
      float room[kLanes] = {0};
      padded(centre, first, channels, kLanes, room);
      c = load<V>(room);
    }
    *out = (x - c) * unit;
  }
};

struct Double {
  using V = Doubles;
  using I = HalfIntegers;
  using Scalar = double;
  static constexpr int kLanes = kDoubles;
  using Bytes = std::int8_t __attribute__((vector_size(kLanes)));
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kUnit = 0x1p-53, kTiny = 0x1p-1021;
  static void centred(const char* row, Type, const double* centre, const float*, std::int64_t first,
                      std::int64_t channels, double unit, V* out) {
    const double* x = reinterpret_cast<const double*>(row);
    if (first + kLanes <= channels) {
      *out = (load<V>(x + first) - load<V>(centre + first)) * unit;
      return;
    }
    double a[kLanes] = {0}, b[kLanes] = {0};
    padded(x, first, channels, kLanes, a);
    padded(centre, first, channels, kLanes, b);
    *out = (load<V>(a) - load<V>(b)) * unit;
  }
};

template <typename P>
Quantised quantise_in(const char* row, Type type, const double* centre, const float* centre_float,
                      std::int64_t channels, double unit, std::int8_t* codes, std::int64_t coded, int levels) {
  using V = typename P::V;
  using Scalar = typename P::Scalar;
  const Scalar scale_unit = static_cast<Scalar>(unit);
  V y, most = {};
  for (std::int64_t i = 0; i < channels; i += P::kLanes) {
    P::centred(row, type, centre, centre_float, i, channels, scale_unit, &y);
    const V size = y < 0 ? -y : y;
    most = size > most ? size : most;
  }
  Scalar largest = 0;
  for (int lane = 0; lane < P::kLanes; ++lane) largest = most[lane] > largest ? most[lane] : largest;
  Quantised result;
  if (!(largest <= static_cast<Scalar>(0x1p50))) {  // the filter cannot represent the squares: always a candidate
    std::memset(codes, 0, static_cast<std::size_t>((coded + 3) / 4 * 4));
    result.residual = std::numeric_limits<double>::infinity();
    return result;
  }
  const float step = static_cast<float>(largest / static_cast<Scalar>(levels));
  const bool used = step > 1e-30f;
  const Scalar scale = used ? static_cast<Scalar>(step) : 0, inverse = used ? 1 / static_cast<Scalar>(step) : 0;
  const Scalar bound = static_cast<Scalar>(levels);
  if (coded % 4) std::memset(codes + coded / 4 * 4, 0, 4);  // narrow vectors do not write the end of the last word
  typename P::I sum = {}, squares = {};
  V error = {};
  for (std::int64_t i = 0; i < coded; i += P::kLanes) {
    P::centred(row, type, centre, centre_float, i, channels, scale_unit, &y);
    V code = (y * inverse + P::kRound) - P::kRound;
    code = code > bound ? code - code + bound : code;
    code = code < -bound ? code - code - bound : code;
    const V rest = y - code * scale;
    error = error + rest * rest;
    const typename P::I whole = __builtin_convertvector(code, typename P::I);
    sum = sum + whole;
    squares = squares + whole * whole;
    const typename P::Bytes narrow = __builtin_convertvector(whole, typename P::Bytes);
    const std::int64_t room = (coded + 3) / 4 * 4 - i;
    if (room >= P::kLanes) {
      std::memcpy(codes + i, &narrow, P::kLanes);
    } else {
      std::memcpy(codes + i, &narrow, static_cast<std::size_t>(room));
    }
  }
  // channels that are not quantised; if there are any, `coded` is a multiple of the number of lanes
  for (std::int64_t i = coded; i < channels; i += P::kLanes) {
    P::centred(row, type, centre, centre_float, i, channels, scale_unit, &y);
    error = error + y * y;
  }
  double squared_error = 0;
  std::int64_t total = 0, norm = 0;
  for (int lane = 0; lane < P::kLanes; ++lane) {
    squared_error += static_cast<double>(error[lane]);
    total += sum[lane];
    norm += squares[lane];
  }
  const double s = static_cast<double>(step) * (used ? 1 : 0), n = static_cast<double>(channels);
  result.scale = s;
  result.sum = static_cast<std::int32_t>(total);
  result.norm = s * s * static_cast<double>(norm);
  // rounding of the sum of squares, then of the centred numbers and products, then underflow
  const double residual = std::sqrt(squared_error) * (1 + (n + 16) * 2 * P::kUnit);
  result.residual =
      residual + 4 * P::kUnit * (std::sqrt(result.norm) + residual) + P::kTiny * (unit + 1) * std::sqrt(n);
  return result;
}

Quantised quantise(const char* row, Type type, const double* centre, const float* centre_float, std::int64_t channels,
                   double unit, std::int8_t* codes, std::int64_t coded) {
  if (type == Type::kDouble)
    return quantise_in<Double>(row, type, centre, centre_float, channels, unit, codes, coded, kLevels);
  return quantise_in<Single>(row, type, centre, centre_float, channels, unit, codes, coded, kLevels);
}

// Load `kFloats` channels from `first` on as doubles.
template <bool kInside>
inline void doubles_at(const char* row, Type type, std::int64_t first, std::int64_t channels, Doubles* out) {
  if (type == Type::kDouble) {
    const char* from = row + first * 8;
    double room[kFloats] = {0};
    if (!kInside && first + kFloats > channels) {
      std::memcpy(room, from, static_cast<std::size_t>(channels - first) * 8);
      from = reinterpret_cast<const char*>(room);
    }
    out[0] = load<Doubles>(from);
    out[1] = load<Doubles>(from + kVectorBytes);
    return;
  }
  Floats wide;
  floats_at<kInside>(row, type, first, channels, &wide);
  HalfFloats halves[2];
  std::memcpy(halves, &wide, sizeof wide);
  out[0] = __builtin_convertvector(halves[0], Doubles);
  out[1] = __builtin_convertvector(halves[1], Doubles);
}

// Thirty-two partial sums, added in a fixed order: the same bits for every vector width.
template <Type kType>
double squared_distance_of(const double* query, const char* row, std::int64_t channels) {
  constexpr int kParts = 32 / kDoubles;
  Doubles sums[kParts] = {};
  std::int64_t i = 0;
  const auto add = [&](const double* q, const char* b, std::int64_t first) {
    Doubles wide[kParts];
#pragma GCC unroll 16
    for (int part = 0; part < kParts; part += 2) doubles_at<true>(b, kType, first + part * kDoubles, 0, wide + part);
#pragma GCC unroll 16
    for (int part = 0; part < kParts; ++part) {
      const Doubles difference = load<Doubles>(q + first + part * kDoubles) - wide[part];
      sums[part] = sums[part] + difference * difference;
    }
  };
  for (; i + 32 <= channels; i += 32) add(query, row, i);
  if (i < channels) {
    constexpr std::int64_t kBytes = kType == Type::kDouble ? 8 : kType == Type::kFloat ? 4 : 2;
    double q[32] = {0};
    char b[32 * 8] = {0};
    std::memcpy(q, query + i, static_cast<std::size_t>(channels - i) * 8);
    std::memcpy(b, row + i * kBytes, static_cast<std::size_t>((channels - i) * kBytes));
    add(q, b, 0);
  }
  double folded[32];
  std::memcpy(folded, sums, sizeof folded);
  for (int width = 16; width; width /= 2) {
    for (int lane = 0; lane < width; ++lane) folded[lane] += folded[lane + width];
  }
  return folded[0];
}

double squared_distance(const double* query, const char* row, Type type, std::int64_t channels) {
  switch (type) {
    case Type::kDouble:
      return squared_distance_of<Type::kDouble>(query, row, channels);
    case Type::kFloat:
      return squared_distance_of<Type::kFloat>(query, row, channels);
    case Type::kHalf:
      return squared_distance_of<Type::kHalf>(query, row, channels);
    default:
      return squared_distance_of<Type::kBFloat16>(query, row, channels);
  }
}

void widen(const char* row, Type type, std::int64_t channels, double* out) {
  if (type == Type::kDouble) {
    std::memcpy(out, row, static_cast<std::size_t>(channels) * 8);
    return;
  }
  for (std::int64_t i = 0; i < channels; i += kFloats) {
    Doubles wide[2];
    doubles_at<false>(row, type, i, channels, wide);
    const std::int64_t there = channels - i < kFloats ? channels - i : kFloats;
    std::memcpy(out + i, wide, static_cast<std::size_t>(there) * 8);
  }
}

// Multiplicative hash, one per lane. Rows with equal hashes are compared byte by byte afterwards.
std::uint64_t hash(const char* row, Type type, std::int64_t channels, bool* finite) {
  const std::int64_t bytes = channels * bytes_of(type);
  // In NaN and infinity, and only there, all exponent bits are one. In float64 they are in every second word.
  const std::uint32_t high = type == Type::kDouble  ? 0x7ff00000u
                             : type == Type::kFloat ? 0x7f800000u
                             : type == Type::kHalf  ? 0x7c000000u
                                                    : 0x7f800000u;
  const std::uint32_t low = type == Type::kHalf ? 0x7c00u : type == Type::kBFloat16 ? 0x7f80u : 0u;
  Words state, bad = {}, every = {};
  for (std::uint32_t lane = 0; lane < kFloats; ++lane) {
    state[lane] = 0x9e3779b9u * (lane + 1);
    every[lane] = type == Type::kDouble && lane % 2 == 0 ? 0 : ~0u;
  }
  for (std::int64_t i = 0; i < bytes; i += kVectorBytes) {
    Words word = {};
    if (i + kVectorBytes <= bytes) {
      word = load<Words>(row + i);
    } else {
      std::memcpy(&word, row + i, static_cast<std::size_t>(bytes - i));
    }
    bad |= (Words)((word & high) == high) & every;
    if (low) bad |= (Words)((word & low) == low);
    state = (state ^ word) * 0x85ebca6bu;
    state ^= state >> 13;
  }
  std::uint64_t result = 0x2545f4914f6cdd1dull;
  std::uint32_t any = 0;
  for (int lane = 0; lane < kFloats; ++lane) {
    result = (result ^ state[lane]) * 0x9fb21c651e98df25ull;
    result ^= result >> 29;
    any |= bad[lane];
  }
  *finite = any == 0;
  return result;
}
