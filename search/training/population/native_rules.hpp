// Runs rules over stretches of an arena. Before it stand primitives/backends/native.hpp and a loop for each elementwise op,
// named in the macro LOOPS, both put there by search/training/population/native_code.py, which also writes the instructions.

#include <utility>
#include <vector>

static void sum(T* o, const T* a, const T*, const T*, int64_t n) {
  double z = 0;
  for (int64_t first = 0; first < n; first += 256) {
    const int64_t last = n < first + 256 ? n : first + 256;
    T y = 0;
    #pragma omp simd reduction(+:y)
    for (int64_t i = first; i < last; i++) y += a[i];
    z += y;
  }
  o[0] = z;
}
static void spread(T* o, const T* a, const T*, const T*, int64_t n) {
  const T value = a[0];
  for (int64_t i = 0; i < n; i++) o[i] = value;
}

// Rows of the parameter at hand, seen as a matrix of its first dimension by all others; 1 if it is none.
static thread_local int64_t height = 1;

static void size(T* o, const T*, const T*, const T*, int64_t n) { o[0] = n; }
static void rows(T* o, const T*, const T*, const T*, int64_t) { o[0] = height; }
static void cols(T* o, const T*, const T*, const T*, int64_t n) { o[0] = n / height; }

static inline T fused(T a, T b, T c) {
#ifdef __FMA__
  return std::fma(a, b, c);
#else
  return a * b + c;
#endif
}

// R rows and W columns of o = a b; their sums stay in vector registers.
template <int R, int W>
static inline void corner(T* __restrict o, const T* __restrict a, const T* __restrict b, int64_t k, int64_t n) {
  T sums[R][W] = {};
  for (int64_t j = 0; j < k; j++)
    for (int i = 0; i < R; i++)
      #pragma omp simd
      for (int l = 0; l < W; l++) sums[i][l] = fused(a[i * k + j], b[j * n + l], sums[i][l]);
  for (int i = 0; i < R; i++) std::memcpy(o + i * n, sums[i], W * sizeof(T));
}

// As many columns of o = a b as are a multiple of W, from column `l`. Returns the first that is left.
template <int W>
static int64_t strips(T* o, const T* a, const T* b, int64_t r, int64_t k, int64_t n, int64_t l) {
  for (; l + W <= n; l += W) {
    int64_t i = 0;
    for (; i + 4 <= r; i += 4) corner<4, W>(o + i * n + l, a + i * k, b + l, k, n);
    for (; i < r; i++) corner<1, W>(o + i * n + l, a + i * k, b + l, k, n);
  }
  return l;
}

// o = a b for matrices of r by k and k by n elements, row after row.
static void multiply(T* o, const T* a, const T* b, int64_t r, int64_t k, int64_t n) {
  int64_t l = strips<32>(o, a, b, r, k, n, 0);
  l = strips<16>(o, a, b, r, k, n, l);
  l = strips<8>(o, a, b, r, k, n, l);
  l = strips<4>(o, a, b, r, k, n, l);
  l = strips<2>(o, a, b, r, k, n, l);
  strips<1>(o, a, b, r, k, n, l);
}

static void transpose(T* __restrict o, const T* __restrict a, int64_t r, int64_t n) {
  for (int64_t i = 0; i < r; i++)
    for (int64_t j = 0; j < n; j++) o[j * r + i] = a[i * n + j];
}

