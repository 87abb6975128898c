// Vectors of floats of the machine's width, and the activations on them.
#pragma once

#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRows = 8;  // 3 vectors × 8 rows of sums in 32 registers
#elif defined(__AVX__)
constexpr int kLanes = 8, kRows = 4;  // 3 × 4 in 16 registers
#elif defined(__aarch64__)
constexpr int kLanes = 4, kRows = 8;
#else
constexpr int kLanes = 4, kRows = 4;
#endif

// Channels are taken in panels. An expansion by 6 of a multiple of 8 channels is a multiple of 48 of them.
constexpr int kVectors = 3, kPanel = kVectors * kLanes;

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int VecInt __attribute__((vector_size(4 * kLanes)));
typedef float VecUnaligned __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline Vec Load(const float* at) { return *reinterpret_cast<const VecUnaligned*>(at); }
inline void Store(float* at, Vec value) { *reinterpret_cast<VecUnaligned*>(at) = value; }
inline Vec All(float value) { return value - Vec{}; }
inline void Add(float* at, Vec value) { Store(at, Load(at) + value); }

// Has the compiler keep a value in a register where it would rather read it again.
inline void InRegister(Vec* value) {
#if defined(__x86_64__)
  asm("" : "+x"(*value));
#elif defined(__aarch64__)
  asm("" : "+w"(*value));
#endif
}

// The first `count` lanes, the others 0.
inline Vec LoadSome(const float* at, int count) {
  if (count >= kLanes) return Load(at);
  Vec value = {};
  std::memcpy(&value, at, 4 * count);
  return value;
}

inline void StoreSome(float* at, Vec value, int count) {
  if (count >= kLanes) return Store(at, value);
  std::memcpy(at, &value, 4 * count);
}

inline Vec Select(VecInt mask, Vec yes, Vec no) {
  return reinterpret_cast<Vec>((mask & reinterpret_cast<VecInt>(yes)) | (~mask & reinterpret_cast<VecInt>(no)));
}

// Numbers between two bounds; one that is no number stays so.
inline Vec Between(float low, Vec x, float high) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(_mm512_max_ps(_mm512_set1_ps(low), _mm512_min_ps(_mm512_set1_ps(high), x)));
#elif defined(__AVX__)
  return reinterpret_cast<Vec>(_mm256_max_ps(_mm256_set1_ps(low), _mm256_min_ps(_mm256_set1_ps(high), x)));
#else
  x = Select(x > high, All(high), x);
  return Select(x < low, All(low), x);
#endif
}

// To 1 or 2 units of the last digit. Source: Cephes' expf (Moshier), the polynomial and the split of ln 2.
inline Vec Exp(Vec x) {
  x = Between(-87.0f, x, 88.0f);
  const float kRound = 12582912.0f;  // 1.5 × 2^23: adding it leaves the nearest integer in the last bits
  Vec shifted = x * 1.44269504088896341f + kRound;
  Vec whole = shifted - kRound;
  Vec r = x - whole * 0.693359375f;
  r = r - whole * -2.12194440e-4f;
  Vec p = All(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.0f);
  return reinterpret_cast<Vec>(reinterpret_cast<VecInt>(p) + (reinterpret_cast<VecInt>(shifted) << 23));
}

inline Vec Sigmoid(Vec x) { return 1.0f / (1.0f + Exp(-x)); }

// An activation's value and its derivative.
struct Swish {
  static Vec Value(Vec x) { return x * Sigmoid(x); }
  static Vec Value(Vec x, Vec* slope) {
    Vec gate = Sigmoid(x), value = x * gate;
    *slope = gate + value * (1.0f - gate);
    return value;
  }
};

struct Relu6 {
  static Vec Value(Vec x) { return Between(0.0f, x, 6.0f); }
  static Vec Value(Vec x, Vec* slope) {  // a half at the corners, as JAX has it
    Vec inside = Select((x > 0.0f) & (x < 6.0f), All(1.0f), Vec{});
    *slope = Select((x == 0.0f) | (x == 6.0f), All(0.5f), inside);
    return Value(x);
  }
};

// An activation of z, and its derivative where there is a place for it.
template <typename Activation>
inline void StoreActivated(Vec z, float* value, float* slope) {
  if (!slope) return Store(value, Activation::Value(z));
  Vec derivative;
  Store(value, Activation::Value(z, &derivative));
  Store(slope, derivative);
}

// Memory whose panels begin where a vector may: a load across two lines of the cache costs two.
template <typename T>
struct Aligned {
  using value_type = T;
  Aligned() = default;
  template <typename U>
  Aligned(const Aligned<U>&) {}
  T* allocate(size_t count) {
    void* at = std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64);
    if (!at) throw std::bad_alloc();
    return static_cast<T*>(at);
  }
  void deallocate(T* at, size_t) { std::free(at); }
  bool operator==(const Aligned&) const { return true; }
  bool operator!=(const Aligned&) const { return false; }
};
using Numbers = std::vector<float, Aligned<float>>;
