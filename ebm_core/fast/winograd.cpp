// 3x3 convolutions of stride 1, zero padding 1, by Winograd's F(4x4, 3x3) (Lavin and Gray, 2015): a tile of 4x4 outputs
// comes from 6x6 inputs by 36 products instead of 144. Layouts, float32, last index contiguous:
//   x, y   images, channels last: (b h w c) in memory
//   taps   the weight (out in 3 3) as (3 3 in out); turned, rotated by half a turn and with in and out exchanged: the
//          kernel whose convolution is the gradient in x
//   u      the weight transformed and packed: (36, out / PANEL, in, PANEL)
//   v, m   transformed tiles of inputs and outputs: 36 planes of (tiles, channels)
// Matrices for the points 0, +-P, +-Q and infinity; the rounding error of 1 and 2 would be twice as large.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <vector>

namespace {

typedef float Vec __attribute__((vector_size(64), aligned(4), may_alias));
constexpr int64_t LANES = 16, PANEL = 32, PLANES = 36;
#ifdef __AVX512F__
constexpr int64_t ROWS = 12;  // with PANEL, as many sums as there are registers for
#else
constexpr int64_t ROWS = 4;
#endif
constexpr int64_t FITS = 600'000;  // floats of v and m that stay in a core's cache while they are used
constexpr float P = 0.625f, Q = 1.5f;  // exact, as are all their powers that occur

inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }

// One-dimensional transforms: `s` and `t` are the strides of `from` and `to`, in vectors.

// B^T d: 6 inputs to 6.
inline void transform_input(const Vec* d, int s, Vec* to, int t) {
  Vec a = d[4 * s] - Q * Q * d[2 * s], b = P * (d[3 * s] - Q * Q * d[s]);
  Vec c = d[4 * s] - P * P * d[2 * s], e = Q * (d[3 * s] - P * P * d[s]);
  to[0] = P * P * Q * Q * d[0] - (P * P + Q * Q) * d[2 * s] + d[4 * s];
  to[t] = a + b;
  to[2 * t] = a - b;
  to[3 * t] = c + e;
  to[4 * t] = c - e;
  to[5 * t] = P * P * Q * Q * d[s] - (P * P + Q * Q) * d[3 * s] + d[5 * s];
}

// A^T m: 6 products to 4 outputs.
inline void transform_output(const Vec* m, int s, Vec* to, int t) {
  Vec a = m[s] + m[2 * s], b = m[s] - m[2 * s], c = m[3 * s] + m[4 * s], e = m[3 * s] - m[4 * s];
  to[0] = m[0] + a + c;
  to[t] = P * b + Q * e;
  to[2 * t] = P * P * a + Q * Q * c;
  to[3 * t] = P * P * P * b + Q * Q * Q * e + m[5 * s];
}

// A y: 4 outputs' gradients to 6, the transpose of the above.
inline void transform_gradient(const Vec* y, int s, Vec* to, int t) {
  Vec even_p = y[0] + P * P * y[2 * s], odd_p = P * y[s] + P * P * P * y[3 * s];
  Vec even_q = y[0] + Q * Q * y[2 * s], odd_q = Q * y[s] + Q * Q * Q * y[3 * s];
  to[0] = y[0];
  to[t] = even_p + odd_p;
  to[2 * t] = even_p - odd_p;
  to[3 * t] = even_q + odd_q;
  to[4 * t] = even_q - odd_q;
  to[5 * t] = y[3 * s];
}

// The weights' transforms divide, so they are computed in float64 and rounded once.
typedef double Wide __attribute__((vector_size(128)));
constexpr double BY_0 = 1.0 / (P * P * Q * Q);
constexpr double BY_P = 1.0 / (2 * P * P * (P * P - Q * Q)), BY_Q = 1.0 / (2 * Q * Q * (Q * Q - P * P));

inline Wide widened(Vec v) { return __builtin_convertvector(v, Wide); }
inline Vec rounded(Wide v) { return __builtin_convertvector(v, Vec); }

// G g: 3 taps to 6.
inline void transform_taps(const Wide* g, int s, Wide* to, int t) {
  Wide even_p = BY_P * (g[0] + P * P * g[2 * s]), odd_p = BY_P * P * g[s];
  Wide even_q = BY_Q * (g[0] + Q * Q * g[2 * s]), odd_q = BY_Q * Q * g[s];
  to[0] = BY_0 * g[0];
  to[t] = even_p + odd_p;
  to[2 * t] = even_p - odd_p;
  to[3 * t] = even_q + odd_q;
  to[4 * t] = even_q - odd_q;
  to[5 * t] = g[2 * s];
}

