"""A program as a self-contained module with an `optax.GradientTransformation`."""

from __future__ import annotations

from optforge.primitives.backends.to_jax import OWN, ToJax, expression
from optforge.primitives.export_source import (
    dims_line,
    fit,
    function,
    helpers,
    indent,
    is_unfit,
    locals_for,
    quoted,
    ranges,
    shape_source,
)
from optforge.primitives.kinds import Kind
from optforge.primitives.lazy import laziness
from optforge.primitives.op import Op
from optforge.primitives.program import Program, fold

_TAKEN = ("jax", "jnp", "np", "optax", "math", "dims", "count", "state", "hypers", "step", "learning_rate",
          "total_steps", "group_norm", "updates", "params", "init", "update")  # fmt: skip


def optax_module(program: Program, name: str, about: list[str], lr: float = 1e-3) -> str:
    """Source of the module; `name` must be a safe identifier, `about` comment lines, and `lr` the default rate.

    Raises:
        ProgramError: if an op's template uses something that has no known counterpart in JAX.
    """
    programs = [p for p in (program, program.fallback) if p is not None]
    rules = [_Rule(p, suffix) for p, suffix in zip(programs, ("", "_fallback"), strict=False)]
    templates = [op.torch for rule in rules for op in rule.ops]
    routines = helpers(templates, ToJax().visit)
    functions = [source for rule in rules for source in rule.functions()]
    text = "\n".join((*routines, *functions))
    blocks = [
        "\n".join([*about, *_NOTES]),
        "import math\nfrom typing import Any, NamedTuple\n\nimport jax\nimport jax.numpy as jnp\nimport numpy as np\n"
        "import optax",
        *(source for own, source in OWN.items() if f"_{own}(" in text),
        *routines,
        *functions,
        _transformation(name, programs, lr),
    ]
    return "\n\n\n".join(blocks) + "\n"


