// XLA's entry points: whole blocks with batch norm folded in, and their halves for batch norm on the batch's statistics.
//
// Images are independent, so a thread takes an image through a block while all of it is in its cache. Gradients of
// parameters are summed over a group of images for each thread, and the groups in order: the same sums every time.

#include "project.h"

namespace ffi = xla::ffi;
using Floats = ffi::Buffer<ffi::F32>;
using FloatsOut = ffi::Result<Floats>;

namespace {

float* Fresh(FloatsOut& out) { return LargePages(out->typed_data(), out->element_count()); }

struct Options {
  int kernel, stride;
  bool relu6, skip;
};

Sizes SizesOf(const Floats& x, int wide, int out, bool expand, const Options& options) {
  auto d = x.dimensions();
  Sizes s;
  s.batch = d[0], s.height = d[1], s.width = d[2], s.in = d[3], s.wide = wide, s.out = out, s.expand = expand;
  s.kernel = options.kernel, s.stride = options.stride;
  s.rows = (s.height + s.stride - 1) / s.stride, s.columns = (s.width + s.stride - 1) / s.stride;
  s.top = std::max((s.rows - 1) * s.stride + s.kernel - s.height, 0) / 2;
  s.left = std::max((s.columns - 1) * s.stride + s.kernel - s.width, 0) / 2;
  return s;
}

// Of the second half alone, whose inputs are the depthwise convolution's outputs.
Sizes HalfSizes(const Floats& depthwise, int out) {
  auto d = depthwise.dimensions();
  Sizes s{};
  s.batch = d[0], s.height = s.rows = d[1], s.width = s.columns = d[2], s.in = s.wide = d[3], s.out = out;
  s.kernel = s.stride = 1;
  return s;
}

Excite ExciteOf(const Floats& reduce, const Floats& reduce_bias, const Floats& expand, const Floats& expand_bias) {
  return {static_cast<int>(reduce.dimensions()[1]), reduce.typed_data(), reduce_bias.typed_data(), expand.typed_data(),
          expand_bias.typed_data()};
}

// Groups of images, each of which one thread takes in order.
struct Groups {
  int count, images;
  Groups(const Sizes& s, const Threads& threads) : count(std::max(1, std::min(s.batch, threads.count()))), images(s.batch) {}
  int Begin(int group) const { return static_cast<long>(images) * group / count; }
};

// Zeroed sums of every group.
template <typename Sums>
struct GroupSums {
  Numbers memory;
  std::vector<Sums> sums;
  template <typename... Args>
  GroupSums(int groups, size_t floats, const Sizes& s, const Args&... args) : memory(groups * floats) {
    for (int g = 0; g < groups; ++g) sums.emplace_back(s, args..., memory.data() + g * floats);
  }
};

template <typename Activation>
void Activate(const float* from, const Projection& w, int panel, const Sizes& s, long first, float* values,
              float* slopes) {
  const int stride = Stride(s), vectors = std::min(kVectors, (stride - panel * kPanel) / kLanes);
  for (int v = 0; v < vectors; ++v) {
    const int c = panel * kPanel + v * kLanes;
    const Vec scale = Load(w.scale.data() + c), bias = Load(w.bias.data() + c);
    for (int q = 0; q < s.columns; ++q) {
      const Vec z = Load(from + q * kPanel + v * kLanes) * scale + bias;
      const long at = (first + q) * stride + c;
      StoreActivated<Activation>(z, values + at, slopes ? slopes + at : nullptr);
    }
  }
}

template <typename Activation>
void Forward(const Threads& threads, const Sizes& s, const Options& options, const Expansion& e, const Projection& p,
             const float* x, const float* out_bias, const float* keep, float* out) {
  const int stride = Stride(s);
  auto image = [&](int n, const Threads& inner) {
    const float* from = x + static_cast<long>(n) * s.pixels() * s.in;
    float* to = out + static_cast<long>(n) * s.outputs() * s.out;
    float* values = Scratch(kImageSlot, static_cast<size_t>(s.outputs()) * stride);
    const int parts = inner.count() > 1 && s.rows >= 16 ? 2 : 1;
    inner.Run(Panels(s.wide) * parts, [&](int item) {
      const int panel = item / parts, part = item % parts;
      ExpandPanelForward<Activation>(s, e, from, panel, s.rows * part / parts, s.rows * (part + 1) / parts,
                                     [&](int o, const float* row) {
                                       Activate<Activation>(row, p, panel, s, static_cast<long>(o) * s.columns, values,
                                                            nullptr);
                                     });
    });
    Gates gates(s, p.excite, Scratch(kSmallSlot, Gates::Floats(s, p.excite)));
    gates.Compute(s, p.excite, values);
    const float kept = keep[n];
    const int pieces = inner.count() > 1 ? std::min(s.outputs(), 4 * inner.count()) : 1;
    inner.Run(pieces, [&](int piece) {
      const int begin = static_cast<long>(s.outputs()) * piece / pieces,
                end = static_cast<long>(s.outputs()) * (piece + 1) / pieces;
      Project(s, p, values, begin, end, gates.gates, to);
      for (int i = begin; i < end; ++i)
        for (int c = 0; c < s.out; ++c) {
          float* at = to + static_cast<long>(i) * s.out + c;
          *at = (*at + out_bias[c]) * kept + (options.skip ? from[static_cast<long>(i) * s.in + c] : 0.0f);
        }
    });
  };
  if (s.batch >= threads.count())
    threads.Run(s.batch, [&](int n) { image(n, Threads::None()); });
  else
    for (int n = 0; n < s.batch; ++n) image(n, threads);
}

template <typename Activation>
void Backward(const Threads& threads, const Sizes& s, const Options& options, const Expansion& e, const Projection& p,
              const float* x, const float* keep, const float* cotangent, const std::vector<ExpansionSums>& expansions,
              const std::vector<ProjectionSums>& projections, Numbers* bias_sums, float* x_gradient) {
  const int stride = Stride(s);
  const Groups groups(s, threads);
  threads.Run(groups.count, [&](int g) {
    for (int n = groups.Begin(g); n < groups.Begin(g + 1); ++n) {
      const float* from = x + static_cast<long>(n) * s.pixels() * s.in;
      float* to = x_gradient + static_cast<long>(n) * s.pixels() * s.in;
      const float* seen = cotangent + static_cast<long>(n) * s.outputs() * s.out;
      float* values = Scratch(kImageSlot, static_cast<size_t>(s.outputs()) * stride);
      float* slopes = Scratch(kImageSlopesSlot, static_cast<size_t>(s.outputs()) * stride);
      for (int panel = 0; panel < Panels(s.wide); ++panel)
        ExpandPanelForward<Activation>(s, e, from, panel, 0, s.rows, [&](int o, const float* row) {
          Activate<Activation>(row, p, panel, s, static_cast<long>(o) * s.columns, values, slopes);
        });
      float* kept = Scratch(kOutputGradientSlot, static_cast<size_t>(s.outputs()) * s.out);
      float* bias_gradient = bias_sums->data() + static_cast<long>(g) * s.out;
      for (int i = 0; i < s.outputs(); ++i)
        for (int c = 0; c < s.out; ++c) {
          const long at = static_cast<long>(i) * s.out + c;
          bias_gradient[c] += kept[at] = seen[at] * keep[n];
        }
      const long row = static_cast<long>(s.cotangent_width()) * kPanel;
      float* padded = Scratch(kCotangentSlot, s.rows * row);
      ProjectBackward(s, p, values, slopes, kept, projections[g], [&](int panel, int o, const float* given) {
        float* at = padded + o * row;
        std::memset(at, 0, 4 * s.before() * kPanel);
        std::memcpy(at + s.before() * kPanel, given, 4l * s.columns * kPanel);
        std::memset(at + (s.before() + s.columns) * kPanel, 0, 4 * s.after() * kPanel);
        const int width = std::min(kPanel, PaddedTo(s.wide, kLanes) - panel * kPanel);
        for (int v = 0; v < width; v += kLanes) {
          Vec total = {};
          for (int q = 0; q < s.columns; ++q) total += Load(given + q * kPanel + v);
          Add(projections[g].bias + panel * kPanel + v, total);
        }
        if (o == s.rows - 1) ExpandPanelBackward<Activation>(s, e, from, panel, padded, expansions[g], to);
      });
      if (options.skip)
        for (long i = 0; i < static_cast<long>(s.pixels()) * s.in; ++i) to[i] += seen[i];
    }
  });
}

template <typename Activation>
void ExpandForward(const Threads& threads, const Sizes& s, bool moments, const Expansion& e, const float* x, float* out,
                   float* mean, float* variance) {
  const int panels = Panels(s.wide);
  threads.Run(s.batch * panels, [&](int item) {
    const int n = item / panels, panel = item % panels, width = std::min(kPanel, s.wide - panel * kPanel);
    float* to = out + static_cast<long>(n) * s.outputs() * s.wide;
    // Sums of what lies above the first output, and of its square: an image's own numbers lie close together.
    Vec shift[kVectors], sum[kVectors], square[kVectors];
    for (int v = 0; v < kVectors; ++v) sum[v] = square[v] = Vec{};
    ExpandPanelForward<Activation>(
        s, e, x + static_cast<long>(n) * s.pixels() * s.in, panel, 0, s.rows, [&](int o, const float* row) {
          WritePanel(row, s.wide, panel, s.columns, to + static_cast<long>(o) * s.columns * s.wide);
          if (!moments) return;
          for (int v = 0; v < kVectors; ++v) {
            if (o == 0) shift[v] = Load(row + v * kLanes);
            for (int q = 0; q < s.columns; ++q) {
              const Vec above = Load(row + q * kPanel + v * kLanes) - shift[v];
              sum[v] += above, square[v] += above * above;
            }
          }
        });
    if (!moments) return;
    for (int i = 0; i < width; ++i) {
      const int v = i / kLanes, lane = i % kLanes;
      const float middle = sum[v][lane] / s.outputs();
      mean[static_cast<long>(n) * s.wide + panel * kPanel + i] = shift[v][lane] + middle;
      variance[static_cast<long>(n) * s.wide + panel * kPanel + i] =
          std::max(0.0f, square[v][lane] / s.outputs() - middle * middle);
    }
  });
}

template <typename Activation>
void ExpandBackward(const Threads& threads, const Sizes& s, const Expansion& e, const float* x, const float* outputs,
                    const float* cotangent, const float* constant, const float* slope, const float* mean,
                    const std::vector<ExpansionSums>& sums, float* x_gradient) {
  const Groups groups(s, threads);
  threads.Run(groups.count, [&](int g) {
    const long row = static_cast<long>(s.cotangent_width()) * kPanel;
    for (int n = groups.Begin(g); n < groups.Begin(g + 1); ++n)
      for (int panel = 0; panel < Panels(s.wide); ++panel) {
        float* padded = Scratch(kCotangentSlot, s.rows * row);
        const int width = std::min(kPanel, s.wide - panel * kPanel);
        for (int o = 0; o < s.rows; ++o) {
          float* at = padded + o * row;
          std::memset(at, 0, 4 * s.before() * kPanel);
          at += s.before() * kPanel;
          const long first = (static_cast<long>(n) * s.outputs() + static_cast<long>(o) * s.columns) * s.wide;
          CopyPanel(cotangent + first, s.wide, panel, s.columns, at);
          for (int v = 0; v < width; v += kLanes) {
            const int c = panel * kPanel + v, count = std::min(kLanes, width - v);
            const Vec b = LoadSome(constant + c, count), a = LoadSome(slope + c, count), m = LoadSome(mean + c, count);
            for (int q = 0; q < s.columns; ++q)
              Add(at + q * kPanel + v, b + a * (LoadSome(outputs + first + static_cast<long>(q) * s.wide + c, count) - m));
          }
          std::memset(at + s.columns * kPanel, 0, 4 * s.after() * kPanel);
        }
        ExpandPanelBackward<Activation>(s, e, x + static_cast<long>(n) * s.pixels() * s.in, panel, padded, sums[g],
                                        x_gradient + static_cast<long>(n) * s.pixels() * s.in);
      }
  });
}

// values and slopes [outputs, stride] of one image's depthwise outputs.
template <typename Activation>
void ActivateImage(const Sizes& s, const Projection& p, const float* from, float* values, float* slopes) {
  const int stride = Stride(s);
  for (int i = 0; i < s.outputs(); ++i)
    for (int c = 0; c < stride; c += kLanes) {
      const Vec z = LoadSome(from + static_cast<long>(i) * s.wide + c, s.wide - c) * Load(p.scale.data() + c) +
                    Load(p.bias.data() + c);
      const long at = static_cast<long>(i) * stride + c;
      StoreActivated<Activation>(z, values + at, slopes ? slopes + at : nullptr);
    }
}

template <typename Activation>
void ProjectForward(const Threads& threads, const Sizes& s, const Projection& p, const float* depthwise, float* out) {
  threads.Run(s.batch, [&](int n) {
    float* values = Scratch(kImageSlot, static_cast<size_t>(s.outputs()) * Stride(s));
    ActivateImage<Activation>(s, p, depthwise + static_cast<long>(n) * s.outputs() * s.wide, values, nullptr);
    Gates gates(s, p.excite, Scratch(kSmallSlot, Gates::Floats(s, p.excite)));
    gates.Compute(s, p.excite, values);
    Project(s, p, values, 0, s.outputs(), gates.gates, out + static_cast<long>(n) * s.outputs() * s.out);
  });
}

template <typename Activation>
void ProjectBackwardHalf(const Threads& threads, const Sizes& s, const Projection& p, const float* depthwise,
                         const float* cotangent, const std::vector<ProjectionSums>& sums, float* gradient) {
  const Groups groups(s, threads);
  threads.Run(groups.count, [&](int g) {
    for (int n = groups.Begin(g); n < groups.Begin(g + 1); ++n) {
      const size_t floats = static_cast<size_t>(s.outputs()) * Stride(s);
      float *values = Scratch(kImageSlot, floats), *slopes = Scratch(kImageSlopesSlot, floats);
      const float* from = depthwise + static_cast<long>(n) * s.outputs() * s.wide;
      float* to = gradient + static_cast<long>(n) * s.outputs() * s.wide;
      ActivateImage<Activation>(s, p, from, values, slopes);
      ProjectBackward(s, p, values, slopes, cotangent + static_cast<long>(n) * s.outputs() * s.out, sums[g],
                      [&](int panel, int o, const float* given) {
                        const int width = std::min(kPanel, s.wide - panel * kPanel);
                        for (int v = 0; v < width; v += kLanes) {
                          const int c = panel * kPanel + v, count = std::min(kLanes, width - v);
                          const Vec scale = Load(p.scale.data() + c);
                          Vec bias_sum = {}, scale_sum = {};
                          for (int q = 0; q < s.columns; ++q) {
                            const long at = (static_cast<long>(o) * s.columns + q) * s.wide + c;
                            const Vec value = Load(given + q * kPanel + v);
                            bias_sum += value, scale_sum += value * LoadSome(from + at, count);
                            StoreSome(to + at, value * scale, count);
                          }
                          Add(sums[g].bias + c, bias_sum), Add(sums[g].scale + c, scale_sum);
                        }
                      });
    }
  });
}

// Runs work with the activation that the options name.
#define WITH_ACTIVATION(call)       \
  if (options.relu6)                \
    call(Relu6);                    \
  else                              \
    call(Swish)

}  // namespace