// G^T u: 6 to 3 taps, the transpose of the above.
inline void gather_taps(const Wide* u, int s, Wide* to, int t) {
  Wide sum_p = BY_P * (u[s] + u[2 * s]), sum_q = BY_Q * (u[3 * s] + u[4 * s]);
  to[0] = BY_0 * u[0] + sum_p + sum_q;
  to[t] = BY_P * P * (u[s] - u[2 * s]) + BY_Q * Q * (u[3 * s] - u[4 * s]);
  to[2 * t] = P * P * sum_p + Q * Q * sum_q + u[5 * s];
}

// Where the tiles of a batch lie. Passed by value: the compiler then knows that no store changes it.
struct Grid {
  int64_t images, height, width, down, across;
  explicit Grid(const at::Tensor& x)
      : images(x.size(0)), height(x.size(2)), width(x.size(3)), down((height + 3) / 4), across((width + 3) / 4) {}
  int64_t tiles() const { return images * down * across; }
  int64_t image(int64_t tile) const { return tile / (down * across); }
  int64_t top(int64_t tile) const { return tile / across % down * 4; }
  int64_t left(int64_t tile) const { return tile % across * 4; }
  bool inside(int64_t i, int64_t j) const { return i >= 0 && i < height && j >= 0 && j < width; }
};

// SIZE x SIZE pixels from (top, left), LANES channels of each; zero beyond the border.
template <int SIZE>
inline void load_square(const float* image, Grid grid, int64_t channels, int64_t top, int64_t left, Vec* to) {
  for (int i = 0; i < SIZE; i++)
    for (int j = 0; j < SIZE; j++)
      to[SIZE * i + j] =
          grid.inside(top + i, left + j) ? load(image + ((top + i) * grid.width + left + j) * channels) : Vec{};
}

// Planes v of `count` tiles from `first`: B^T d B of the 6x6 pixels d around each.
void inputs(const float* x, Grid grid, int64_t channels, int64_t first, int64_t count, float* v, int64_t plane) {
  for (int64_t t = 0; t < count; t++) {
    int64_t tile = first + t, top = grid.top(tile) - 1, left = grid.left(tile) - 1;
    const float* image = x + grid.image(tile) * grid.height * grid.width * channels;
    for (int64_t c = 0; c < channels; c += LANES) {
      Vec d[36], e[36];
      load_square<6>(image + c, grid, channels, top, left, d);
      for (int i = 0; i < 6; i++) transform_input(d + 6 * i, 1, e + 6 * i, 1);
      for (int j = 0; j < 6; j++) transform_input(e + j, 6, d + j, 6);
      for (int i = 0; i < PLANES; i++) store(v + i * plane + t * channels + c, d[i]);
    }
  }
}

// Images from planes m: A^T m A, plus a bias per channel.
void outputs(const float* m, int64_t plane, Grid grid, int64_t channels, int64_t first, int64_t count,
             const float* bias, float* y) {
  for (int64_t t = 0; t < count; t++) {
    int64_t tile = first + t, top = grid.top(tile), left = grid.left(tile);
    float* image = y + grid.image(tile) * grid.height * grid.width * channels;
    for (int64_t c = 0; c < channels; c += LANES) {
      Vec d[36], e[24], o[16], shift = bias ? load(bias + c) : Vec{};
      for (int i = 0; i < PLANES; i++) d[i] = load(m + i * plane + t * channels + c);
      for (int i = 0; i < 6; i++) transform_output(d + 6 * i, 1, e + 4 * i, 1);
      for (int j = 0; j < 4; j++) transform_output(e + j, 4, o + j, 4);
      for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++)
          if (grid.inside(top + i, left + j))
            store(image + ((top + i) * grid.width + left + j) * channels + c, o[4 * i + j] + shift);
    }
  }
}

// Planes of A g A^T for gradients g of the outputs: the transpose of `outputs`.
void gradients(const float* g, Grid grid, int64_t channels, int64_t first, int64_t count, float* m, int64_t plane) {
  for (int64_t t = 0; t < count; t++) {
    int64_t tile = first + t, top = grid.top(tile), left = grid.left(tile);
    const float* image = g + grid.image(tile) * grid.height * grid.width * channels;
    for (int64_t c = 0; c < channels; c += LANES) {
      Vec d[16], e[24], o[36];
      load_square<4>(image + c, grid, channels, top, left, d);
      for (int j = 0; j < 4; j++) transform_gradient(d + j, 4, e + j, 4);
      for (int i = 0; i < 6; i++) transform_gradient(e + 4 * i, 1, o + 6 * i, 1);
      for (int i = 0; i < PLANES; i++) store(m + i * plane + t * channels + c, o[i]);
    }
  }
}

