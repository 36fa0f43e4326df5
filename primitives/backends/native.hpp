// What every native step needs. Before it stand the macros T (arithmetic and state), P (parameters and gradients) and
// SLOTS (a pointer for each piece of state); after it the passes of one program, made by primitives/backends/native.py.
#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num() { return 0; }
static int omp_get_num_threads() { return 1; }
#endif

struct bf16 { uint16_t bits; };

template <class X> static inline T load(X x) { return x; }
template <> inline T load(bf16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}

template <class X> static inline X as(T x) { return x; }
template <> inline bf16 as(T x) {
  float y = x;
  uint32_t bits;
  std::memcpy(&bits, &y, 4);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  return {uint16_t(y != y ? 0x7fc0 : rounded)};
}

static inline T maximum(T a, T b) { return a > b || a != a ? a : b; }  // NaN wins, as in torch
static inline T minimum(T a, T b) { return a < b || a != a ? a : b; }
static inline T modulo(T a, T b) {  // of the sign of b, as in torch
  const T r = std::fmod(a, b);
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
static inline T lerp(T x, T y, T w) { return std::fabs(w) < T(0.5) ? x + w * (y - x) : y - (y - x) * (1 - w); }

// One parameter, seen as `rows` of `cols` elements, of which the last may be short; `deep` rows are a chunk of work.
struct Tensor {
  int64_t size, rows, cols, deep;
  P* p;
  const P* g;
  T* scratch;
  double* partial;
  SLOTS
};

static inline int64_t chunks(const Tensor& t) { return (t.rows + t.deep - 1) / t.deep; }

// Calls f(tensor, chunk) for this thread's share of all chunks, which is contiguous.
template <class F> static inline void share(const Tensor* ts, int64_t count, F f) {
  int64_t total = 0, before = 0, me = omp_get_thread_num(), of = omp_get_num_threads();
  for (int64_t n = 0; n < count; n++) total += chunks(ts[n]);
  const int64_t from = total * me / of, to = total * (me + 1) / of;
  for (int64_t n = 0; n < count; n++) {
    const int64_t own = chunks(ts[n]);
    for (int64_t c = from > before ? from - before : 0; c < own && c < to - before; c++) f(ts[n], c);
    before += own;
  }
}