#define OPTIONS .Attr<int64_t>("kernel").Attr<int64_t>("stride").Attr<bool>("relu6").Attr<bool>("skip")
#define OPTION_TYPES int64_t kernel, int64_t stride, bool relu6, bool skip
#define GIVEN_OPTIONS {static_cast<int>(kernel), static_cast<int>(stride), relu6, skip}

static ffi::Error BlockForward(ffi::ThreadPool pool, OPTION_TYPES, Floats x, Floats expand, Floats expand_bias,
                               Floats taps, Floats bias, Floats se1, Floats se1_bias, Floats se2, Floats se2_bias,
                               Floats project, Floats project_bias, Floats keep, FloatsOut out) {
  const Options options = GIVEN_OPTIONS;
  const Threads threads(&pool);
  const int wide = bias.dimensions()[0];
  const Sizes s = SizesOf(x, wide, project_bias.dimensions()[0], expand.dimensions()[0] > 0, options);
  const Expansion e(threads, s, expand.typed_data(), expand_bias.typed_data(), taps.typed_data(), false);
  const Numbers ones(wide, 1.0f);
  const Projection p(threads, s, project.typed_data(), ones.data(), bias.typed_data(), ExciteOf(se1, se1_bias, se2, se2_bias),
                     false);
#define CALL(A) \
  Forward<A>(threads, s, options, e, p, x.typed_data(), project_bias.typed_data(), keep.typed_data(), Fresh(out))
  WITH_ACTIVATION(CALL);
#undef CALL
  return ffi::Error::Success();
}

