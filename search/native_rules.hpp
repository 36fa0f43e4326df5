// Runs rules over stretches of an arena. Before it stand primitives/native.hpp and a loop for each elementwise op,
// named in the macro LOOPS, both put there by search/native_code.py, which also writes the instructions.

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
static void size(T* o, const T*, const T*, const T*, int64_t n) { o[0] = n; }

static void (*kernels[])(T*, const T*, const T*, const T*, int64_t) = {LOOPS, sum, spread, size};

// One program over its members. Values are vectors of up to `tile` elements, addressed by number: 0 is the parameter,
// 1 the gradient, then come slots, numbers, and registers.
struct Rule {
  int64_t seeds, members, rows, elements;  // a seed has `rows` members of `elements` each in the arena
  int64_t stretches, tile, slots, numbers, registers, length;
  const int64_t* sizes;  // of each stretch: parameters, or all of them as one
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
      for (int64_t q = 0; q < r.stretches; before += r.sizes[q], q++)
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

extern "C" void step(int64_t count, const Rule* rules, T* scratch) {
  for (int64_t i = 0; i < count; i++) run(rules[i], scratch);
}
