"""Python source that exported files have in common, whatever the library."""

from __future__ import annotations

import ast
import builtins
import inspect
import keyword
import re
from collections.abc import Callable, Iterable
from functools import cache

from optforge.primitives import linalg
from optforge.primitives.kinds import SCALES, Kind
from optforge.primitives.program import Program
from optforge.primitives.routing import LARGEST_SIDE

BUILTIN = frozenset(dir(builtins)) | frozenset(keyword.kwlist) | frozenset(keyword.softkwlist)
"""Names that Python has for itself."""


def locals_for(names: Iterable[str], taken: Iterable[str]) -> dict[str, str]:
    """A local variable for each of a program's names: the name itself, unless Python or the file uses it."""
    used = set(taken) | BUILTIN
    variables: dict[str, str] = {}
    for name in names:
        variable = name
        while variable in used:
            variable += "_"
        used.add(variable)
        variables[name] = variable
    return variables


def helpers(templates: Iterable[str], rewrite: Callable[[ast.AST], ast.AST] | None = None) -> list[str]:
    """Source of the matrix routines that templates call, with leading underscores, and of what those need.

    `rewrite` may turn their syntax trees into those of another library.
    """
    found = set(re.findall(r"\blinalg\.([A-Za-z_]\w*)", "\n".join(templates)))
    if not found:
        return []
    nodes = _linalg_nodes()
    todo, needed = sorted(found), set()
    while todo:
        name = todo.pop()
        if name in nodes and name not in needed:
            needed.add(name)
            todo.extend(n.id for n in ast.walk(nodes[name]) if isinstance(n, ast.Name))
    blocks = dict.fromkeys(node for name, node in nodes.items() if name in needed)
    sources = []
    for node in blocks:
        copy = _Plain(found & nodes.keys()).visit(ast.parse(ast.unparse(node)).body[0])
        sources.append(ast.unparse(ast.fix_missing_locations(rewrite(copy) if rewrite else copy)))
    return sources


def quoted(name: str) -> str:
    """A name of a slot or hyperparameter (letters, digits and underscores) as a string in source."""
    return f'"{name}"'


def indent(lines: Iterable[str], by: int = 4) -> list[str]:
    """Lines moved to the right."""
    return [" " * by + line for line in lines]


def function(signature: str, doc: str, lines: Iterable[str]) -> str:
    """Source of a function."""
    return "\n".join([f"def {signature}:", *([f'    """{doc}"""'] if doc else []), *indent(lines)])


def dims_line(lines: Iterable[str]) -> list[str]:
    """The line that says what `dims` is, if `lines` use it."""
    return ["dims = tuple(range(g.ndim))"] if any(re.search(r"\bdims\b", line) for line in lines) else []


def shape_source(kind: Kind) -> str:
    """Source text of the shape that a value of `kind` has for a parameter ``p``."""
    if kind.is_square:
        left = "len(p), len(p), *(1,) * (len(p.shape) - 2)"
        return f"({left if kind is Kind.LEFT else 'math.prod(p.shape[1:]), *p.shape[1:]'})"
    rows = "p.shape[:1]" if kind & Kind.ROW else "(1,) * len(p.shape[:1])"
    cols = "p.shape[1:]" if kind & Kind.COL else "(1,) * len(p.shape[1:])"
    return f"(*{rows}, *{cols})"


def is_unfit(program: Program, p: str) -> str:
    """Source text of whether `program` cannot train a parameter: see `primitives.routing.can_train`."""
    sides = {Kind.LEFT: f"{p}.shape[0]", Kind.RIGHT: f"math.prod({p}.shape[1:])"}
    long = [f"{sides[kind]} > {LARGEST_SIDE}" for kind in sorted(program.sides)]
    return " or ".join([f"{p}.ndim < 2", *long])


def fit(program: Program) -> str:
    """What `program` can train, in words."""
    return "rows and columns" + (f" of sides up to {LARGEST_SIDE}" if program.sides else "")


def ranges(programs: Iterable[Program]) -> dict[str, tuple[float, str, str]]:
    """Of each hyperparameter the default, and source text of the lowest value and of the bound above all values."""
    table = {}
    for program in reversed(list(programs)):  # the first program's defaults count where names are shared
        for hyper in program.hypers:
            scale = SCALES[hyper.scale]
            table[hyper.name] = (hyper.default, _bound(scale.lower), _bound(scale.upper))
    return table


def _bound(value: float) -> str:
    return {float("inf"): "math.inf", float("-inf"): "-math.inf"}.get(value, repr(value))


@cache
def _linalg_nodes() -> dict[str, ast.stmt]:
    nodes: dict[str, ast.stmt] = {}
    for node in ast.parse(inspect.getsource(linalg)).body:
        if isinstance(node, ast.FunctionDef):
            nodes[node.name] = node
        elif isinstance(node, ast.Assign):
            nodes |= {n.id: node for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    return nodes


class _Plain(ast.NodeTransformer):
    """Drops annotations, which would need imports, and gives routines private names."""

    def __init__(self, renamed: set[str]) -> None:
        self.renamed = renamed

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        node.name = f"_{node.name}" if node.name in self.renamed else node.name
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = f"_{node.id}" if node.id in self.renamed else node.id
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node