static ffi::Error BlockBackward(ffi::ThreadPool pool, OPTION_TYPES, Floats x, Floats expand, Floats expand_bias,
                                Floats taps, Floats bias, Floats se1, Floats se1_bias, Floats se2, Floats se2_bias,
                                Floats project, Floats project_bias, Floats keep, Floats cotangent, FloatsOut x_out,
                                FloatsOut expand_out, FloatsOut expand_bias_out, FloatsOut taps_out, FloatsOut bias_out,
                                FloatsOut se1_out, FloatsOut se1_bias_out, FloatsOut se2_out, FloatsOut se2_bias_out,
                                FloatsOut project_out, FloatsOut project_bias_out) {
  const Options options = GIVEN_OPTIONS;
  const Threads threads(&pool);
  const int wide = bias.dimensions()[0];
  const Sizes s = SizesOf(x, wide, project_bias.dimensions()[0], expand.dimensions()[0] > 0, options);
  const Expansion e(threads, s, expand.typed_data(), expand_bias.typed_data(), taps.typed_data(), true);
  const Numbers ones(wide, 1.0f);
  const Excite se = ExciteOf(se1, se1_bias, se2, se2_bias);
  const Projection p(threads, s, project.typed_data(), ones.data(), bias.typed_data(), se, true);
  const int groups = Groups(s, threads).count;
  GroupSums<ExpansionSums> expansions(groups, ExpansionSums::Floats(s), s);
  GroupSums<ProjectionSums> projections(groups, ProjectionSums::Floats(s, se), s, se);
  Numbers bias_sums(static_cast<size_t>(groups) * s.out);
#define CALL(A)                                                                                             \
  Backward<A>(threads, s, options, e, p, x.typed_data(), keep.typed_data(), cotangent.typed_data(),         \
              expansions.sums, projections.sums, &bias_sums, Fresh(x_out))
  WITH_ACTIVATION(CALL);
#undef CALL
  Unpack(threads, s, expansions.sums, expand_out->typed_data(), expand_bias_out->typed_data(), taps_out->typed_data());
  Unpack(threads, s, se, projections.sums, project_out->typed_data(), nullptr, bias_out->typed_data(), se1_out->typed_data(),
         se1_bias_out->typed_data(), se2_out->typed_data(), se2_bias_out->typed_data());
  for (int c = 0; c < s.out; ++c) {
    float total = 0;
    for (int g = 0; g < groups; ++g) total += bias_sums[static_cast<size_t>(g) * s.out + c];
    project_bias_out->typed_data()[c] = total;
  }
  return ffi::Error::Success();
}

