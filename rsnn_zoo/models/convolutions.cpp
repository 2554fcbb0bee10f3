// 3x3 convolutions of maps (N, H, W, C) in float32, padded by one, by Winograd's F(4x4, 3x3): Lavin & Gray, CVPR 2016,
// section 4.3. Each output is summed in one order whatever the batch and the threads, so neither changes its rounding.
// Vectors are the extension that GCC and Clang share.

#include <algorithm>
#include <vector>

typedef float Vector __attribute__((vector_size(32), aligned(4)));
constexpr long LANES = 8;

static Vector load(const float* p) { return *reinterpret_cast<const Vector*>(p); }
static void store(float* p, Vector v) { *reinterpret_cast<Vector*>(p) = v; }

constexpr long TILE = 4, WINDOW = 6, POINTS = 36;
constexpr long CACHED = 768;      // channels times tiles whose points stay in the cache
constexpr long HEAVY = 128 * 128;  // weights of a point from which they cost more to fetch than the points of
constexpr long MANY = 192;         // so many tiles

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

// Structs, since templates drop the alignment of a bare vector type.
struct Narrow {
  typedef float Vector __attribute__((vector_size(32), aligned(4)));
};
#ifdef __AVX512F__
struct Wide {
  typedef float Vector __attribute__((vector_size(64), aligned(4)));
};
constexpr int AT_ONCE = 12;  // tiles whose sums the registers hold
#else
typedef Narrow Wide;
constexpr int AT_ONCE = 6;
#endif
constexpr long STRIDE = 2 * sizeof(Wide::Vector) / sizeof(float);

// sums (T, k) = inputs (T, c) weights (c, k), two vectors of outputs at a time
template <class Kind, int T>
static void multiply(const float* inputs, const float* weights, float* sums, long c, long k) {
  typedef typename Kind::Vector Lanes;
  constexpr long width = sizeof(Lanes) / sizeof(float);
  for (long j = 0; j < k; j += 2 * width) {
    Lanes low[T], high[T];
    for (int t = 0; t < T; t++) low[t] = high[t] = Lanes{};
    for (long i = 0; i < c; i++) {
      const Lanes* row = reinterpret_cast<const Lanes*>(weights + i * k + j);
      const Lanes a = row[0], b = row[1];
#pragma GCC unroll 12
      for (int t = 0; t < T; t++) {
        low[t] += inputs[t * c + i] * a;
        high[t] += inputs[t * c + i] * b;
      }
    }
    for (int t = 0; t < T; t++) {
      Lanes* to = reinterpret_cast<Lanes*>(sums + t * k + j);
      to[0] = low[t], to[1] = high[t];
    }
  }
}

template <class Kind, int T>
static void multiply_all(const float* inputs, const float* weights, float* sums, long c, long k, long count) {
  long t = 0;
  for (; t + T <= count; t += T) multiply<Kind, T>(inputs + t * c, weights, sums + t * k, c, k);
  for (; t + 4 <= count; t += 4) multiply<Kind, 4>(inputs + t * c, weights, sums + t * k, c, k);
  for (; t < count; t++) multiply<Kind, 1>(inputs + t * c, weights, sums + t * k, c, k);
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

static void from_points(const float* points, const float* bias, float* out, const Maps& m, long k, long first,
                        long count, long step) {
  for (long t = 0; t < count; t++) {
    const long top = m.top(first + t), left = m.left(first + t);
    float* image = out + (first + t) / m.tiles * m.h * m.w * k;
    for (long i = 0; i < k; i += LANES) {
      const Vector shift = bias ? load(bias + i) : Vector{};
      Vector d[WINDOW], half[TILE * WINDOW], whole[TILE * TILE];
      for (long column = 0; column < WINDOW; column++) {
        for (long row = 0; row < WINDOW; row++) d[row] = load(points + (row * WINDOW + column) * step + t * k + i);
        synthesise(d, half + column, WINDOW);
      }
      for (long row = 0; row < TILE; row++) synthesise(half + row * WINDOW, whole + row * TILE, 1);
      for (long row = 0; row < TILE && top + row < m.h; row++)
        for (long column = 0; column < TILE && left + column < m.w; column++)
          store(image + ((top + row) * m.w + left + column) * k + i, whole[row * TILE + column] + shift);
    }
  }
}

// x (n, h, w, c), weights (36, c, k), G g G^T of the convolution's, bias (k) or null: c is a multiple of 8, k of 16
extern "C" void convolve(const float* x, const float* weights, const float* bias, float* out, long n, long h, long w,
                         long c, long k, int threads) {
  const long across = (w + TILE - 1) / TILE, tiles = (h + TILE - 1) / TILE * across, all = n * tiles;
  const Maps maps{h, w, across, tiles};
  const long fit = c * k < HEAVY ? std::max(6L, CACHED / std::max(c, k)) : MANY;
  const long parts = (all + fit * threads - 1) / (fit * threads) * threads;  // as many for each thread
  const long most = parts ? (all + parts - 1) / parts : 1;
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
        if (k % STRIDE == 0)
          multiply_all<Wide, AT_ONCE>(from, by, to, c, k, count);
        else
          multiply_all<Narrow, 6>(from, by, to, c, k, count);
      }
      from_points(sums.data(), bias, out, maps, k, first, count, out_step);
    }
  }
}
