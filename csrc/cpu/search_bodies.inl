// Bodies of the search kernels, included by every search_*.cpp inside an unnamed namespace and under its own instruction set.
// Vectors are the compiler's generic ones; it splits them where registers are narrower, so all sets give the same bits.
// (Products and sums are rounded one by one: the files are compiled with -ffp-contract=off.)

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors never leave a file

using V16f = float __attribute__((vector_size(64)));
using V16i = std::int32_t __attribute__((vector_size(64)));
using V16u = std::uint32_t __attribute__((vector_size(64)));
using V16h = std::uint16_t __attribute__((vector_size(32)));
using V16c = std::int8_t __attribute__((vector_size(16)));
using V8d = double __attribute__((vector_size(64)));
using V8f = float __attribute__((vector_size(32)));
using V8i = std::int32_t __attribute__((vector_size(32)));
using V8c = std::int8_t __attribute__((vector_size(8)));

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

// Sixteen stored numbers as float32, exactly.
inline void floats_of_half(const void* from, V16f* out) {
  const V16u bits = __builtin_convertvector(load<V16h>(from), V16u);
  const V16u shifted = (bits & 0x7fffu) << 13;
  V16f magnitude;
  std::memcpy(&magnitude, &shifted, sizeof magnitude);
  magnitude = magnitude * 0x1p112f;  // moves the exponent; subnormal numbers come out right as well
  V16u result;
  std::memcpy(&result, &magnitude, sizeof result);
  result |= (bits & 0x8000u) << 16;
  std::memcpy(out, &result, sizeof result);
}

inline void floats_of_bfloat16(const void* from, V16f* out) {
  const V16u result = __builtin_convertvector(load<V16h>(from), V16u) << 16;
  std::memcpy(out, &result, sizeof result);
}