static ffi::Error FirstForward(ffi::ThreadPool pool, OPTION_TYPES, bool moments, Floats x, Floats expand,
                               Floats expand_bias, Floats taps, FloatsOut out, FloatsOut mean, FloatsOut variance) {
  const Options options = GIVEN_OPTIONS;
  const Threads threads(&pool);
  const Sizes s = SizesOf(x, out->dimensions()[3], 0, expand.dimensions()[0] > 0, options);
  const Expansion e(threads, s, expand.typed_data(), expand_bias.typed_data(), taps.typed_data(), false);
#define CALL(A)                                                                                                  \
  ExpandForward<A>(threads, s, moments, e, x.typed_data(), Fresh(out), mean->typed_data(),         \
                   variance->typed_data())
  WITH_ACTIVATION(CALL);
#undef CALL
  return ffi::Error::Success();
}

static ffi::Error FirstBackward(ffi::ThreadPool pool, OPTION_TYPES, Floats x, Floats expand, Floats expand_bias,
                                Floats taps, Floats outputs, Floats cotangent, Floats constant, Floats slope,
                                Floats mean, FloatsOut x_out, FloatsOut expand_out, FloatsOut expand_bias_out,
                                FloatsOut taps_out) {
  const Options options = GIVEN_OPTIONS;
  const Threads threads(&pool);
  const Sizes s = SizesOf(x, mean.dimensions()[0], 0, expand.dimensions()[0] > 0, options);
  const Expansion e(threads, s, expand.typed_data(), expand_bias.typed_data(), taps.typed_data(), true);
  GroupSums<ExpansionSums> sums(Groups(s, threads).count, ExpansionSums::Floats(s), s);
#define CALL(A)                                                                                                  \
  ExpandBackward<A>(threads, s, e, x.typed_data(), outputs.typed_data(), cotangent.typed_data(),                 \
                    constant.typed_data(), slope.typed_data(), mean.typed_data(), sums.sums, Fresh(x_out))
  WITH_ACTIVATION(CALL);
#undef CALL
  Unpack(threads, s, sums.sums, expand_out->typed_data(), expand_bias_out->typed_data(), taps_out->typed_data());
  return ffi::Error::Success();
}

