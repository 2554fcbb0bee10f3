// 3x3 convolutions of maps (N, H, W, C) in float32, padded by one: of spikes by tables, of anything by Winograd's
// F(4x4, 3x3). Each output is summed in one order whatever the batch and the threads, so neither changes its rounding.
// Vectors are the extension that GCC and Clang share.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

typedef float Vector __attribute__((vector_size(32), aligned(4)));
constexpr long LANES = 8;

static Vector load(const float* p) { return *reinterpret_cast<const Vector*>(p); }
static void store(float* p, Vector v) { *reinterpret_cast<Vector*>(p) = v; }

// --- spikes: each channel's 3x3 window is one of 512 rows of its table, and an output the sum of these rows -----------

// s[x - 1] + 2 s[x] + 4 s[x + 1] of one row of pixels
static void code(const float* s, uint16_t* to, long w, long c) {
  const long n = w * c;
  for (long i = 0; i < c; i++) to[i] = (uint16_t)(int)(2 * s[i] + (w > 1 ? 4 * s[i + c] : 0.0f));
  for (long i = c; i < n - c; i++) to[i] = (uint16_t)(int)(s[i - c] + 2 * s[i] + 4 * s[i + c]);
  for (long i = std::max(c, n - c); i < n; i++) to[i] = (uint16_t)(int)(s[i - c] + 2 * s[i]);
}

template <int V>  // vectors of outputs
static void sum_rows(const float* x, const float* table, const float* bias, float* out, long h, long w, long c,
                     long stride, uint16_t* scratch) {
  const long row = w * c, k = V * LANES;
  uint16_t *above = scratch, *here = scratch + row, *below = scratch + 2 * row, *pattern = scratch + 3 * row;
  std::memset(above, 0, row * sizeof(uint16_t));
  code(x, here, w, c);
  for (long y = 0; y < h; y++) {
    if (y + 1 < h) code(x + (y + 1) * row, below, w, c);
    else std::memset(below, 0, row * sizeof(uint16_t));
    for (long at = 0; y % stride == 0 && at < w; at += stride, out += k) {
      for (long i = 0; i < c; i++) {
        const long j = at * c + i;
        pattern[i] = above[j] | here[j] << 3 | below[j] << 6;
      }
      Vector sum[V];
      for (int v = 0; v < V; v++) sum[v] = load(bias + v * LANES);
      const float* rows = table;
#pragma GCC unroll 4
      for (long i = 0; i < c; i++, rows += 512 * k) {
        const float* found = rows + pattern[i] * k;
        for (int v = 0; v < V; v++) sum[v] += load(found + v * LANES);
      }
      for (int v = 0; v < V; v++) store(out + v * LANES, sum[v]);
    }
    std::swap(above, here);
    std::swap(here, below);
  }
}

using SumRows = void (*)(const float*, const float*, const float*, float*, long, long, long, long, uint16_t*);
static const SumRows SUMS[] = {sum_rows<1>, sum_rows<2>, sum_rows<3>, sum_rows<4>,
                               sum_rows<5>, sum_rows<6>, sum_rows<7>, sum_rows<8>};

// x (n, h, w, c) of zeros and ones, table (c, 512, k), bias (k): k is a multiple of 8, up to 64
extern "C" void convolve_spikes(const float* x, const float* table, const float* bias, float* out, long n, long h,
                                long w, long c, long k, long stride, int threads) {
  const SumRows sum = SUMS[k / LANES - 1];
  const long size = (h + stride - 1) / stride * ((w + stride - 1) / stride) * k;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<uint16_t> scratch(3 * w * c + c);
#pragma omp for
    for (long i = 0; i < n; i++) sum(x + i * h * w * c, table, bias, out + i * size, h, w, c, stride, scratch.data());
  }
}

// --- Winograd's F(4x4, 3x3) (Lavin & Gray, CVPR 2016, section 4.3) ---------------------------------------------------

constexpr long TILE = 4, WINDOW = 6, POINTS = 36;
constexpr long CACHED = 768;  // channels times tiles whose points stay in the cache

// B^T d
static void analyse(const Vector* d, Vector* to, long step) {
  to[0 * step] = 4 * d[0] - 5 * d[2] + d[4];
  const Vector a = d[4] - 4 * d[2], b = d[3] - 4 * d[1], e = d[4] - d[2], f = 2 * (d[3] - d[1]);
  to[1 * step] = a + b;
  to[2 * step] = a - b;
  to[3 * step] = e + f;
  to[4 * step] = e - f;
  to[5 * step] = 4 * d[1] - 5 * d[3] + d[5];
}

// A^T m
static void synthesise(const Vector* m, Vector* to, long step) {
  const Vector a = m[1] + m[2], b = m[1] - m[2], e = m[3] + m[4], f = m[3] - m[4];
  to[0 * step] = m[0] + a + e;
  to[1 * step] = b + 2 * f;
  to[2 * step] = a + 4 * e;
  to[3 * step] = b + 8 * f + m[5];
}