class _Rule:
    """One program as two functions: its first state, and its step."""

    def __init__(self, program: Program, suffix: str) -> None:
        self.program, self.suffix, self.lazy = program, suffix, laziness(program)
        self.guarded: dict[int, str] = {}
        self.variables = locals_for([n for n in program.names if n not in ("g", "p")], _TAKEN) | {"g": "g", "p": "p"}
        self.ops: list[Op] = []
        self.lines: list[str] = []
        own = {s.name for s in program.state} | {"g", "p"}
        self.shared = {variable for name, variable in self.variables.items() if name not in own}
        self.literals: dict[float, str] = {}
        self.casts: dict[str, str] = {}
        update, following, _ = fold(program, self._leaf, self._apply)
        self.update = str(update)  # a tensor, hence never shared
        self.following = [self._pass(str(value)) for value in following]

    def _leaf(self, value: str | float) -> str:
        if isinstance(value, str):
            return self.variables[value]
        if value not in self.literals:
            self.literals[value] = self._fresh(f"c{len(self.literals)}")
            self.shared.add(self.literals[value])
            self.lines.append(f"{self.literals[value]} = np.float64({value!r})")
        return self.literals[value]

    def _apply(self, op: Op, args: list[str], index: int) -> str:
        self.ops.append(op)
        name = f"x{index}"
        if index in self.program.shared:
            self.shared.add(name)
        else:
            args = [self._pass(a) for a in args]
        line = f"{name} = {expression(op, args)}"
        if index in self.lazy.choices and index not in self.lazy.guards:
            sides = [self._side(index, name, args, taken) for taken in (True, False)]
            line = f"{name} = jax.lax.cond({args[0]} > 0, {sides[0]}, {sides[1]})"
        if index in self.lazy.guards:
            self.guarded[index] = line
        else:
            self.lines.append(line)
        return name

    def _side(self, index: int, name: str, args: list[str], taken: bool) -> str:
        """One side of a choice as a function without arguments, whose lines are what only it needs."""
        value, needed = args[1 if taken else 2], set[int]()
        if self.program.kinds[index] is Kind.SCALAR:  # of whatever shape
            value = f"jnp.reshape({value}, (1,) * g.ndim)"
        todo = [self.program.body[index].args[1 if taken else 2]]
        for arg in todo:  # which grows on the way
            if type(arg) is int and arg in self.guarded and arg not in needed:
                needed.add(arg)
                todo += self.program.body[arg].args
        if not needed:
            return f"lambda: {value}"
        side = self._fresh(f"{name}_{'new' if taken else 'old'}")
        self.lines += [f"def {side}():", *indent([*(self.guarded[i] for i in sorted(needed)), f"return {value}"])]
        return side

    def _pass(self, value: str) -> str:
        """`value` in the gradient's dtype."""
        if value not in self.shared:
            return value
        if value not in self.casts:
            self.casts[value] = self._fresh(f"k{len(self.casts)}")
            self.lines.append(f"{self.casts[value]} = {value}.astype(g.dtype)")
        return self.casts[value]

    def _fresh(self, variable: str) -> str:
        return locals_for([variable], {*_TAKEN, *self.variables.values()})[variable]

    def functions(self) -> list[str]:
        """Source of both functions."""
        lines = [f"{quoted(s.name)}: {_initial_value(s.init, s.kind)}," for s in self.program.state]
        first = function(f"_initial{self.suffix}(p)", "State before the first step.", ["return {", *indent(lines), "}"])
        live, variables = self.program.live.names, self.variables
        reads = [f"{variables[h.name]} = _number(hypers[{quoted(h.name)}])" for h in self.program.hypers]
        reads += [f"{variables['lr']} = _number(learning_rate)"] if "lr" in live else []
        reads += [f"{variables['step']} = _number(step)"] if "step" in live else []
        reads += [f"{variables['progress']} = step / total_steps"] if "progress" in live else []
        reads += [f"{variables['global_norm']} = group_norm"] if "global_norm" in live else []
        for slot in self.program.state:
            value = f"state[{quoted(slot.name)}]"
            if slot.init == "g":
                value = f"jnp.where(step == 1, g, {value})"
            reads.append(f"{variables[slot.name]} = {value}")
        returns: list[str] = []
        for slot, arg, value in zip(self.program.state, self.program.next_state, self.following, strict=True):
            fresh = type(arg) is int and self.program.next_state.index(arg) == len(returns)
            own = f"jnp.broadcast_to({value}, state[{quoted(slot.name)}].shape).astype(g.dtype)"
            if not fresh and arg != slot.name:  # two buffers that are one cannot both be donated
                own = f"jnp.array({own}, copy=True)"
            returns.append(f"{quoted(slot.name)}: {own},")
        step = function(
            f"_rule{self.suffix}(g, p, state, step, learning_rate, hypers, total_steps, group_norm)",
            "What the learning rate multiplies, and the state after the step.",
            [*dims_line(self.lines), *reads, *self.lines, f"return {self.update}, {{", *indent(returns), "}"],
        )
        return [first, step]


def _initial_value(init: float | str, kind: Kind) -> str:
    if init == "p":
        return "jnp.array(p, copy=True)"  # parameters and state may both be donated
    if init == "g":
        return "jnp.zeros_like(p)"  # the first step replaces it by the gradient
    if kind is Kind.TENSOR:
        return f"jnp.full(p.shape, {init!r}, dtype=p.dtype)"
    shape = shape_source(kind)
    if kind.is_square:
        return f"({init!r} * jnp.eye({shape}[0], dtype=p.dtype)).reshape({shape})"
    return f"jnp.full({shape}, {init!r}, dtype=p.dtype)"


def _transformation(name: str, programs: list[Program], lr: float) -> str:
    hypers, live = ranges(programs), frozenset[str]().union(*(p.live.names for p in programs))
    variables = locals_for(hypers, ("learning_rate", "total_steps", *_TAKEN))
    has_fallback, timed = len(programs) > 1, "progress" in live
    pieces = {
        "NAME": name,
        "LR": repr(lr),
        "SIGNATURE": "".join(f", {variables[h]}={default!r}" for h, (default, _, _) in hypers.items())
        + (", total_steps=None" if timed else ""),
        "HYPERS": "".join(f"        {quoted(h)}: {variables[h]},\n" for h in hypers),
        "RANGES": "".join(f"    {quoted(h)}: ({low}, {high}),\n" for h, (_, low, high) in hypers.items()),
        "CHECK_TOTAL": _CHECK_TOTAL if timed else "",
        "TOTAL": "total_steps" if timed else "None",
        "NEEDS_PARAMS": _NEEDS_PARAMS if "p" in live else "",
        "CHECK_SHAPE": _check_shape(programs[0]) if programs[0].needs_matrix and not has_fallback else "",
        "NORM": "optax.global_norm(wide)" if "global_norm" in live else "None",
        "WHICH": is_unfit(programs[0], "g") if has_fallback else "0",
        "INIT_WHICH": is_unfit(programs[0], "p") if has_fallback else "0",
        "FALLBACK": ", (_initial_fallback, _rule_fallback)" if has_fallback else "",
    }
    source = _SOURCE
    for word, text in pieces.items():
        source = source.replace(f"@{word}@", text)
    return source