static ffi::Error SecondForward(ffi::ThreadPool pool, bool relu6, Floats depthwise, Floats scale, Floats bias,
                                Floats se1, Floats se1_bias, Floats se2, Floats se2_bias, Floats project,
                                FloatsOut out) {
  const Options options = {1, 1, relu6, false};
  const Threads threads(&pool);
  const Sizes s = HalfSizes(depthwise, project.dimensions()[1]);
  const Projection p(threads, s, project.typed_data(), scale.typed_data(), bias.typed_data(),
                     ExciteOf(se1, se1_bias, se2, se2_bias), false);
#define CALL(A) ProjectForward<A>(threads, s, p, depthwise.typed_data(), Fresh(out))
  WITH_ACTIVATION(CALL);
#undef CALL
  return ffi::Error::Success();
}

static ffi::Error SecondBackward(ffi::ThreadPool pool, bool relu6, Floats depthwise, Floats scale, Floats bias,
                                 Floats se1, Floats se1_bias, Floats se2, Floats se2_bias, Floats project,
                                 Floats cotangent, FloatsOut depthwise_out, FloatsOut scale_out, FloatsOut bias_out,
                                 FloatsOut se1_out, FloatsOut se1_bias_out, FloatsOut se2_out, FloatsOut se2_bias_out,
                                 FloatsOut project_out) {
  const Options options = {1, 1, relu6, false};
  const Threads threads(&pool);
  const Sizes s = HalfSizes(depthwise, project.dimensions()[1]);
  const Excite se = ExciteOf(se1, se1_bias, se2, se2_bias);
  const Projection p(threads, s, project.typed_data(), scale.typed_data(), bias.typed_data(), se, true);
  GroupSums<ProjectionSums> sums(Groups(s, threads).count, ProjectionSums::Floats(s, se), s, se);
#define CALL(A)                                                                                              \
  ProjectBackwardHalf<A>(threads, s, p, depthwise.typed_data(), cotangent.typed_data(), sums.sums,           \
                         Fresh(depthwise_out))
  WITH_ACTIVATION(CALL);
#undef CALL
  Unpack(threads, s, se, sums.sums, project_out->typed_data(), scale_out->typed_data(), bias_out->typed_data(),
         se1_out->typed_data(), se1_bias_out->typed_data(), se2_out->typed_data(), se2_bias_out->typed_data());
  return ffi::Error::Success();
}