// R rows and PANEL columns of c (+)= a b, or of a^T b, summed over `depth`; sa, sb, sc are strides of rows in memory.
template <int R, bool TRANSPOSED>
void block(const float* a, int64_t sa, const float* b, int64_t sb, float* c, int64_t sc, int64_t depth, bool add) {
  Vec sum[R][2] = {};
  for (int64_t k = 0; k < depth; k++) {
    Vec b0 = load(b + k * sb), b1 = load(b + k * sb + LANES);
    for (int r = 0; r < R; r++) {
      float factor = TRANSPOSED ? a[k * sa + r] : a[r * sa + k];
      sum[r][0] += factor * b0;
      sum[r][1] += factor * b1;
    }
  }
  for (int r = 0; r < R; r++) {
    store(c + r * sc, add ? load(c + r * sc) + sum[r][0] : sum[r][0]);
    store(c + r * sc + LANES, add ? load(c + r * sc + LANES) + sum[r][1] : sum[r][1]);
  }
}

// All rows of one panel of columns.
template <bool TRANSPOSED>
void panel(const float* a, int64_t sa, const float* b, int64_t sb, float* c, int64_t sc, int64_t rows, int64_t depth,
           bool add) {
  int64_t r = 0, next = TRANSPOSED ? 1 : sa;
  for (; r + ROWS <= rows; r += ROWS) block<ROWS, TRANSPOSED>(a + r * next, sa, b, sb, c + r * sc, sc, depth, add);
  for (; r + 3 <= rows; r += 3) block<3, TRANSPOSED>(a + r * next, sa, b, sb, c + r * sc, sc, depth, add);
  for (; r < rows; r++) block<1, TRANSPOSED>(a + r * next, sa, b, sb, c + r * sc, sc, depth, add);
}

// One plane of m = v u.
void product(const float* v, const float* u, float* m, int64_t tiles, int64_t in, int64_t out) {
  for (int64_t p = 0; p < out; p += PANEL) panel<false>(v, in, u + p * in, PANEL, m + p, out, tiles, in, false);
}

// One plane of v^T m, added to u (in, out).
void correlate(const float* v, const float* m, float* u, int64_t tiles, int64_t in, int64_t out, bool add) {
  for (int64_t p = 0; p < out; p += PANEL) panel<true>(v, in, m + p, out, u + p, out, in, tiles, add);
}

// Memory of this thread that outlives the call: at least `size` floats.
float* scratch(int64_t size) {
  static thread_local std::vector<float> kept;
  if (static_cast<int64_t>(kept.size()) < size) kept.resize(size);
  return kept.data();
}

int64_t even_share(int64_t count) { return (count + at::get_num_threads() - 1) / at::get_num_threads(); }

// Tiles that a thread takes through all stages at once, so that v and m stay in its cache.
int64_t tiles_at_once(int64_t tiles, int64_t in, int64_t out) {
  int64_t share = even_share(tiles), fit = std::max<int64_t>(1, FITS / (PLANES * (in + out)));
  int64_t rounds = (share + fit - 1) / fit;
  return (share + rounds - 1) / rounds;
}

// Where the weights outweigh the tiles, threads share out the planes, so that each weight is read by one core.
bool by_plane(int64_t tiles, int64_t in, int64_t out) { return in * out >= tiles * (in + out); }

void check(const at::Tensor& x, int64_t channels) {
  TORCH_CHECK(x.dim() == 4 && x.scalar_type() == at::kFloat, "winograd: x must be a float32 (b c h w)");
  TORCH_CHECK(channels % PANEL == 0, "winograd: the number of channels must be a multiple of ", PANEL, ", got ", channels);
}

using Maybe = std::optional<at::Tensor>;