// As optforge.primitives.linalg.newton_schulz: five steps of m = a m + (b m mt + c (m mt)^2) m from m scaled to norm 1.
static void orthogonalise(T* o, const T* x, const T*, const T*, int64_t n) {
  static thread_local std::vector<T> space;
  const int64_t cols = n / height, r = height < cols ? height : cols, k = n / r;
  const bool tall = height > cols;
  space.resize(3 * n + 3 * r * r);
  T *m = space.data(), *next = m + n, *turned = next + n, *gram = turned + n, *square = gram + r * r, *mix = square + r * r;
  T norm;
  for (int64_t i = 0; i < n; i++) next[i] = x[i] * x[i];
  sum(&norm, next, nullptr, nullptr, n);
  norm = std::sqrt(norm) + T(1e-7);
  if (tall) transpose(m, x, height, cols); else std::memcpy(m, x, n * sizeof(T));
  for (int64_t i = 0; i < n; i++) m[i] /= norm;
  for (int step = 0; step < 5; step++) {
    transpose(turned, m, r, k);
    multiply(gram, m, turned, r, k, r);
    multiply(square, gram, gram, r, r, r);
    for (int64_t i = 0; i < r * r; i++) mix[i] = T(-4.7750) * gram[i] + T(2.0315) * square[i];
    for (int64_t i = 0; i < r; i++) mix[i * r + i] += T(3.4445);
    multiply(next, mix, m, r, r, k);
    std::swap(m, next);
  }
  if (tall) transpose(o, m, r, k); else std::memcpy(o, m, n * sizeof(T));
}

static void (*kernels[])(T*, const T*, const T*, const T*, int64_t) = {LOOPS, sum, spread, orthogonalise, size, rows, cols};

// One program over its members. Values are vectors of up to `tile` elements, addressed by number: 0 is the parameter,
// 1 the gradient, then come slots, numbers, and registers.
struct Rule {
  int64_t seeds, members, rows, elements;  // a seed has `rows` members of `elements` each in the arena
  int64_t stretches, tile, slots, numbers, registers, length;
  const int64_t* sizes;  // of each stretch: parameters, or all of them as one
  const int64_t* heights;  // of each stretch: rows of the matrix; 0 if another rule steps it
  T* p;
  const T* g;
  T* const* slot;
  const int64_t* per_element;  // of each slot: whether it has a value for every element, or one for a stretch
  const T* k;                  // values of the numbers, for each seed and member
  int64_t k_seed, k_member;
  const int32_t* code;  // operation, whether on single numbers, result, three arguments
};

static void run(const Rule& r, T* scratch) {
  const int64_t first_number = 2 + r.slots, first_register = first_number + r.numbers;
  T* at[MOST_VALUES];
  for (int64_t i = first_number; i < first_register + r.registers; i++) at[i] = scratch + (i - first_number) * r.tile;
  for (int64_t s = 0; s < r.seeds; s++)
    for (int64_t m = 0; m < r.members; m++) {
      const int64_t in_arena = (s * r.rows + m) * r.elements, own = s * r.members + m;
      for (int64_t i = 0; i < r.numbers; i++) {
        const T value = r.k[s * r.k_seed + m * r.k_member + i];
        for (int64_t j = 0; j < r.tile; j++) at[first_number + i][j] = value;
      }
      int64_t before = 0;
      for (int64_t q = 0; q < r.stretches; before += r.sizes[q], q++) {
        if (!r.heights[q]) continue;
        height = r.heights[q];
        for (int64_t done = 0; done < r.sizes[q]; done += r.tile) {
          const int64_t n = r.sizes[q] - done < r.tile ? r.sizes[q] - done : r.tile, here = before + done;
          at[0] = r.p + in_arena + here;
          at[1] = const_cast<T*>(r.g) + in_arena + here;
          for (int64_t i = 0; i < r.slots; i++)
            at[2 + i] = r.slot[i] + (r.per_element[i] ? own * r.elements + here : own * r.stretches + q);
          for (const int32_t* c = r.code; c < r.code + 6 * r.length; c += 6)
            kernels[c[0]](at[c[2]], at[c[3]], at[c[4]], at[c[5]], c[1] ? 1 : n);
        }
      }
    }
}

extern "C" void step(int64_t count, const Rule* rules, T* scratch) {
  for (int64_t i = 0; i < count; i++) run(rules[i], scratch);
}
