// First half of a block: depthwise(activation(inputs · kernel + bias)). What lies between is never written to memory:
// a panel of channels of some rows of one image stays in the cache, forward, and again in the backward pass.
#pragma once


#include "depthwise.h"
#include "matrix.h"
#include "parallel.h"

enum Slot { kRowsSlot, kRowSlot, kValuesSlot, kSlopesSlot, kCotangentSlot, kImageSlot, kImageSlopesSlot, kProductSlot,
            kOutputSlot, kPackedSlot, kSmallSlot, kSumsSlot,
            kOutputGradientSlot };

// Parameters as the loops read them.
struct Expansion {
  Numbers kernel, transposed, bias, taps;
  int padded;  // channels, to whole panels

  Expansion(const Threads& threads, const Sizes& s, const float* kernel_in, const float* bias_in, const float* taps_in,
            bool backward)
      : bias(Panels(s.wide) * kPanel), taps(Panels(s.wide) * kPanel * s.kernel * s.kernel),
        padded(Panels(s.wide) * kPanel) {
    Pack(taps_in, s.wide, s.kernel * s.kernel, s.wide, taps.data());
    if (!s.expand) return;
    kernel.resize(static_cast<size_t>(padded) * s.in);
    Pack(kernel_in, s.wide, s.in, s.wide, kernel.data());
    std::memcpy(bias.data(), bias_in, 4 * s.wide);
    if (!backward) return;
    // [panel over `in`][padded][kPanel]
    transposed.resize(static_cast<size_t>(Panels(s.in)) * padded * kPanel);
    threads.Run(Panels(s.in), [&](int panel) {
      float* to = transposed.data() + static_cast<size_t>(panel) * padded * kPanel;
      for (int i = 0; i < std::min(kPanel, s.in - panel * kPanel); ++i) {
        const float* from = kernel_in + static_cast<size_t>(panel * kPanel + i) * s.wide;
        for (int c = 0; c < s.wide; ++c) to[static_cast<size_t>(c) * kPanel + i] = from[c];
      }
    });
  }

  const float* KernelOf(const Sizes& s, int panel) const {
    return kernel.data() + static_cast<size_t>(panel) * s.in * kPanel;
  }
  const float* TapsOf(const Sizes& s, int panel) const {
    return taps.data() + static_cast<size_t>(panel) * s.kernel * s.kernel * kPanel;
  }
};

// A panel's channels of `count` pixels [count][kPanel] from [count, channels]; zeros after the last channel.
__attribute__((noinline)) inline void CopyPanel(const float* from, int channels, int panel, int count, float* to) {
  const int width = std::min(kPanel, channels - panel * kPanel);
  from += panel * kPanel;
  if (width == kPanel) {
    for (int i = 0; i < count; ++i)
      for (int v = 0; v < kVectors; ++v)
        Store(to + i * kPanel + v * kLanes, Load(from + static_cast<long>(i) * channels + v * kLanes));
    return;
  }
  for (int i = 0; i < count; ++i) {
    std::memcpy(to + i * kPanel, from + static_cast<long>(i) * channels, 4 * width);
    std::memset(to + i * kPanel + width, 0, 4 * (kPanel - width));
  }
}

inline void WritePanel(const float* from, int channels, int panel, int count, float* to) {
  const int width = std::min(kPanel, channels - panel * kPanel);
  to += panel * kPanel;
  if (width == kPanel) {
    for (int i = 0; i < count; ++i)
      for (int v = 0; v < kVectors; ++v)
        Store(to + static_cast<long>(i) * channels + v * kLanes, Load(from + i * kPanel + v * kLanes));
    return;
  }
  for (int i = 0; i < count; ++i) std::memcpy(to + static_cast<long>(i) * channels, from + i * kPanel, 4 * width);
}

// What the depthwise convolution takes: a panel of `rows` rows of an image from row `first` on, each of them `to_row`
// floats after the other. Slopes [rows * width][kPanel] too where asked for.
template <typename Activation>
__attribute__((noinline)) inline void Expand(const Sizes& s, const Expansion& w, const float* image, int panel, int first,
                                             int rows, float* values, long to_row, float* slopes) {
  const float* from = image + static_cast<long>(first) * s.width * s.in;
  if (!s.expand) {
    for (int r = 0; r < rows; ++r)
      CopyPanel(from + static_cast<long>(r) * s.width * s.in, s.wide, panel, s.width, values + r * to_row);
    return;
  }
  // All pixels in one product: a row of few would leave rows of sums empty.
  const long row = static_cast<long>(s.width) * kPanel;
  float* sums = Scratch(kSumsSlot, rows * row);
  MultiplyPanel<false>(rows * s.width, s.in, from, s.in, w.KernelOf(s, panel), kPanel, sums, kPanel, false, kPanel);
  Vec bias[kVectors];
  for (int v = 0; v < kVectors; ++v) bias[v] = Load(w.bias.data() + panel * kPanel + v * kLanes);
  for (int r = 0; r < rows; ++r)
    for (int i = 0; i < s.width; ++i)
      for (int v = 0; v < kVectors; ++v) {
        const long at = i * kPanel + v * kLanes;
        const Vec z = Load(sums + r * row + at) + bias[v];
        StoreActivated<Activation>(z, values + r * to_row + at, slopes ? slopes + r * row + at : nullptr);
      }
}

