// Second half of a block: (activation(scale * depthwise + bias) * gates) · kernel, the gates by squeeze-and-excite.
#pragma once

#include "expand.h"

struct Excite {
  int filters;  // 0: there is none, all gates are 1
  const float *reduce, *reduce_bias, *expand, *expand_bias;  // [wide, filters], [filters], [filters, wide], [wide]
};

struct Projection {
  Numbers kernel, transposed, scale, bias;
  const float* plain;
  Excite excite;

  Projection(const Threads& threads, const Sizes& s, const float* kernel_in, const float* scale_in,
             const float* bias_in, const Excite& se, bool backward)
      : kernel(static_cast<size_t>(Panels(s.out)) * kPanel * s.wide), scale(Panels(s.wide) * kPanel),
        bias(Panels(s.wide) * kPanel), plain(kernel_in), excite(se) {
    Pack(kernel_in, s.out, s.wide, s.out, kernel.data());
    std::memcpy(scale.data(), scale_in, 4 * s.wide);
    std::memcpy(bias.data(), bias_in, 4 * s.wide);
    if (!backward) return;
    transposed.resize(static_cast<size_t>(Panels(s.wide)) * kPanel * s.out);
    threads.Run(Panels(s.wide), [&](int panel) {  // [panel over `wide`][out][kPanel]
      PackTransposedPanel(kernel_in, s.wide, s.out, panel, transposed.data() + static_cast<size_t>(panel) * s.out * kPanel);
    });
  }
};

inline int Stride(const Sizes& s) { return PaddedTo(s.wide, kLanes); }  // of a pixel's channels in scratch

// The mean over an image of values [outputs, stride].
inline void Mean(const Sizes& s, const float* values, float* mean) {
  const int stride = Stride(s), outputs = s.outputs();
  std::memset(mean, 0, 4 * stride);
  for (int i = 0; i < outputs; ++i)
    for (int c = 0; c < stride; c += kLanes) Add(mean + c, Load(values + static_cast<long>(i) * stride + c));
  for (int c = 0; c < stride; ++c) mean[c] /= outputs;
}

// What squeeze-and-excite made of one image's mean, kept for its gradient.
struct Gates {
  float *mean, *reduced, *hidden, *gates;  // [stride], [filters] twice, [stride]
  Gates(const Sizes& s, const Excite& se, float* at)
      : mean(at), reduced(mean + Stride(s)), hidden(reduced + PaddedTo(se.filters, kLanes)),
        gates(hidden + PaddedTo(se.filters, kLanes)) {}
  static size_t Floats(const Sizes& s, const Excite& se) {
    return 2 * Stride(s) + 2 * PaddedTo(se.filters, kLanes);
  }

  // values [outputs, stride].
  void Compute(const Sizes& s, const Excite& se, const float* values) {
    if (!se.filters) {
      for (int c = 0; c < Stride(s); ++c) gates[c] = 1.0f;
      return;
    }
    Mean(s, values, mean);
    for (int j = 0; j < PaddedTo(se.filters, kLanes); ++j) reduced[j] = j < se.filters ? se.reduce_bias[j] : 0.0f;
    for (int c = 0; c < s.wide; ++c)
      for (int j = 0; j < se.filters; ++j) reduced[j] += mean[c] * se.reduce[c * se.filters + j];
    for (int j = 0; j < PaddedTo(se.filters, kLanes); j += kLanes) Store(hidden + j, Swish::Value(Load(reduced + j)));
    for (int c = 0; c < Stride(s); ++c) gates[c] = c < s.wide ? se.expand_bias[c] : 0.0f;
    for (int j = 0; j < se.filters; ++j)
      for (int c = 0; c < s.wide; ++c) gates[c] += hidden[j] * se.expand[j * s.wide + c];
    for (int c = 0; c < Stride(s); c += kLanes) Store(gates + c, Sigmoid(Load(gates + c)));
  }
};

// out [outputs, out] = (values * gates) · kernel; values [outputs, stride] are spoilt.
inline void Project(const Sizes& s, const Projection& w, float* values, int begin, int end, const float* gates,
                    float* out) {
  const int chunk = std::max(kRows, 24576 / s.wide / kRows * kRows), stride = Stride(s);
  for (int i = begin; i < end; i += chunk) {
    const int count = std::min(chunk, end - i);
    float* at = values + static_cast<long>(i) * stride;
    if (w.excite.filters)
      for (int j = 0; j < count; ++j)
        for (int c = 0; c < stride; c += kLanes)
          Store(at + j * stride + c, Load(at + j * stride + c) * Load(gates + c));
    Multiply(count, s.wide, s.out, at, stride, w.kernel.data(), s.wide, out + static_cast<long>(i) * s.out, s.out,
             false);
  }
}

inline float Dot(const float* a, const float* b, int count) {
  Vec part = {};
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) part += Load(a + i) * Load(b + i);
  float total = 0;
  for (int v = 0; v < kLanes; ++v) total += part[v];
  for (; i < count; ++i) total += a[i] * b[i];
  return total;
}

// Sums over images of the gradients of a projection's parameters.
struct ProjectionSums {
  float *kernel, *scale, *bias, *reduce, *reduce_bias, *expand, *expand_bias;
  static size_t Floats(const Sizes& s, const Excite& se) {
    const size_t padded = static_cast<size_t>(Panels(s.wide)) * kPanel;
    return padded * (s.out + 3) + se.filters * (2 * padded + 1);
  }
  ProjectionSums(const Sizes& s, const Excite& se, float* at) {
    const size_t padded = static_cast<size_t>(Panels(s.wide)) * kPanel;
    kernel = at, scale = kernel + padded * s.out, bias = scale + padded, reduce = bias + padded;
    reduce_bias = reduce + padded * se.filters, expand = reduce_bias + se.filters;
    expand_bias = expand + padded * se.filters;
  }
};