// sums (T, k) = inputs (T, c) weights (c, k), two vectors of outputs at a time
template <int T>
static void multiply(const float* inputs, const float* weights, float* sums, long c, long k) {
  for (long j = 0; j < k; j += 2 * LANES) {
    Vector low[T], high[T];
    for (int t = 0; t < T; t++) low[t] = high[t] = Vector{};
    for (long i = 0; i < c; i++) {
      const Vector a = load(weights + i * k + j), b = load(weights + i * k + j + LANES);
#pragma GCC unroll 6
      for (int t = 0; t < T; t++) {
        low[t] += inputs[t * c + i] * a;
        high[t] += inputs[t * c + i] * b;
      }
    }
    for (int t = 0; t < T; t++) store(sums + t * k + j, low[t]), store(sums + t * k + j + LANES, high[t]);
  }
}

struct Maps {
  long h, w, across, tiles;  // tiles in a row, and of an image
  long top(long tile) const { return tile % tiles / across * TILE; }
  long left(long tile) const { return tile % tiles % across * TILE; }
};

// the points of some tiles, of all images one after the other, each `step` behind the last
static void to_points(const float* x, float* points, const Maps& m, long c, long first, long count, long step) {
  for (long t = 0; t < count; t++) {
    const long top = m.top(first + t) - 1, left = m.left(first + t) - 1;
    const float* image = x + (first + t) / m.tiles * m.h * m.w * c;
    for (long i = 0; i < c; i += LANES) {
      Vector d[WINDOW], half[POINTS], whole[POINTS];
      for (long column = 0; column < WINDOW; column++) {
        for (long row = 0; row < WINDOW; row++) {
          const long y = top + row, at = left + column;
          const bool inside = y >= 0 && y < m.h && at >= 0 && at < m.w;
          d[row] = inside ? load(image + (y * m.w + at) * c + i) : Vector{};
        }
        analyse(d, half + column, WINDOW);
      }
      for (long row = 0; row < WINDOW; row++) analyse(half + row * WINDOW, whole + row * WINDOW, 1);
      for (long p = 0; p < POINTS; p++) store(points + p * step + t * c + i, whole[p]);
    }
  }
}

static void from_points(const float* points, float* out, const Maps& m, long k, long first, long count, long step) {
  for (long t = 0; t < count; t++) {
    const long top = m.top(first + t), left = m.left(first + t);
    float* image = out + (first + t) / m.tiles * m.h * m.w * k;
    for (long i = 0; i < k; i += LANES) {
      Vector d[WINDOW], half[TILE * WINDOW], whole[TILE * TILE];
      for (long column = 0; column < WINDOW; column++) {
        for (long row = 0; row < WINDOW; row++) d[row] = load(points + (row * WINDOW + column) * step + t * k + i);
        synthesise(d, half + column, WINDOW);
      }
      for (long row = 0; row < TILE; row++) synthesise(half + row * WINDOW, whole + row * TILE, 1);
      for (long row = 0; row < TILE && top + row < m.h; row++)
        for (long column = 0; column < TILE && left + column < m.w; column++)
          store(image + ((top + row) * m.w + left + column) * k + i, whole[row * TILE + column]);
    }
  }
}

// x (n, h, w, c), weights (36, c, k), G g G^T of the convolution's: c is a multiple of 8, k of 16
extern "C" void convolve(const float* x, const float* weights, float* out, long n, long h, long w, long c, long k,
                         int threads) {
  const long across = (w + TILE - 1) / TILE, tiles = (h + TILE - 1) / TILE * across, all = n * tiles;
  const Maps maps{h, w, across, tiles};
  const long most = std::max(6L, CACHED / std::max(c, k));
  const long in_step = most * c + 2 * LANES, out_step = most * k + 2 * LANES;  // powers of two miss the cache
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<float> inputs(POINTS * in_step), sums(POINTS * out_step);
#pragma omp for
    for (long first = 0; first < all; first += most) {
      const long count = std::min(most, all - first);
      to_points(x, inputs.data(), maps, c, first, count, in_step);
      for (long p = 0; p < POINTS; p++) {
        const float *from = inputs.data() + p * in_step, *by = weights + p * c * k;
        float* to = sums.data() + p * out_step;
        long t = 0;
        for (; t + 6 <= count; t += 6) multiply<6>(from + t * c, by, to + t * k, c, k);
        for (; t + 4 <= count; t += 4) multiply<4>(from + t * c, by, to + t * k, c, k);
        for (; t < count; t++) multiply<1>(from + t * c, by, to + t * k, c, k);
      }
      from_points(sums.data(), out, maps, k, first, count, out_step);
    }
  }
}
