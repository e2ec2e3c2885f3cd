// What `apply_params` of augment.py does to a batch, one image after another, so that an image stays in a core's cache
// from its crop to its blur. Each sum, product and comparison is the Python's, in its order (and compiled without fused
// multiply-adds), so the pixels are the same to the last bit. See augment.py for what each function computes.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace {

enum { CONTRAST = 1, SATURATION = 2, HUE = 3 };  // and brightness, 0: as in augment.py
constexpr float LUMA[3] = {0.2989, 0.587, 0.114};
// Sums side by side, in float64: exact in any order unless a pixel is darker than 2e-6 (at 32 x 32), and even then seen
// in a float32 mean hardly ever.
constexpr int64_t LANES = 16;

struct Image {
  float* pixels;  // (channels, height, width)
  int64_t channels, height, width;
  int64_t area() const { return height * width; }
  float* channel(int64_t c) const { return pixels + c * area(); }
};

inline float clamp(float v) { return v < 0 ? 0 : v > 1 ? 1 : v; }

struct Tap {
  int64_t first, second;
  float weight;
};

// The two pixels of [start, start + length) that each of `size` outputs lies between, and the second's weight.
void find_taps(int64_t start, int64_t length, int64_t size, Tap* taps) {
  double scale = double(length) / double(size);
  for (int64_t i = 0; i < size; ++i) {
    double position = std::max((double(i) + 0.5) * scale - 0.5, 0.0), first = std::floor(position);
    int64_t second = std::min(int64_t(first) + 1, length - 1);
    taps[i] = {int64_t(first) + start, second + start, float(position - first)};
  }
}

void crop_and_flip(const float* from, const Image& to, const int64_t* box, bool flip, std::vector<Tap>& taps) {
  taps.resize(to.height + to.width);
  Tap *down = taps.data(), *across = down + to.height;
  find_taps(box[0], box[2], to.height, down);
  find_taps(box[1], box[3], to.width, across);
  if (flip) std::reverse(across, across + to.width);
  std::vector<float> line(to.width);
  for (int64_t c = 0; c < to.channels; ++c, from += to.area())
    for (int64_t i = 0; i < to.height; ++i) {
      const float *upper = from + down[i].first * to.width, *lower = from + down[i].second * to.width;
      for (int64_t j = 0; j < to.width; ++j) line[j] = (lower[j] - upper[j]) * down[i].weight + upper[j];
      float* out = to.channel(c) + i * to.width;
      for (int64_t j = 0; j < to.width; ++j) {
        float left = line[across[j].first], right = line[across[j].second];
        out[j] = (right - left) * across[j].weight + left;
      }
    }
}

void luma(const Image& x, float* light) {
  if (x.channels == 1) {
    std::copy(x.pixels, x.pixels + x.area(), light);
    return;
  }
  const float *red = x.channel(0), *green = x.channel(1), *blue = x.channel(2);
  for (int64_t i = 0; i < x.area(); ++i) light[i] = red[i] * LUMA[0] + green[i] * LUMA[1] + blue[i] * LUMA[2];
}

// own x + of_light luma(x) + of_mean mean(luma(x)), held in [0, 1].
void blend(const Image& x, float own, float of_light, float of_mean, float* light) {
  luma(x, light);
  double sums[LANES] = {};
  for (int64_t i = 0; i + LANES <= x.area(); i += LANES)
    for (int64_t k = 0; k < LANES; ++k) sums[k] += light[i + k];
  for (int64_t i = x.area() / LANES * LANES; i < x.area(); ++i) sums[0] += light[i];
  float flat = float(std::accumulate(sums, sums + LANES, 0.0) / double(x.area())) * of_mean;
  for (int64_t i = 0; i < x.area(); ++i) light[i] = light[i] * of_light + flat;
  for (int64_t c = 0; c < x.channels; ++c) {
    float* out = x.channel(c);
    for (int64_t i = 0; i < x.area(); ++i) out[i] = clamp(out[i] * own + light[i]);
  }
}

void turn_hue(const Image& x, float shift) {
  if (x.channels == 1) return;
  constexpr float TINY = std::numeric_limits<float>::min();
  float *red = x.channel(0), *green = x.channel(1), *blue = x.channel(2), turn = shift * 6;
  for (int64_t i = 0; i < x.area(); ++i) {
    float r = red[i], g = green[i], b = blue[i];
    float value = std::max(std::max(r, g), b), chroma = value - std::min(std::min(r, g), b);
    float sixths = (g + b - r - value) / std::max(chroma, TINY) + 2;
    sixths = std::copysign(sixths, g - b) + turn;
    sixths = sixths - std::floor(sixths / 6) * 6;
    red[i] = value - clamp(1 - (std::abs(sixths - 3) - 1)) * chroma;
    green[i] = value - clamp(std::abs(sixths - 2) - 1) * chroma;
    blue[i] = value - clamp(std::abs(sixths - 4) - 1) * chroma;
  }
}

