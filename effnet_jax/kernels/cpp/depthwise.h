// A depthwise convolution and its gradients on one panel of channels of one image.
#pragma once

#include <algorithm>

#include "vector.h"

// Sizes of a block: inputs [N, height, width, in], expanded to `wide` channels, then [N, rows, columns, out].
struct Sizes {
  int batch, height, width, in, wide, rows, columns, out;
  int kernel, stride, top, left;  // SAME padding before
  bool expand;                    // else the inputs are what the depthwise convolution takes

  int pixels() const { return height * width; }
  int outputs() const { return rows * columns; }
  // Columns of padded inputs, which begin at `left`.
  int padded_width() const { return std::max((columns - 1) * stride + kernel, left + width); }
  // Columns of the padded cotangent before and after.
  int before() const { return (kernel - 1 - left + stride - 1) / stride; }
  int after() const { return std::max(0, (width - 1 + left) / stride - (columns - 1)); }
  int cotangent_width() const { return before() + columns + after(); }
};

// Q outputs of a row, of one vector of channels. Inputs are panels of padded rows.
template <int Q>
inline void DepthwisePixels(const float* padded, long row_stride, int kernel, int stride, const float* weights,
                            float* out) {
  Vec sums[Q];
  for (int q = 0; q < Q; ++q) sums[q] = Vec{};
  for (int u = 0; u < kernel; ++u)
    for (int v = 0; v < kernel; ++v) {
      const Vec weight = Load(weights + (u * kernel + v) * kPanel);
      const float* at = padded + u * row_stride + v * kPanel;
      for (int q = 0; q < Q; ++q) sums[q] += Load(at + q * stride * kPanel) * weight;
    }
  for (int q = 0; q < Q; ++q) Store(out + q * kPanel, sums[q]);
}

// A row of outputs [columns][kPanel] from `kernel` padded rows.
__attribute__((noinline)) inline void DepthwiseRow(const Sizes& s, const float* padded, long row_stride, const float* weights, float* out) {
  constexpr int kBlock = 7;
  for (int vector = 0; vector < kVectors; ++vector) {
    const float *from = padded + vector * kLanes, *taps = weights + vector * kLanes;
    float* to = out + vector * kLanes;
    int q = 0;
    for (; q + kBlock <= s.columns; q += kBlock)
      DepthwisePixels<kBlock>(from + q * s.stride * kPanel, row_stride, s.kernel, s.stride, taps, to + q * kPanel);
    for (; q + 2 <= s.columns; q += 2)
      DepthwisePixels<2>(from + q * s.stride * kPanel, row_stride, s.kernel, s.stride, taps, to + q * kPanel);
    for (; q < s.columns; ++q)
      DepthwisePixels<1>(from + q * s.stride * kPanel, row_stride, s.kernel, s.stride, taps, to + q * kPanel);
  }
}

// Which outputs a column of inputs is seen by: columns first + stride * j see, through tap[i], output j + offset[i].
struct Seen {
  int first, count;  // columns of this parity
  int taps, tap[8], offset[8];

  Seen(const Sizes& s, int parity) : first(parity), count((s.width - parity + s.stride - 1) / s.stride), taps(0) {
    for (int v = 0; v < s.kernel; ++v)
      if ((parity + s.left - v) % s.stride == 0) {
        tap[taps] = v;
        offset[taps++] = (parity + s.left - v) / s.stride + s.before();
      }
  }
};

// The output row that sees input row r through the taps of row u, or -1.
inline int SeenRow(const Sizes& s, int r, int u) {
  int scaled = r + s.top - u;
  if (scaled < 0 || scaled % s.stride) return -1;
  return scaled / s.stride < s.rows ? scaled / s.stride : -1;
}

