"""Steps as C++ for the CPU: all parameters of a model in one call, in place, without temporaries of their size.

The rule is written out as loops over the elements. What it sums over a whole parameter (norms, row and column means)
takes a pass of its own, after which everything elementwise is computed again rather than kept: arithmetic is cheaper
than memory. Only the last pass writes. A parameter goes through all of its passes, while the cache holds it, before
the next one does.

Threads share the work in fixed chunks, and every sum adds up its chunks in their order, so that results do not depend
on the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path

from optforge.primitives.backends.trace import TENSOR, S, Step
from optforge.primitives.kinds import Kind

ROW, COL = Kind.ROW, Kind.COL
_LOOP = {ROW: ("i", "rows"), COL: ("j", "cols")}


class Native:
    """C++ source of a step, and the memory that its caller must provide.

    The function ``step(count, tensors, numbers, threads)`` takes an array of the struct ``Tensor`` of native.hpp, and
    the numbers of `primitives.backends.source.HoistedStep` followed by the learning rate and the sign of gradients.

    Args:
        step: what to compute.
        kinds: kinds of the live slots.
        matrix: whether the rule sees rows and columns.
        dtype: C++ type of arithmetic and state, ``float`` or ``double``.
        held: C++ type of parameters and gradients, ``dtype`` or ``bf16``; what rounding takes from parameters is then
            kept in a slot after the others.
    """

    def __init__(self, step: Step, kinds: Sequence[Kind], matrix: bool, dtype: str, held: str) -> None:
        self._nodes, self._update, self._kinds, self._matrix = step.nodes, step.update, tuple(kinds), matrix
        self.slots = len(self._kinds) + (dtype != held)
        self._rest = f"s{len(self._kinds)}[at]" if dtype != held else ""
        self._lr = sum(node.code[0] == "k" for node in step.nodes)
        self._next = [(i, n) for i, n in enumerate(step.following) if n is not None]
        written = [n for i, n in self._next if self._kinds[i] is TENSOR]
        self._results = [self._update, *written, [node.code for node in step.nodes].index("p")]
        live = self._made_of([*self._results, *(n for _, n in self._next)], whole=True)
        read = [a for i in live if self._nodes[i].kind is TENSOR for a in self._nodes[i].args]
        self._in_passes = {*self._results, *read}
        needed = [*self._made_of(self._results, whole=True), *(a for i in live if self._nodes[i].is_sum
                                                               for a in self._nodes[i].args)]  # fmt: skip
        # The last pass may also sum what only the next step reads: it need not be known when results are written.
        self._passes = max(self._nodes[i].level for i in needed) + 1
        self._kept = {kind: [i for i in live if self._nodes[i].kind is kind and self._is_kept(i)] for kind in Kind}
        summed = [i for i in live if self._needs_pass(i)]
        self._sums = {kind: [i for i in summed if self._nodes[i].kind is kind] for kind in Kind}
        macros = {"T": dtype, "P": held, "SLOTS": "".join(f"T* s{i}; " for i in range(self.slots))}
        lines = [f"#define {name} {text}" for name, text in macros.items()]
        header = Path(__file__).with_name("native.hpp").read_text(encoding="utf-8")
        self.source = "\n".join([*lines, header, *self._functions()])

    def scratch(self, rows: int, cols: int, chunks: int) -> int:
        """Numbers of the state's dtype that a parameter needs beside its state."""
        vectors = len(self._kept[COL]) + chunks * len(self._sums[COL])
        return len(self._kept[S]) + len(self._kept[ROW]) * rows + vectors * cols

    def partial(self, chunks: int) -> int:
        """Numbers in float64 that it needs."""
        return chunks * len(self._sums[S])

    @property
    def sums_columns(self) -> bool:
        """Whether chunks keep vectors of column sums."""
        return bool(self._sums[COL])

    # which values are where

    def _is_kept(self, i: int) -> bool:
        """Whether a value lies in memory from one pass to the next: sums, and vectors that passes read."""
        node = self._nodes[i]
        return node.is_sum or (node.kind in _LOOP and bool(node.args) and i in self._in_passes)

    def _needs_pass(self, i: int) -> bool:
        return self._nodes[i].is_sum and self._nodes[self._nodes[i].args[0]].kind is TENSOR

    def _made_of(self, wanted: Iterable[int], whole: bool = False) -> list[int]:
        """`wanted` and what they are made of, in order; what is kept counts as known, unless the `whole` is asked."""
        todo, found = list(wanted), set[int]()
        while todo:
            i = todo.pop()
            if i not in found:
                found.add(i)
                todo += self._nodes[i].args if whole or not self._is_kept(i) else ()
        return sorted(found)

    def _place(self, i: int) -> str:
        """Where a kept value is: of row `i`, column `j`."""
        kind, kept = self._nodes[i].kind, self._kept
        at = kept[kind].index(i)
        if kind is S:
            return f"scratch[{at}]"
        rows = f"{len(kept[S])} + {at if kind is ROW else len(kept[ROW])} * t.rows"
        return f"scratch[{rows} + i]" if kind is ROW else f"scratch[{rows} + {at} * t.cols + j]"

    def _chunk_sums(self, i: int) -> str:
        """Where chunk `c` has its vector of column sums."""
        vectors = f"{len(self._kept[COL])} + c * {len(self._sums[COL])} + {self._sums[COL].index(i)}"
        return f"t.scratch + {len(self._kept[S])} + {len(self._kept[ROW])} * t.rows + ({vectors}) * t.cols"

    def _partial(self, i: int) -> str:
        """Where chunk `c` has its part of a sum over everything."""
        return f"t.partial[c * {len(self._sums[S])} + {self._sums[S].index(i)}]"

    def _formula(self, i: int) -> str:
        node = self._nodes[i]
        if node.args:
            return node.code.format(*(f"x{a}" for a in node.args))
        if node.code == "p":
            return f"load(p[at]){self._rest and ' + ' + self._rest}"
        if node.code == "g":
            return "load(g[at]) * sign"
        if node.code[0] == "k":
            return f"k[{node.code[1:]}]"
        if node.code[0] == "s":
            return f"{node.code}[{ {S: '0', ROW: 'i', COL: 'j', TENSOR: 'at'}[node.kind] }]"
        return node.code

    def _define(self, nodes: Iterable[int], *kinds: Kind) -> list[str]:
        """Definitions ``x0``, ``x1``, … of those of `nodes` that have one of the `kinds`."""
        return [
            f"const auto x{i} = {self._place(i) if self._is_kept(i) else self._formula(i)};"
            for i in nodes
            if self._nodes[i].kind in kinds
        ]

    # the program

    def _functions(self) -> list[str]:
        parts = [("prepare", self._finish(0))]
        for level in range(self._passes):
            parts += [(f"pass{level}", self._pass(level)), (f"finish{level}", self._finish(level + 1))]
        parts = [(name, body) for name, body in [*parts, ("store", self._store_small())] if body]
        chunked = {name for name, _ in parts if name.startswith("pass")}
        here = ["T* scratch = t.scratch;", *(f"T* s{i} = t.s{i};" for i in range(self.slots))]
        functions = [_function(name, ", int64_t c", body) if name in chunked else _function(name, "", [*here, *body])
                     for name, body in parts]  # fmt: skip
        if len(parts) == 1:
            return [*functions, _ONE_PASS]
        # There and back: a pass begins with what the one before has left in the cache.
        ways = cycle(["int64_t c = 0; c < chunks(t); c++", "int64_t c = chunks(t); c-- > 0;"])
        alone = [f"for ({next(ways)}) {name}(t, k, c);" if name in chunked else f"{name}(t, k);" for name, _ in parts]
        team = [f"share(&t, 1, [&](const Tensor& t, int64_t c) {{ {name}(t, k, c); }});" if name in chunked
                else f"if (omp_get_thread_num() == 0) {name}(t, k);" for name, _ in parts]  # fmt: skip
        team = [line for call in team for line in (call, "#pragma omp barrier")]
        return [
            *functions,
            _function("alone", "", alone),
            _function("in_team", "", team),
            _SEVERAL_PASSES,
        ]

    def _pass(self, level: int) -> list[str]:
        """Rows ``c * deep`` and on: the sums that need the values of `level`; in the last pass, the results."""
        sums = [i for kind in (S, ROW, COL) for i in self._sums[kind] if self._nodes[i].level == level + 1]
        last = level == self._passes - 1
        nodes = self._made_of([*(self._nodes[i].args[0] for i in sums), *(self._results if last else ())])
        by_column = [i for i in sums if self._nodes[i].kind is COL]
        running = [i for i in sums if i not in by_column]
        over_all = [i for i in sums if self._nodes[i].kind is S]
        reduction = f" reduction(+:{','.join(f'y{i}' for i in running)})" if running else ""
        return [
            f"const T lr = k[{self._lr}], sign = k[{self._lr + 1}];",
            # no two of these overlap, which lets the loop keep everything in registers
            "P* __restrict p = t.p; const P* __restrict g = t.g; const T* __restrict scratch = t.scratch;",
            *(f"T* __restrict s{i} = t.s{i};" for i in range(self.slots)),
            *self._define(nodes, S),
            *(
                f"T* __restrict y{i} = {self._chunk_sums(i)}; std::memset(y{i}, 0, t.cols * sizeof(T));"
                for i in by_column
            ),
            *(f"double z{i} = 0;" for i in over_all),
            "for (int64_t i = c * t.deep; i < (c + 1) * t.deep && i < t.rows; i++) {",
            *self._define(nodes, ROW),
            *(f"T y{i} = 0;" for i in running),
            "const int64_t first = i * t.cols, width = t.cols < t.size - first ? t.cols : t.size - first;",
            f"#pragma omp simd{reduction}",
            "for (int64_t j = 0; j < width; j++) {",
            "const int64_t at = first + j;",
            *self._define(nodes, COL, TENSOR),
            *(f"y{i}{'[j]' if i in by_column else ''} += x{self._nodes[i].args[0]};" for i in sums),
            *(self._write() if last else ()),
            "}",
            *(f"z{i} += y{i};" if i in over_all else f"t.{self._place(i)} = y{i};" for i in running),
            "}",
            *(f"{self._partial(i)} = z{i};" for i in over_all),
        ]

    def _write(self) -> list[str]:
        """The parameter and what is state of its shape; nothing reads the old values after this."""
        rest = [f"{self._rest} = whole - load(p[at]);"] if self._rest else []
        slots = [f"s{i}[at] = x{n};" for i, n in self._next if self._kinds[i] is TENSOR]
        return [f"const T whole = x{self._results[-1]} - lr * x{self._update};", "p[at] = as<P>(whole);",
                *rest, *slots]  # fmt: skip

    def _finish(self, level: int) -> list[str]:
        """For one parameter: add up what chunks have summed, then what needs only rows, columns and numbers."""
        body: list[str] = []
        for i in sorted(i for kept in self._kept.values() for i in kept if self._nodes[i].level == level):
            kind = self._nodes[i].kind
            if not self._needs_pass(i):
                body += ["{", *self._small(i), "}"]
            elif kind is S:
                each = f"for (int64_t c = 0; c < chunks(t); c++) z += {self._partial(i)};"
                body += ["{", "double z = 0;", each, f"{self._place(i)} = z;", "}"]
            elif kind is COL:  # sums over a row lie within one chunk
                over = "for (int64_t j = 0; j < t.cols; j++)"
                body += [f"{over} {self._place(i)} = 0;", "for (int64_t c = 0; c < chunks(t); c++) {",
                         f"const T* y = {self._chunk_sums(i)};", f"{over} {self._place(i)} += y[j];", "}"]  # fmt: skip
        return body

    def _small(self, i: int) -> list[str]:
        """A vector over rows or columns, or a sum of one."""
        node = self._nodes[i]
        nodes = self._made_of(node.args)
        along = self._nodes[node.args[0]].kind if node.is_sum else node.kind
        index, limit = _LOOP[along]
        inside = f"z += x{node.args[0]};" if node.is_sum else f"{self._place(i)} = {self._formula(i)};"
        loop = [
            f"for (int64_t {index} = 0; {index} < t.{limit}; {index}++) {{",
            *self._define(nodes, along),
            inside,
            "}",
        ]
        around = (["double z = 0;"], [f"{self._place(i)} = z;"]) if node.is_sum else ([], [])
        return [*self._define(nodes, S), *around[0], *loop, *around[1]]

    def _store_small(self) -> list[str]:
        """New values of state that is no tensor, once nobody reads the old ones any more."""
        small = [(i, n) for i, n in self._next if self._kinds[i] is not TENSOR]
        body = self._define(self._made_of(n for _, n in small), S)
        for kind, (index, limit) in _LOOP.items():
            slots = [(i, n) for i, n in small if self._kinds[i] is kind]
            if slots:
                values = self._define(self._made_of(n for _, n in slots), kind)
                stores = [f"s{i}[{index}] = x{n};" for i, n in slots]
                body += [f"for (int64_t {index} = 0; {index} < t.{limit}; {index}++) {{", *values, *stores, "}"]
        return [*body, *(f"s{i}[0] = x{n};" for i, n in small if self._kinds[i] is S)] if small else []