void jitter_colors(const Image& x, const float* factors, const int64_t* order, float* light) {
  for (int64_t k = 0; k < 4; ++k) {
    int64_t kind = order[k];
    float factor = kind == SATURATION && x.channels == 1 ? 1 : factors[kind], rest = 1 - factor;
    if (kind == HUE)
      turn_hue(x, factor);
    else
      blend(x, factor, rest * (kind == SATURATION), rest * (kind == CONTRAST), light);
  }
}

void to_grayscale(const Image& x, float* light) {
  luma(x, light);
  for (int64_t c = 0; c < x.channels; ++c) std::copy(light, light + x.area(), x.channel(c));
}

inline int64_t mirrored(int64_t i, int64_t size) { return i < 0 ? -i : i < size ? i : 2 * (size - 1) - i; }

// Convolution with weights[|d|] for |d| < reach down, then across, mirrored at the edges.
void blur(const Image& x, const float* weights, int64_t reach, float* between) {
  std::vector<float> line(x.width + 2 * reach);
  for (int64_t c = 0; c < x.channels; ++c) {
    float* channel = x.channel(c);
    for (int64_t i = 0; i < x.height; ++i) {
      float *out = between + i * x.width, *own = channel + i * x.width;
      for (int64_t j = 0; j < x.width; ++j) out[j] = own[j] * weights[0];
      for (int64_t d = 1; d < reach; ++d) {
        const float* above = channel + mirrored(i - d, x.height) * x.width;
        const float* below = channel + mirrored(i + d, x.height) * x.width;
        for (int64_t j = 0; j < x.width; ++j) out[j] += (above[j] + below[j]) * weights[d];
      }
    }
    for (int64_t i = 0; i < x.height; ++i) {
      float *own = between + i * x.width, *out = channel + i * x.width, *padded = line.data() + reach;
      for (int64_t j = -reach + 1; j < x.width + reach - 1; ++j) padded[j] = own[mirrored(j, x.width)];
      for (int64_t j = 0; j < x.width; ++j) out[j] = own[j] * weights[0];
      for (int64_t d = 1; d < reach; ++d)
        for (int64_t j = 0; j < x.width; ++j) out[j] += (padded[j - d] + padded[j + d]) * weights[d];
    }
  }
}

// x: (b c h w); boxes: (b 4), int64; flip, jitter, gray, blurred: (b), bool; factors: (b 4); order: (b 4), int64;
// weights: (b reach), of the blur at distance 0, 1, ... All contiguous, float32 unless said.
at::Tensor augment(
    const at::Tensor& x, const at::Tensor& boxes, const at::Tensor& flip, const at::Tensor& jitter,
    const at::Tensor& factors, const at::Tensor& order, const at::Tensor& gray, const at::Tensor& blurred,
    const at::Tensor& weights) {
  at::Tensor out = at::empty_like(x);
  int64_t channels = x.size(1), height = x.size(2), width = x.size(3), reach = weights.size(1);
  const float *from = x.const_data_ptr<float>(), *f = factors.const_data_ptr<float>();
  const float* w = weights.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  const int64_t *box = boxes.const_data_ptr<int64_t>(), *turns = order.const_data_ptr<int64_t>();
  const bool *mirror = flip.const_data_ptr<bool>(), *colors = jitter.const_data_ptr<bool>();
  const bool *grays = gray.const_data_ptr<bool>(), *blurs = blurred.const_data_ptr<bool>();
  at::parallel_for(0, x.size(0), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(height * width);
    std::vector<Tap> taps;
    for (int64_t n = begin; n < end; ++n) {
      Image image{to + n * channels * height * width, channels, height, width};
      crop_and_flip(from + n * channels * height * width, image, box + 4 * n, mirror[n], taps);
      if (colors[n]) jitter_colors(image, f + 4 * n, turns + 4 * n, scratch.data());
      if (grays[n]) to_grayscale(image, scratch.data());
      if (blurs[n]) blur(image, w + reach * n, reach, scratch.data());
      for (int64_t i = 0; i < channels * height * width; ++i) image.pixels[i] = clamp(image.pixels[i]);
    }
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(confab, library) {
  library.def(
      "augment(Tensor x, Tensor boxes, Tensor flip, Tensor jitter, Tensor factors, Tensor order, Tensor gray, "
      "Tensor blur, Tensor weights) -> Tensor",
      augment);
}