_NOTES = [
    "#",
    "# The learning rate is inside, as in optax.adam: apply the updates as they come. It may be a schedule, which is a",
    "# function of the number of steps done. What all elements share is computed in JAX's default precision.",
]
_CHECK_TOTAL = """
    if not (isinstance(total_steps, int) and total_steps > 0):
        raise ValueError("this rule reads the training progress; pass total_steps=NUMBER_OF_STEPS")"""
_NEEDS_PARAMS = """
        if params is None:
            raise ValueError("this rule reads the parameters; pass them to update as its third argument")"""


def _check_shape(program: Program) -> str:
    return f"""
        for p in jax.tree_util.tree_leaves(params):
            if {is_unfit(program, "p")}:
                raise ValueError(f"this rule works on {fit(program)}, but a parameter has shape {{p.shape}}")"""


_SOURCE = '''_RULES = ((_initial, _rule)@FALLBACK@,)
_RANGES = {
@RANGES@}


class State(NamedTuple):
    """Steps done, and for each parameter its slots."""

    count: Any
    slots: Any


def _number(value):
    """Numbers are kept in double precision until they meet an array; arrays (traced ones, say) stay as they are."""
    return np.float64(value) if isinstance(value, (int, float)) else jnp.asarray(value)


def _wide(x):
    """`x` in at least single precision if it is float16, in which epsilon is 0."""
    return x.astype(jnp.float32) if x.dtype == jnp.float16 else x


def @NAME@(learning_rate=@LR@@SIGNATURE@):
    """The rule as an `optax.GradientTransformation` whose updates already hold the learning rate."""@CHECK_TOTAL@
    hypers = {
@HYPERS@    }
    for name, (low, high) in _RANGES.items():
        value = hypers[name]
        if isinstance(value, (int, float)) and not (math.isfinite(value) and low <= value < high):
            raise ValueError(f"{name} must be a number in [{low}, {high}), got {value!r}")

    def init(params):@CHECK_SHAPE@
        slots = jax.tree_util.tree_map(lambda p: _RULES[@INIT_WHICH@][0](_wide(jnp.asarray(p))), params)
        return State(jnp.zeros((), dtype=jnp.int32), slots)

    def update(updates, state, params=None):@NEEDS_PARAMS@
        gradients, tree = jax.tree_util.tree_flatten(updates)
        own = tree.flatten_up_to(params) if params is not None else [None] * len(gradients)
        slots = tree.flatten_up_to(state.slots)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        step = (state.count + 1).astype(float)
        wide = []  # gradients in the dtype of state and arithmetic, which is that of the parameters
        for g, p, old in zip(gradients, own, slots):
            kept = jax.tree_util.tree_leaves(old)
            like = _wide(jnp.asarray(p)) if p is not None else kept[0] if kept else _wide(g)
            wide.append(g.astype(like.dtype))
        norm = @NORM@
        moves, following = [], []
        for given, g, p, old in zip(gradients, wide, own, slots):
            whole = None if p is None else _wide(jnp.asarray(p))
            move, new = _RULES[@WHICH@][1](g, whole, old, step, rate, hypers, @TOTAL@, norm)
            moves.append((-_number(rate).astype(g.dtype) * move).astype((given if p is None else p).dtype))
            following.append(new)
        state = State(state.count + 1, tree.unflatten(following))
        return tree.unflatten(moves), state

    return optax.GradientTransformation(init, update)'''