#define ARG .Arg<Floats>()
#define RET .Ret<Floats>()
#define ARGS4 ARG ARG ARG ARG
#define RETS4 RET RET RET RET

XLA_FFI_DEFINE_HANDLER_SYMBOL(effnet_block_forward, BlockForward,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>() OPTIONS ARGS4 ARGS4 ARGS4 RET);
XLA_FFI_DEFINE_HANDLER_SYMBOL(effnet_block_backward, BlockBackward,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>() OPTIONS ARGS4 ARGS4 ARGS4 ARG RETS4 RETS4 RET RET
                                  RET);
XLA_FFI_DEFINE_HANDLER_SYMBOL(effnet_first_forward, FirstForward,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>() OPTIONS.Attr<bool>("moments") ARGS4 RET RET RET);
XLA_FFI_DEFINE_HANDLER_SYMBOL(effnet_first_backward, FirstBackward,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>() OPTIONS ARGS4 ARGS4 ARG RETS4);
XLA_FFI_DEFINE_HANDLER_SYMBOL(effnet_second_forward, SecondForward,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attr<bool>("relu6") ARGS4 ARGS4 RET);
XLA_FFI_DEFINE_HANDLER_SYMBOL(effnet_second_backward, SecondBackward,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attr<bool>("relu6") ARGS4 ARGS4 ARG RETS4 RETS4);