template <int Q>
inline void InputGradientPixels(const Sizes& s, const Seen& seen, int r, int j, const float* cotangent, long row_stride,
                                const float* weights, const float* slopes, float* out) {
  Vec sums[Q];
  for (int q = 0; q < Q; ++q) sums[q] = Vec{};
  for (int u = 0; u < s.kernel; ++u) {
    int o = SeenRow(s, r, u);
    if (o < 0) continue;
    for (int i = 0; i < seen.taps; ++i) {
      const Vec weight = Load(weights + (u * s.kernel + seen.tap[i]) * kPanel);
      const float* at = cotangent + o * row_stride + (j + seen.offset[i]) * kPanel;
      for (int q = 0; q < Q; ++q) sums[q] += Load(at + q * kPanel) * weight;
    }
  }
  for (int q = 0; q < Q; ++q) {
    long at = (seen.first + static_cast<long>(j + q) * s.stride) * kPanel;
    Store(out + at, slopes ? sums[q] * Load(slopes + at) : sums[q]);
  }
}

// The cotangent of input row r [width][kPanel], times the slopes of what made it. The cotangent of the outputs has
// `before` and `after` columns of zeros.
__attribute__((noinline)) inline void InputGradientRow(const Sizes& s, int r, const float* cotangent, long row_stride, const float* weights,
                             const float* slopes, float* out) {
  constexpr int kBlock = 7;
  for (int parity = 0; parity < s.stride; ++parity) {
    const Seen seen(s, parity);
    for (int vector = 0; vector < kVectors; ++vector) {
      const long v = vector * kLanes;
      const float* slope = slopes ? slopes + v : nullptr;
      int j = 0;
      for (; j + kBlock <= seen.count; j += kBlock)
        InputGradientPixels<kBlock>(s, seen, r, j, cotangent + v, row_stride, weights + v, slope, out + v);
      for (; j < seen.count; ++j)
        InputGradientPixels<1>(s, seen, r, j, cotangent + v, row_stride, weights + v, slope, out + v);
    }
  }
}

template <int T>
inline void TapSums(const Seen& seen, const float* inputs, long stride, const float* cotangent, float* sums) {
  Vec even[T], odd[T];  // two chains for each tap
  for (int i = 0; i < T; ++i) even[i] = odd[i] = Vec{};
  int j = 0;
  for (; j + 2 <= seen.count; j += 2) {
    const Vec a = Load(inputs + j * stride), b = Load(inputs + (j + 1) * stride);
    for (int i = 0; i < T; ++i) {
      const float* at = cotangent + (j + seen.offset[i]) * kPanel;
      even[i] += a * Load(at);
      odd[i] += b * Load(at + kPanel);
    }
  }
  if (j < seen.count)
    for (int i = 0; i < T; ++i)
      even[i] += Load(inputs + j * stride) * Load(cotangent + (j + seen.offset[i]) * kPanel);
  for (int i = 0; i < T; ++i) Add(sums + seen.tap[i] * kPanel, even[i] + odd[i]);
}

// Adds what row r of the inputs [width][kPanel] gives to the kernel's gradient [kernel * kernel][kPanel].
__attribute__((noinline)) inline void KernelGradientRow(const Sizes& s, int r, const float* inputs, const float* cotangent, long row_stride,
                              float* gradient) {
  for (int parity = 0; parity < s.stride; ++parity) {
    const Seen seen(s, parity);
    for (int u = 0; u < s.kernel; ++u) {
      int o = SeenRow(s, r, u);
      if (o < 0) continue;
      for (int vector = 0; vector < kVectors; ++vector) {
        const float *from = inputs + seen.first * kPanel + vector * kLanes,
                    *seen_by = cotangent + o * row_stride + vector * kLanes;
        float* sums = gradient + u * s.kernel * kPanel + vector * kLanes;
        const long stride = s.stride * kPanel;
        switch (seen.taps) {
          case 1: TapSums<1>(seen, from, stride, seen_by, sums); break;
          case 2: TapSums<2>(seen, from, stride, seen_by, sums); break;
          case 3: TapSums<3>(seen, from, stride, seen_by, sums); break;
          case 5: TapSums<5>(seen, from, stride, seen_by, sums); break;
        }
      }
    }
  }
}