at::Tensor convolve(const at::Tensor& x_any, const at::Tensor& u, const Maybe& bias) {
  int64_t in = x_any.size(1), out = u.size(1) * PANEL;
  check(x_any, in);
  TORCH_CHECK(u.dim() == 4 && u.is_contiguous() && u.size(0) == PLANES && u.size(2) == in, "winograd: u does not fit x");
  TORCH_CHECK(!bias || (bias->scalar_type() == at::kFloat && bias->is_contiguous() && bias->numel() == out),
              "winograd: the bias must be ", out, " float32 numbers");
  at::Tensor x = x_any.contiguous(at::MemoryFormat::ChannelsLast);
  Grid grid(x);
  auto layout = x.options().memory_format(at::MemoryFormat::ChannelsLast);
  at::Tensor y = at::empty({grid.images, out, grid.height, grid.width}, layout);
  const float *from = x.const_data_ptr<float>(), *weight = u.const_data_ptr<float>();
  const float* shift = bias ? bias->const_data_ptr<float>() : nullptr;
  float* to = y.mutable_data_ptr<float>();
  int64_t tiles = grid.tiles();
  if (by_plane(tiles, in, out)) {
    int64_t plane_v = tiles * in + LANES, plane_m = tiles * out + LANES;  // LANES: planes that start in different sets
    float *v = scratch(PLANES * (plane_v + plane_m)), *m = v + PLANES * plane_v;
    at::parallel_for(0, tiles, even_share(tiles), [&](int64_t a, int64_t b) {
      inputs(from, grid, in, a, b - a, v + a * in, plane_v);
    });
    at::parallel_for(0, PLANES, even_share(PLANES), [&](int64_t a, int64_t b) {
      for (int64_t i = a; i < b; i++) product(v + i * plane_v, weight + i * in * out, m + i * plane_m, tiles, in, out);
    });
    at::parallel_for(0, tiles, even_share(tiles), [&](int64_t a, int64_t b) {
      outputs(m + a * out, plane_m, grid, out, a, b - a, shift, to);
    });
    return y;
  }
  int64_t at_once = tiles_at_once(tiles, in, out);
  at::parallel_for(0, tiles, even_share(tiles), [&](int64_t begin, int64_t end) {
    int64_t plane_v = at_once * in + LANES, plane_m = at_once * out + LANES;
    float *v = scratch(PLANES * (plane_v + plane_m)), *m = v + PLANES * plane_v;
    for (int64_t a = begin; a < end; a += at_once) {
      int64_t count = std::min(at_once, end - a);
      inputs(from, grid, in, a, count, v, plane_v);
      for (int64_t i = 0; i < PLANES; i++) product(v + i * plane_v, weight + i * in * out, m + i * plane_m, count, in, out);
      outputs(m, plane_m, grid, out, a, count, shift, to);
    }
  });
  return y;
}

at::Tensor pack(const at::Tensor& weight, bool turned) {
  TORCH_CHECK(weight.dim() == 4 && weight.scalar_type() == at::kFloat && weight.size(2) == 3 && weight.size(3) == 3 &&
                  weight.size(turned ? 1 : 0) % PANEL == 0,
              "winograd: the weight must be a float32 (out in 3 3), out a multiple of ", PANEL);
  at::Tensor taps = turned ? weight.permute({2, 3, 0, 1}).flip({0, 1}) : weight.permute({2, 3, 1, 0});
  taps = taps.contiguous();
  int64_t in = taps.size(2), out = taps.size(3);
  at::Tensor u = at::empty({PLANES, out / PANEL, in, PANEL}, taps.options());
  const float* from = taps.const_data_ptr<float>();
  float* to = u.mutable_data_ptr<float>();
  at::parallel_for(0, in, even_share(in), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; k++)
      for (int64_t c = 0; c < out; c += LANES) {
        Wide d[9], e[18], o[36];
        for (int i = 0; i < 9; i++) d[i] = widened(load(from + (i * in + k) * out + c));
        for (int j = 0; j < 3; j++) transform_taps(d + j, 3, e + j, 3);
        for (int i = 0; i < 6; i++) transform_taps(e + 3 * i, 1, o + 6 * i, 1);
        float* place = to + (c / PANEL * in + k) * PANEL + c % PANEL;
        for (int i = 0; i < PLANES; i++) store(place + i * in * out, rounded(o[i]));
      }
  });
  return u;
}