// The gradients of one image, up to what goes back to each output of the depthwise convolution: for each panel calls
// give(panel, o, [columns][kPanel] of the activation's inputs' cotangents), in order of o.
//   values, slopes: [outputs, stride], of the activation.
//   cotangent: [outputs, out].
template <typename Give>
inline void ProjectBackward(const Sizes& s, const Projection& w, const float* values, const float* slopes,
                            const float* cotangent, const ProjectionSums& sums, const Give& give) {
  const Excite& se = w.excite;
  const int stride = Stride(s), outputs = s.outputs();
  const int hidden = PaddedTo(se.filters, kLanes);
  float* small = Scratch(kSmallSlot, Gates::Floats(s, se) + 2 * stride + 2 * hidden);
  Gates gates(s, se, small);
  float *gate_gradient = small + Gates::Floats(s, se), *mean_gradient = gate_gradient + stride;
  float* hidden_gradient = mean_gradient + stride;
  std::memset(mean_gradient, 0, 4 * stride);
  gates.Compute(s, se, values);

  // valuesᵀ · cotangent [wide, out] gives the kernel's gradient and the gates'.
  float* packed = Scratch(kPackedSlot, static_cast<size_t>(Panels(s.out)) * kPanel * outputs);
  Pack(cotangent, s.out, outputs, s.out, packed);
  float* product = Scratch(kProductSlot, static_cast<size_t>(s.wide) * s.out);
  MultiplyTransposed(s.wide, outputs, s.out, values, stride, packed, outputs, product, s.out, false);
  for (int c = 0; c < s.wide; ++c) {
    const float* row = product + static_cast<long>(c) * s.out;
    float *to = sums.kernel + static_cast<long>(c) * s.out, gate = gates.gates[c];
    for (int o = 0; o < s.out; ++o) to[o] += gate * row[o];
    if (se.filters)  // through the sigmoid
      gate_gradient[c] = Dot(row, w.plain + static_cast<long>(c) * s.out, s.out) * gate * (1.0f - gate);
  }
  if (se.filters) {
    for (int j = 0; j < se.filters; ++j) {
      const float total = Dot(se.expand + static_cast<long>(j) * s.wide, gate_gradient, s.wide);
      for (int c = 0; c < s.wide; ++c)
        sums.expand[static_cast<long>(j) * s.wide + c] += gates.hidden[j] * gate_gradient[c];
      const float r = gates.reduced[j], gate = Sigmoid(All(r))[0];
      hidden_gradient[j] = total * (gate + gates.hidden[j] * (1.0f - gate));
      sums.reduce_bias[j] += hidden_gradient[j];
    }
    for (int c = 0; c < s.wide; ++c) {
      sums.expand_bias[c] += gate_gradient[c];
      const float* row = se.reduce + static_cast<long>(c) * se.filters;
      float total = 0, *to = sums.reduce + static_cast<long>(c) * se.filters;
      for (int j = 0; j < se.filters; ++j) {
        total += row[j] * hidden_gradient[j];
        to[j] += gates.mean[c] * hidden_gradient[j];
      }
      mean_gradient[c] = total / outputs;
    }
  }
  float* row = Scratch(kOutputSlot, static_cast<size_t>(s.columns) * kPanel);
  for (int panel = 0; panel < Panels(s.wide); ++panel) {
    const int vectors = std::min(kVectors, (stride - panel * kPanel) / kLanes);
    if (vectors < kVectors) std::memset(row, 0, 4ul * s.columns * kPanel);
    for (int o = 0; o < s.rows; ++o) {
      const long first = static_cast<long>(o) * s.columns;
      MultiplyPanel<false>(s.columns, s.out, cotangent + first * s.out, s.out,
                           w.transposed.data() + static_cast<size_t>(panel) * s.out * kPanel, kPanel, row, kPanel, false,
                           kPanel);
      for (int v = 0; v < vectors; ++v) {
        const int c = panel * kPanel + v * kLanes;
        const Vec gate = Load(gates.gates + c), mean = Load(mean_gradient + c);
        for (int q = 0; q < s.columns; ++q) {
          float* at = row + q * kPanel + v * kLanes;
          Store(at, (Load(at) * gate + mean) * Load(slopes + (first + q) * stride + c));
        }
      }
      give(panel, o, row);
    }
  }
}

inline void Unpack(const Threads& threads, const Sizes& s, const Excite& se, const std::vector<ProjectionSums>& groups,
                   float* kernel, float* scale, float* bias, float* reduce, float* reduce_bias, float* expand,
                   float* expand_bias) {
  auto take = [&](float* ProjectionSums::*part, size_t count, float* to) {
    const int pieces = count > 65536 ? threads.count() : 1;
    threads.Run(pieces, [&](int piece) {
      const size_t begin = count * piece / pieces, end = count * (piece + 1) / pieces;
      std::memcpy(to + begin, groups[0].*part + begin, 4 * (end - begin));
      for (size_t g = 1; g < groups.size(); ++g)
        for (size_t i = begin; i < end; ++i) to[i] += (groups[g].*part)[i];
    });
  };
  const size_t wide = s.wide, filters = se.filters;
  take(&ProjectionSums::kernel, wide * s.out, kernel), take(&ProjectionSums::bias, wide, bias);
  if (scale) take(&ProjectionSums::scale, wide, scale);
  take(&ProjectionSums::reduce, wide * filters, reduce), take(&ProjectionSums::reduce_bias, filters, reduce_bias);
  take(&ProjectionSums::expand, filters * wide, expand);
  take(&ProjectionSums::expand_bias, wide, expand_bias);  // zeros where there is none
}