// Calls write(o, [columns][kPanel]) for output rows begin … end - 1 of a panel.
template <typename Activation, typename Write>
inline void ExpandPanelForward(const Sizes& s, const Expansion& w, const float* image, int panel, int begin, int end,
                               const Write& write) {
  const long row = static_cast<long>(s.padded_width()) * kPanel;
  const int chunk = std::max(1, static_cast<int>((20480 / row - s.kernel) / s.stride + 1));
  float* padded = Scratch(kRowsSlot, ((chunk - 1) * s.stride + s.kernel) * row);
  float* out = Scratch(kRowSlot, static_cast<size_t>(s.columns) * kPanel);
  int first = 0, ready = 0;  // padded rows: at the buffer's beginning, after the last that is there
  for (int o = begin; o < end; o += chunk) {
    const int count = std::min(chunk, end - o), low = o * s.stride, high = (o + count - 1) * s.stride + s.kernel;
    if (o > begin && ready > low)
      std::memmove(padded, padded + (low - first) * row, 4 * (ready - low) * row);
    else
      ready = low;
    first = low;
    const int inside = std::max(ready, s.top), outside = std::min(high, s.top + s.height);
    for (; ready < high; ++ready) {  // the padding
      float* at = padded + (ready - low) * row;
      if (ready < inside || ready >= outside) {
        std::memset(at, 0, 4 * row);
      } else {
        std::memset(at, 0, 4 * s.left * kPanel);
        std::memset(at + (s.left + s.width) * kPanel, 0, 4 * (row - (s.left + s.width) * kPanel));
      }
    }
    if (outside > inside)
      Expand<Activation>(s, w, image, panel, inside - s.top, outside - inside,
                         padded + (inside - low) * row + s.left * kPanel, row, nullptr);
    for (int i = 0; i < count; ++i) {
      DepthwiseRow(s, padded + i * s.stride * row, row, w.TapsOf(s, panel), out);
      write(o + i, out);
    }
  }
}

// Sums over images of the gradients of an expansion's parameters, in panels.
struct ExpansionSums {
  float *kernel, *bias, *taps;
  static size_t Floats(const Sizes& s) {
    return static_cast<size_t>(Panels(s.wide)) * kPanel * (s.in + 1 + s.kernel * s.kernel);
  }
  ExpansionSums(const Sizes& s, float* at) {
    const size_t padded = static_cast<size_t>(Panels(s.wide)) * kPanel;
    kernel = at, bias = kernel + padded * s.in, taps = bias + padded;
  }
};

// One panel of one image. The cotangent [rows][cotangent_width][kPanel] has its columns of zeros.
template <typename Activation>
__attribute__((noinline)) inline void ExpandPanelBackward(const Sizes& s, const Expansion& w, const float* image, int panel,
                                const float* cotangent, const ExpansionSums& sums, float* image_gradient) {
  const long row = static_cast<long>(s.width) * kPanel, seen_row = static_cast<long>(s.cotangent_width()) * kPanel;
  const int chunk = std::max(1, static_cast<int>(12288 / row));
  float* values = Scratch(kValuesSlot, chunk * row);
  float* slopes = Scratch(kSlopesSlot, chunk * row);
  const int window = s.kernel * s.kernel;
  for (int r = 0; r < s.height; r += chunk) {
    const int rows = std::min(chunk, s.height - r), pixels = rows * s.width;
    const long first = static_cast<long>(r) * s.width;
    Expand<Activation>(s, w, image, panel, r, rows, values, row, slopes);
    for (int i = 0; i < rows; ++i) {
      KernelGradientRow(s, r + i, values + i * row, cotangent, seen_row,
                        sums.taps + static_cast<size_t>(panel) * window * kPanel);
      InputGradientRow(s, r + i, cotangent, seen_row, w.TapsOf(s, panel), s.expand ? slopes + i * row : nullptr,
                       slopes + i * row);
    }
    if (!s.expand) {
      WritePanel(slopes, s.wide, panel, pixels, image_gradient + first * s.in);
      continue;
    }
    for (int v = 0; v < kVectors; ++v) {
      Vec total = {};
      for (int i = 0; i < pixels; ++i) total += Load(slopes + i * kPanel + v * kLanes);
      Add(sums.bias + panel * kPanel + v * kLanes, total);
    }
    MultiplyPanel<true>(s.in, pixels, image + first * s.in, s.in, slopes, kPanel,
                        sums.kernel + static_cast<size_t>(panel) * s.in * kPanel, kPanel, true, kPanel);
    Multiply(pixels, kPanel, s.in, slopes, kPanel, w.transposed.data() + panel * kPanel * kPanel, w.padded,
             image_gradient + first * s.in, s.in, panel > 0);
  }
}

// Adds up what each group of images gave, and takes it out of its panels.
inline void Unpack(const Threads& threads, const Sizes& s, const std::vector<ExpansionSums>& groups, float* kernel,
                   float* bias, float* taps) {
  threads.Run(Panels(s.wide), [&](int panel) {
    const int width = std::min(kPanel, s.wide - panel * kPanel);
    auto take = [&](float* ExpansionSums::*part, int rows, float* to) {
      for (int r = 0; r < rows; ++r) {
        const size_t at = (static_cast<size_t>(panel) * rows + r) * kPanel;
        float* row = to + static_cast<size_t>(r) * s.wide + panel * kPanel;
        std::memcpy(row, groups[0].*part + at, 4 * width);
        for (size_t g = 1; g < groups.size(); ++g)
          for (int i = 0; i < width; ++i) row[i] += (groups[g].*part)[at + i];
      }
    };
    if (s.expand)
      take(&ExpansionSums::kernel, s.in, kernel), take(&ExpansionSums::bias, 1, bias);
    else
      std::memset(bias + panel * kPanel, 0, 4 * width);
    take(&ExpansionSums::taps, s.kernel * s.kernel, taps);
  });
}
