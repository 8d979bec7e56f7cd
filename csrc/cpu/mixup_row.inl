// Body of the kernels in mixup_row.h, included by mixup_avx2.cpp and mixup_avx512.cpp inside an unnamed namespace and
// compiled for their instruction sets. The including file defines kLanes before, and after it the functions declared
// below. The vectors are the compiler's generic ones.

using Floats = float __attribute__((vector_size(kLanes * 4)));
using Words = std::uint32_t __attribute__((vector_size(kLanes * 4)));
using HalfWords = std::uint16_t __attribute__((vector_size(kLanes * 2)));

Floats floats_of_half(HalfWords bits);
HalfWords half_of_floats(Floats x);  // rounds to nearest even
Words widen(HalfWords words);
HalfWords narrow(Words words);  // of words below 2^16
void store_unaligned(void* to, HalfWords x);
// Write to aligned memory without passing through the caches.
void stream(void* to, Floats x);
void stream(void* to, HalfWords x);

template <typename V>
inline V load_vector(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof(V));
  return v;
}

inline void store_unaligned(void* to, Floats x) { std::memcpy(to, &x, sizeof(x)); }

inline Floats floats_of_bfloat16(HalfWords bits) {
  const Words wide = widen(bits) << 16;
  return load_vector<Floats>(&wide);
}

// Rounds to nearest even; NaN becomes 0x7fc0.
inline HalfWords bfloat16_of_floats(Floats x) {
  const Words bits = load_vector<Words>(&x);
  const Words rounded = (bits + ((bits >> 16) & 1) + 0x7fff) >> 16;
  const Words quiet = Words{} + 0x7fc0;
  return narrow(x == x ? rounded : quiet);
}

inline Floats load(const float* from) { return load_vector<Floats>(from); }
inline Floats load(const Half* from) { return floats_of_half(load_vector<HalfWords>(from)); }
inline Floats load(const BFloat16* from) { return floats_of_bfloat16(load_vector<HalfWords>(from)); }

template <typename V>
inline void store_vector(void* to, V v, bool past_caches) {
  if (past_caches) {
    stream(to, v);
  } else {
    store_unaligned(to, v);
  }
}

inline void store(float* to, Floats x, bool past_caches) { store_vector(to, x, past_caches); }
inline void store(Half* to, Floats x, bool past_caches) { store_vector(to, half_of_floats(x), past_caches); }
inline void store(BFloat16* to, Floats x, bool past_caches) { store_vector(to, bfloat16_of_floats(x), past_caches); }

template <typename T>
void mix_row(const T* normal, const T* abnormal, T* mixed, std::int64_t channels, float a, float b, bool past_caches) {
  const bool past = past_caches && reinterpret_cast<std::uintptr_t>(mixed) % sizeof(Floats) == 0;
  std::int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    store(mixed + c, a * load(abnormal + c) + b * load(normal + c), past);
  }
  for (; c < channels; ++c) {
    mixed[c] = static_cast<T>(a * static_cast<float>(abnormal[c]) + b * static_cast<float>(normal[c]));
  }
}