at::Tensor weight_gradient(const at::Tensor& x_any, const at::Tensor& g_any) {
  int64_t in = x_any.size(1), out = g_any.size(1);
  check(x_any, in);
  check(g_any, out);
  at::Tensor x = x_any.contiguous(at::MemoryFormat::ChannelsLast), g = g_any.contiguous(at::MemoryFormat::ChannelsLast);
  Grid grid(x);
  TORCH_CHECK(g.size(0) == grid.images && g.size(2) == grid.height && g.size(3) == grid.width, "winograd: g does not fit x");
  int64_t tiles = grid.tiles(), size = in * out;
  if (size > 4 * tiles * (in + out)) {  // to transform the sums back would take longer than to do without
    at::Tensor like = at::empty({out, in, 3, 3}, x.options().memory_format(at::MemoryFormat::ChannelsLast));
    auto found = at::convolution_backward(g, x, like, at::OptionalIntArrayRef(), {1, 1}, {1, 1}, {1, 1}, false, {0, 0}, 1,
                                          {false, true, false});
    return std::get<1>(found).contiguous(at::MemoryFormat::ChannelsLast);
  }
  bool shared = by_plane(tiles, in, out);
  int64_t workers = shared ? 1 : at::get_num_threads();
  at::Tensor sums = at::empty({workers, PLANES, in, out}, x.options());
  const float *from = x.const_data_ptr<float>(), *slope = g.const_data_ptr<float>();
  float* u = sums.mutable_data_ptr<float>();
  if (shared) {
    int64_t plane_v = tiles * in + LANES, plane_m = tiles * out + LANES;
    float *v = scratch(PLANES * (plane_v + plane_m)), *m = v + PLANES * plane_v;
    at::parallel_for(0, tiles, even_share(tiles), [&](int64_t a, int64_t b) {
      inputs(from, grid, in, a, b - a, v + a * in, plane_v);
      gradients(slope, grid, out, a, b - a, m + a * out, plane_m);
    });
    at::parallel_for(0, PLANES, even_share(PLANES), [&](int64_t a, int64_t b) {
      for (int64_t i = a; i < b; i++) correlate(v + i * plane_v, m + i * plane_m, u + i * size, tiles, in, out, false);
    });
  } else {
    int64_t at_once = tiles_at_once(tiles, in, out), share = even_share(tiles);
    at::parallel_for(0, workers, 1, [&](int64_t first, int64_t last) {
      int64_t plane_v = at_once * in + LANES, plane_m = at_once * out + LANES;
      float *v = scratch(PLANES * (plane_v + plane_m)), *m = v + PLANES * plane_v;
      for (int64_t worker = first; worker < last; worker++) {
        float* own = u + worker * PLANES * size;
        int64_t begin = worker * share, end = std::min(tiles, begin + share);
        if (begin >= end) std::fill(own, own + PLANES * size, 0.f);
        for (int64_t a = begin; a < end; a += at_once) {
          int64_t count = std::min(at_once, end - a);
          inputs(from, grid, in, a, count, v, plane_v);
          gradients(slope, grid, out, a, count, m, plane_m);
          for (int64_t i = 0; i < PLANES; i++)
            correlate(v + i * plane_v, m + i * plane_m, own + i * size, count, in, out, a > begin);
        }
      }
    });
  }
  at::Tensor taps = at::empty({3, 3, in, out}, x.options());
  float* to = taps.mutable_data_ptr<float>();
  at::parallel_for(0, in, even_share(in), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin * out; c < end * out; c += LANES) {
      Wide d[36] = {}, e[18], o[9];
      for (int64_t worker = 0; worker < workers; worker++)
        for (int i = 0; i < PLANES; i++) d[i] += widened(load(u + (worker * PLANES + i) * size + c));
      for (int i = 0; i < 6; i++) gather_taps(d + 6 * i, 1, e + 3 * i, 1);
      for (int j = 0; j < 3; j++) gather_taps(e + j, 3, o + j, 3);
      for (int i = 0; i < 9; i++) store(to + i * size + c, rounded(o[i]));
    }
  });
  return taps.permute({3, 2, 0, 1}).contiguous(at::MemoryFormat::ChannelsLast);  // as the weights lie
}

// Derivatives. Each operator's kernel for autograd adds a node to the graph and calls the operator itself again below
// autograd, as PyTorch's own do: only so do nested transforms (torch.func.grad within torch.func.grad) see it at every
// level. torch::autograd::Function refuses to be nested, and a Python one, compiled, loses the outer derivative.

using at::Tensor;
using torch::autograd::SavedVariable;
using List = torch::autograd::variable_list;

// The convolution with `forward`, or the one with `backward`, its turned twin. `weight` is what both were packed from:
// not read, but it receives the gradient.
Tensor convolution(const Tensor& x, const Tensor& forward, const Tensor& backward, const Maybe&, const Maybe& bias,
                   bool turned) {
  return convolve(x, turned ? backward : forward, bias);
}