// Sixteen channels from `first` on as float32, zero beyond the row's end.
inline void floats_at(const char* row, Type type, std::int64_t first, std::int64_t channels, V16f* out) {
  const std::int64_t width = type == Type::kFloat ? 4 : 2;
  const char* from = row + first * width;
  char room[64] = {0};
  if (first + 16 > channels) {
    std::memcpy(room, from, static_cast<std::size_t>((channels - first) * width));
    from = room;
  }
  if (type == Type::kFloat) {
    *out = load<V16f>(from);
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

// The two precisions in which rows are quantised: float64 rows in float64, all others in float32.
struct Single {
  using V = V16f;
  using I = V16i;
  using C = V16c;
  using Scalar = float;
  static constexpr int kLanes = 16;
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding and subtracting it rounds to an integer
  static constexpr double kUnit = 0x1p-24, kTiny = 0x1p-125;
  static void centred(const char* row, Type type, const double*, const float* centre, std::int64_t first,
                      std::int64_t channels, float unit, V* out) {
    V x, c = {};
    floats_at(row, type, first, channels, &x);
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
  using V = V8d;
  using I = V8i;
  using C = V8c;
  using Scalar = double;
  static constexpr int kLanes = 8;
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
Quantised quantise_in(const char* row, Type type, const double* centre, const float* centre_float, std::int64_t channels,
                      double unit, std::int8_t* codes, std::int64_t coded, int levels) {
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
  if (!(largest <= static_cast<Scalar>(0x1p50))) {  // squares of such numbers do not fit the filter: always a candidate
    std::memset(codes, 0, static_cast<std::size_t>((coded + 3) / 4 * 4));
    result.residual = std::numeric_limits<double>::infinity();
    return result;
  }
  const float step = static_cast<float>(largest / static_cast<Scalar>(levels));
  const bool used = step > 1e-30f;
  const Scalar scale = used ? static_cast<Scalar>(step) : 0, inverse = used ? 1 / static_cast<Scalar>(step) : 0;
  const Scalar bound = static_cast<Scalar>(levels);
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
    const typename P::C narrow = __builtin_convertvector(whole, typename P::C);
    const std::int64_t room = (coded + 3) / 4 * 4 - i;
    std::memcpy(codes + i, &narrow, static_cast<std::size_t>(room < P::kLanes ? room : P::kLanes));
  }
  // channels that are not coded; `coded` is a multiple of the lanes where it is less than `channels`
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
  // rounding of the sum of squares, then of the centred numbers and of the products, then what underflows
  const double residual = std::sqrt(squared_error) * (1 + (n + 16) * 2 * P::kUnit);
  result.residual = residual + 4 * P::kUnit * (std::sqrt(result.norm) + residual) + P::kTiny * (unit + 1) * std::sqrt(n);
  return result;
}

Quantised quantise(const char* row, Type type, const double* centre, const float* centre_float, std::int64_t channels,
                   double unit, std::int8_t* codes, std::int64_t coded) {
  if (type == Type::kDouble)
    return quantise_in<Double>(row, type, centre, centre_float, channels, unit, codes, coded, kLevels);
  return quantise_in<Single>(row, type, centre, centre_float, channels, unit, codes, coded, kLevels);
}

// Thirty-two running sums, folded in a fixed order.
double squared_distance(const double* query, const char* row, Type type, std::int64_t channels) {
  V8d sums[4] = {};
  std::int64_t i = 0;
  for (; i + 32 <= channels; i += 32) {
    V8d b[4];
    if (type == Type::kDouble) {
      for (int part = 0; part < 4; ++part) b[part] = load<V8d>(row + (i + 8 * part) * 8);
    } else if (type == Type::kFloat) {
      for (int part = 0; part < 4; ++part) {
        b[part] = __builtin_convertvector(load<V8f>(row + (i + 8 * part) * 4), V8d);
      }
    } else {
      V16f wide[2];
      floats_at(row, type, i, channels, &wide[0]);
      floats_at(row, type, i + 16, channels, &wide[1]);
      for (int part = 0; part < 4; ++part) {
        b[part] = __builtin_convertvector(load<V8f>(reinterpret_cast<const char*>(wide) + 32 * part), V8d);
      }
    }
    for (int part = 0; part < 4; ++part) {
      const V8d difference = load<V8d>(query + i + 8 * part) - b[part];
      sums[part] = sums[part] + difference * difference;
    }
  }
  if (i < channels) {
    double q[32] = {0}, b[32] = {0};
    const std::int64_t rest = channels - i;
    for (std::int64_t c = 0; c < rest; ++c) q[c] = query[i + c];
    if (type == Type::kDouble) {
      std::memcpy(b, row + i * 8, static_cast<std::size_t>(rest) * 8);
    } else {
      for (std::int64_t first = 0; first < rest; first += 16) {
        V16f wide;
        floats_at(row, type, i + first, channels, &wide);
        for (int lane = 0; lane < 16; ++lane) b[first + lane] = static_cast<double>(wide[lane]);
      }
    }
    for (int part = 0; part < 4; ++part) {
      const V8d difference = load<V8d>(q + 8 * part) - load<V8d>(b + 8 * part);
      sums[part] = sums[part] + difference * difference;
    }
  }
  const V8d folded = (sums[0] + sums[2]) + (sums[1] + sums[3]);
  return ((folded[0] + folded[4]) + (folded[2] + folded[6])) + ((folded[1] + folded[5]) + (folded[3] + folded[7]));
}

void widen(const char* row, Type type, std::int64_t channels, double* out) {
  if (type == Type::kDouble) {
    std::memcpy(out, row, static_cast<std::size_t>(channels) * 8);
    return;
  }
  for (std::int64_t i = 0; i < channels; i += 16) {
    V16f wide;
    floats_at(row, type, i, channels, &wide);
    const std::int64_t there = channels - i < 16 ? channels - i : 16;
    for (std::int64_t lane = 0; lane < there; ++lane) out[i + lane] = static_cast<double>(wide[lane]);
  }
}

// Sixteen multiplicative hashes side by side; equal hashes are compared byte by byte afterwards.
std::uint64_t hash(const char* row, Type type, std::int64_t channels, bool* finite) {
  const std::int64_t bytes = channels * bytes_of(type);
  V16u state, bad = {};
  for (std::uint32_t lane = 0; lane < 16; ++lane) state[lane] = 0x9e3779b9u * (lane + 1);
  for (std::int64_t i = 0; i < bytes; i += 64) {
    V16u word = {};
    if (i + 64 <= bytes) {
      word = load<V16u>(row + i);
    } else {
      std::memcpy(&word, row + i, static_cast<std::size_t>(bytes - i));
    }
    // the exponent's bits are all ones exactly in NaN and infinity
    if (type == Type::kFloat) {
      bad |= (V16u)((word & 0x7f800000u) == 0x7f800000u);
    } else if (type == Type::kDouble) {  // the upper half of each number
      bad |= (V16u)((word & 0x7ff00000u) == 0x7ff00000u) & V16u{0, ~0u, 0, ~0u, 0, ~0u, 0, ~0u, 0, ~0u, 0, ~0u, 0, ~0u, 0, ~0u};
    } else {
      const std::uint32_t mask = type == Type::kHalf ? 0x7c00u : 0x7f80u;
      bad |= (V16u)((word & mask) == mask) | (V16u)((word & (mask << 16)) == (mask << 16));
    }
    state = (state ^ word) * 0x85ebca6bu;
    state ^= state >> 13;
  }
  std::uint64_t result = 0x2545f4914f6cdd1dull;
  std::uint32_t any = 0;
  for (int lane = 0; lane < 16; ++lane) {
    result = (result ^ state[lane]) * 0x9fb21c651e98df25ull;
    result ^= result >> 29;
    any |= bad[lane];
  }
  *finite = any == 0;
  return result;
}
