// The engine of primitives/backends/together.py: expressions over fixed inputs, each computed once, however often it is asked for.
// Before it stand native.hpp, one function for each op, and the macros ROWS, COLS, FUNCTIONS and ELEMENTWISE.
#include <array>
#include <unordered_map>
#include <vector>

using Value = std::array<double, ROWS * COLS>;
using Function = void (*)(double*, const double*, const double*, const double*, int);
static const Function functions[] = {FUNCTIONS};
static const bool elementwise[] = {ELEMENTWISE};

struct Expression {  // a function and the nodes it is applied to
  int32_t call, a, b, c;
  bool operator==(const Expression& o) const { return call == o.call && a == o.a && b == o.b && c == o.c; }
};

struct Hash {
  size_t operator()(const Expression& e) const {
    uint64_t h = uint64_t(uint32_t(e.call)) << 32 | uint32_t(e.a);
    h = (h ^ (uint64_t(uint32_t(e.b)) << 32 | uint32_t(e.c)) * 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
    return h ^ h >> 29;
  }
};

struct Graph {
  std::unordered_map<Expression, int32_t, Hash> known;
  std::vector<Value> values;
  std::vector<char> uniform;  // of each node whether all of its elements are equal by construction

  int32_t add(bool same) {
    values.emplace_back();
    uniform.push_back(same);
    return int32_t(values.size()) - 1;
  }

  int32_t apply(const Expression& e) {
    auto [found, fresh] = known.try_emplace(e, int32_t(values.size()));
    if (fresh) {
      // one number is computed once: the same result, as the functions treat every element alike
      const bool same = elementwise[e.call] && uniform[e.a] && uniform[e.b] && uniform[e.c];
      const int32_t node = add(same);
      double* o = values[node].data();
      functions[e.call](o, values[e.a].data(), values[e.b].data(), values[e.c].data(), same ? 1 : ROWS * COLS);
      if (same) values[node].fill(o[0]);
    }
    return found->second;
  }
};

extern "C" {

Graph* create() { return new Graph; }
void destroy(Graph* graph) { delete graph; }

void clear(Graph* graph) {  // memory is kept: to get it from the system costs more than what is computed in it
  graph->known.clear();
  graph->values.clear();
  graph->uniform.clear();
}

int64_t size(const Graph* graph) { return int64_t(graph->values.size()); }

int32_t leaf(Graph* graph, const double* value, int same) {
  const int32_t node = graph->add(same);
  std::memcpy(graph->values[node].data(), value, sizeof(Value));
  return node;
}

void read(const Graph* graph, int64_t count, const int32_t* nodes, double* out) {
  for (int64_t n = 0; n < count; n++) std::memcpy(out + n * ROWS * COLS, graph->values[nodes[n]].data(), sizeof(Value));
}

// Unrolls `count` programs, one after the other in `words`, over `steps` steps. A program is
//   the numbers of its fixed values, its signals, its slots and its statements;
//   fixed values: a node each, at places 0, 1, …
//   signals: for each its node at every step; their places follow those of the fixed values
//   slots: for each its first node; their places follow
//   statements: a function and three places each; their places follow
//   outputs: the place of the update, then of the next value of each slot.
// `follow` is null, or mul, sub, a program's signal for the parameter at the first place, and the learning rate's nodes:
// the parameter is then moved by each update. `out` gets the nodes of the outputs at each step.
void unroll(Graph* graph, int64_t count, const int32_t* words, int steps, const int32_t* follow, int32_t* out) {
  std::vector<int32_t> at;
  while (count--) {
    const int fixed = words[0], signals = words[1], slots = words[2], statements = words[3];
    const int32_t *given = words + 4, *each = given + fixed, *first = each + signals * steps,
                  *statement = first + slots, *output = statement + 4 * statements;
    at.assign(given, given + fixed);
    at.resize(fixed + signals + slots + statements);
    std::memcpy(at.data() + fixed + signals, first, slots * sizeof(int32_t));
    int32_t p = each[0];
    for (int step = 0; step < steps; step++) {
      for (int i = 0; i < signals; i++) at[fixed + i] = each[i * steps + step];
      if (follow) at[fixed] = p;
      int32_t* next = at.data() + fixed + signals + slots;
      for (int i = 0; i < statements; i++) {
        const int32_t* s = statement + 4 * i;
        next[i] = graph->apply({s[0], at[s[1]], at[s[2]], at[s[3]]});
      }
      for (int i = 0; i <= slots; i++) out[i] = at[output[i]];
      for (int i = 0; i < slots; i++) at[fixed + signals + i] = out[1 + i];
      if (follow) p = graph->apply({follow[1], p, graph->apply({follow[0], follow[2 + step], out[0], 0}), 0});
      out += 1 + slots;
    }
    words = output + 1 + slots;
  }
}

}