template <typename Signature>
auto operation(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

Tensor call_convolution(const Tensor& x, const Tensor& forward, const Tensor& backward, const Maybe& weight,
                        const Maybe& bias, bool turned) {
  static auto op = operation<decltype(convolution)>("confab::winograd_convolve");
  return op.call(x, forward, backward, weight, bias, turned);
}

Tensor call_weight_gradient(const Tensor& x, const Tensor& g) {
  static auto op = operation<decltype(weight_gradient)>("confab::winograd_weight_gradient");
  return op.call(x, g);
}

// Of x, weight, bias. The gradient in x is the convolution of g with the weight turned, and since the two are adjoint,
// x and g change places in the gradient of a turned weight.
struct ConvolutionNode : torch::autograd::Node {
  SavedVariable x, forward, backward, weight;
  bool turned = false;
  void release_variables() override {
    for (SavedVariable* saved : {&x, &forward, &backward, &weight}) saved->reset_data();
  }
  List apply(List&& outer) override {
    const Tensor& g = outer[0];
    if (!g.defined()) return List(3);
    Tensor w = weight.unpack();
    auto in_x = [&] {
      return call_convolution(g, forward.unpack(), backward.unpack(), w.defined() ? Maybe(w) : Maybe(), {}, !turned);
    };
    auto in_weight = [&] { return turned ? call_weight_gradient(g, x.unpack()) : call_weight_gradient(x.unpack(), g); };
    return {task_should_compute_output(0) ? in_x() : Tensor(), task_should_compute_output(1) ? in_weight() : Tensor(),
            task_should_compute_output(2) ? g.sum({0, 2, 3}) : Tensor()};
  }
};

// Whether an outer torch.func transform is still to see the operator: only then does the weight go on below autograd. As
// nothing there reads it, a compiled graph need neither compute nor keep it.
bool nested(const Tensor& tensor) {
  constexpr c10::DispatchKeySet wrappers({c10::DispatchKey::FuncTorchGradWrapper, c10::DispatchKey::FuncTorchBatched});
  return tensor.defined() && tensor.key_set().has_any(wrappers);
}

Tensor convolution_autograd(const Tensor& x, const Tensor& forward, const Tensor& backward, const Maybe& weight,
                            const Maybe& bias, bool turned) {
  Tensor w = weight ? *weight : Tensor(), b = bias ? *bias : Tensor();
  c10::intrusive_ptr<ConvolutionNode> node;
  if (torch::autograd::compute_requires_grad(x, w, b)) {
    node = c10::make_intrusive<ConvolutionNode>();
    node->set_next_edges(torch::autograd::collect_next_edges(x, w, b));
    if (node->should_compute_output(1)) node->x = SavedVariable(x, false);
    node->forward = SavedVariable(forward, false);
    node->backward = SavedVariable(backward, false);
    node->weight = SavedVariable(w, false);
    node->turned = turned;
  }
  Tensor result = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    bool passed_on = nested(x) || nested(w) || nested(b);
    return call_convolution(x, forward, backward, passed_on ? weight : Maybe(), bias, turned);
  }();
  if (node) torch::autograd::set_history(result, node);
  return result;
}

// Its own derivatives, third ones of an energy, are not there: whoever asks for them is told.
Tensor weight_gradient_autograd(const Tensor& x, const Tensor& g) {
  Tensor result = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return call_weight_gradient(x, g);
  }();
  if (torch::autograd::compute_requires_grad(x, g)) {
    auto edges = torch::autograd::collect_next_edges(x, g);
    torch::autograd::set_history(
        result, c10::make_intrusive<torch::autograd::NotImplemented>("winograd's weight gradient", std::move(edges)));
  }
  return result;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(confab, library) {
  library.def(
      "winograd_convolve(Tensor x, Tensor forward, Tensor backward, Tensor? weight, Tensor? bias, bool turned=False)"
      " -> Tensor");
  library.def("winograd_weight_gradient(Tensor x, Tensor g) -> Tensor");
  library.def("winograd_pack(Tensor weight, bool turned=False) -> Tensor");
}

TORCH_LIBRARY_IMPL(confab, CPU, library) {
  library.impl("winograd_convolve", convolution);
  library.impl("winograd_weight_gradient", weight_gradient);
  library.impl("winograd_pack", pack);
}

TORCH_LIBRARY_IMPL(confab, Autograd, library) {
  library.impl("winograd_convolve", convolution_autograd);
  library.impl("winograd_weight_gradient", weight_gradient_autograd);
}
