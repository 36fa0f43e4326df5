"""The 45 functions of Lion's search space (Chen et al. 2023, appendix H), and what each is in this language.

Where the released code is known to be wrong (its `cbrt` returned a function, its `invert` negated bits), the paper's
text is followed. The elementwise `clip` of the published programs is a row of the subset `lion45`, too; the paper
lists clipping by the global norm only.
"""

from __future__ import annotations

import math

from optforge.primitives.program import Const

_SAME = (
    "abs", "cos", "sin", "tan", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "arcsinh", "arccosh", "arctanh",
    "exp", "exp2", "exp10", "expm1", "log", "log10", "log2", "log1p", "square", "sqrt", "cube", "cbrt", "sign",
    "reciprocal", "norm", "invert",
)  # fmt: skip

LION45: dict[str, str | Const] = {
    # a literal, an op's name, or (global_norm) a signal's
    "pi": Const(math.pi), "e": Const(math.e), "eps": Const(1e-8),
    **{name: name for name in _SAME},
    "negative": "neg", "global_norm": "global_norm", "interpolate": "lerp", "dot": "dot", "cosine_similarity": "cosine",
    "clip_by_global_norm": "clip_norm", "power": "pow", "plus": "add", "minus": "sub", "times": "mul",
    "divide": "div", "maximum": "max", "minimum": "min",
}  # fmt: skip
