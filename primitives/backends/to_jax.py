"""Ops in JAX: the torch template in other words.

The expression is parsed, and every torch name in it is replaced by the one that numpy and JAX have for it. A row of the
op table thus needs no second meaning, and a row that uses something unknown is refused by name.
"""

from __future__ import annotations

import ast
import re

from optforge.primitives.kinds import ProgramError
from optforge.primitives.op import Op

_SAME = frozenset((
    "sum", "mean", "prod", "sqrt", "square", "abs", "sign", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p",
    "sin", "cos", "tan", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "arcsinh", "arccosh", "arctanh",
    "maximum", "minimum", "reciprocal", "where", "zeros_like", "ones_like", "isfinite", "isnan", "floor", "ceil",
    "round", "matmul", "eye", "diagonal", "promote_types", "float32",
    "arange", "broadcast_to", "remainder",
))  # fmt: skip
_OTHER = {"gt": "greater", "lt": "less", "ge": "greater_equal", "le": "less_equal", "eq": "equal", "ne": "not_equal",
          "pow": "power", "clamp": "clip", "amax": "max", "amin": "min", "neg": "negative",
          "int64": "int32"}  # fmt: skip
OWN = {
    # functions that an exported file has to bring with it, by torch's name for them
    "lerp": "def _lerp(x, y, weight):\n"
    "    return jnp.where(jnp.abs(weight) < 0.5, x + weight * (y - x), y - (y - x) * (1 - weight))",
    "gather": "def _gather(x, axis, index):\n    return jnp.take_along_axis(x, index, axis)",
    # along the last axis
    "scatter_add": "def _scatter_add(x, _, index, y):\n"
    "    rows = [z.reshape(-1, x.shape[-1]) for z in (x, index, y)]\n"
    "    return jax.vmap(lambda x, index, y: x.at[index].add(y))(*rows).reshape(x.shape)",
}
_LINALG = frozenset(("torch.linalg.qr",))
_KEYWORDS = {"dim": "axis", "keepdim": "keepdims"}
_METHODS = {"to": "astype"}
_ATTRIBUTES = frozenset(("shape", "dtype", "ndim", "mT", "T", "reshape", "astype", "swapaxes"))


def expression(op: Op, args: list[str]) -> str:
    """The JAX expression of one operation.

    Matrix routines have a leading underscore; `dims` are the parameter's dimensions.

    Raises:
        ProgramError: if the op's template uses something that has no known counterpart in JAX.
    """
    source = op.torch.format(*args, dims="dims")
    try:
        tree = ToJax().visit(ast.parse(re.sub(r"\blinalg\.", "_", source), mode="eval"))
    except ProgramError as error:
        raise ProgramError(f"op {op.name} cannot be exported to JAX: {error}") from None
    return ast.unparse(ast.fix_missing_locations(tree))


class ToJax(ast.NodeTransformer):
    """Torch calls to their JAX counterparts."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        """``torch.f`` becomes ``jnp.f``, and a method its counterpart; `ProgramError` for what is not known."""
        if ast.unparse(node) in _LINALG:
            return ast.parse(f"jnp.{ast.unparse(node).removeprefix('torch.')}", mode="eval").body
        if isinstance(node.value, ast.Name) and node.value.id == "torch":
            if node.attr in OWN:
                return ast.Name(f"_{node.attr}", ast.Load())
            if node.attr not in _SAME and node.attr not in _OTHER:
                raise ProgramError(f"torch.{node.attr} has no known counterpart there")
            return ast.Attribute(ast.Name("jnp", ast.Load()), _OTHER.get(node.attr, node.attr), ast.Load())
        node.attr = _METHODS.get(node.attr, node.attr)
        math_name = isinstance(node.value, ast.Name) and node.value.id == "math"
        if node.attr not in _ATTRIBUTES and not math_name:
            raise ProgramError(f"the method or attribute {node.attr!r} has no known counterpart there")
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        """What ends a loop early by looking at numbers is left out: traced ones have none."""
        return None if "torch.compiler" in ast.unparse(node.test) else self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Keywords get numpy's names, and ``x.pow(y)`` becomes ``x ** y``."""
        if isinstance(node.func, ast.Attribute) and node.func.attr == "pow" and not _is_torch(node.func.value):
            return ast.BinOp(self.visit(node.func.value), ast.Pow(), self.visit(node.args[0]))
        node.keywords = [keyword for keyword in node.keywords if keyword.arg != "device"]  # which jit decides
        for keyword in node.keywords:
            keyword.arg = _KEYWORDS.get(str(keyword.arg), keyword.arg)
        return self.generic_visit(node)


def _is_torch(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "torch"