_ONE_PASS = """extern "C" void step(int64_t count, const Tensor* ts, const T* k, int threads) {
  #pragma omp parallel num_threads(threads)
  share(ts, count, [&](const Tensor& t, int64_t c) { pass0(t, k, c); });
}
"""

# Threads take whole parameters, which needs no barriers, except those of more than half of a thread's fair share.
_SEVERAL_PASSES = """extern "C" void step(int64_t count, const Tensor* ts, const T* k, int threads) {
  int64_t total = 0;
  for (int64_t n = 0; n < count; n++) total += ts[n].size;
  const int64_t large = total / (2 * threads);
  #pragma omp parallel num_threads(threads)
  {
    for (int64_t n = 0; n < count; n++)
      if (threads > 1 && ts[n].size > large) in_team(ts[n], k);
    #pragma omp for schedule(dynamic, 1)
    for (int64_t n = 0; n < count; n++)
      if (threads == 1 || ts[n].size <= large) alone(ts[n], k);
  }
}
"""


def _function(name: str, more: str, body: Sequence[str]) -> str:
    return f"static void {name}(const Tensor& t, const T* k{more}) {{\n{_lines(body)}\n}}\n"


def _lines(body: Sequence[str]) -> str:
    """Lines, indented by their braces."""
    depth, lines = 1, []
    for line in body:
        depth -= line.startswith("}")
        lines.append("  " * depth + line)
        depth += line.endswith("{")
    return "\n".join(lines)
