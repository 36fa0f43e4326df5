"""A program as a self-contained module with a `torch.optim.Optimizer`, from the same templates as the interpreter."""

from __future__ import annotations

import re

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
from optforge.primitives.program import Const, Program, fold

_TAKEN = ("torch", "math", "dims", "group", "state", "numbers", "step", "total_steps")


def torch_module(program: Program, name: str, about: list[str], lr: float = 1e-3) -> str:
    """Source of the module; `name` must be a safe identifier, `about` comment lines, and `lr` the default rate."""
    programs = [p for p in (program, program.fallback) if p is not None]
    rules = [_Rule(p, suffix) for p, suffix in zip(programs, ("", "_fallback"), strict=False)]
    templates = [op.torch for rule in rules for op in rule.ops]
    blocks = [
        "\n".join(about),
        "import difflib\nimport math\n\nimport torch\nfrom torch.optim import Optimizer",
        *_constants(programs),
        *helpers(templates),
        *(source for rule in rules for source in rule.functions()),
        _optimizer(name, programs, lr),
    ]
    return "\n\n\n".join(blocks) + "\n"


class _Rule:
    """One program as three functions: first state; numbers that all elements share; and the rule itself."""

    def __init__(self, program: Program, suffix: str) -> None:
        self.program, self.suffix, self.lazy = program, suffix, laziness(program)
        self.variables = locals_for([n for n in program.names if n not in ("g", "p")], _TAKEN)
        self.variables |= {"g": "g", "p": "p"}
        self.ops: list[Op] = []
        self.shared_names = program.names.keys() - {s.name for s in program.state} - {"g", "p"}
        self.shared_lines: list[str] = []
        self.lines: list[str] = []
        self.shared: set[str] = set()
        self.passed: dict[str, None] = {}
        self.literals: dict[float, str] = {}
        self.truths: dict[str, str] = {}
        update, following, _ = fold(program, self._leaf, self._apply)
        self.update = str(update)  # a tensor, hence never shared
        self.following = [self._pass(str(value)) for value in following]

    def _leaf(self, value: str | float) -> str:
        if isinstance(value, str):
            variable = self.variables[value]
            if value in self.shared_names:
                self.shared.add(variable)
            return variable
        if value not in self.literals:
            taken = {*self.variables.values(), *self.literals.values(), *_TAKEN}
            self.literals[value] = locals_for([f"c{len(self.literals)}"], taken).popitem()[1]
            self.shared.add(self.literals[value])
        return self.literals[value]

    def _apply(self, op: Op, args: list[str], index: int) -> str:
        self.ops.append(op)
        name = f"x{index}"
        if index in self.program.shared:
            self.shared.add(name)
            self.shared_lines.append(f"{name} = {expression(op, args)}")
            return name
        given = [self._pass(a) for a in args]
        value = expression(op, given)
        if index in self.lazy.choices:
            value = f"{given[1]} if {self._due(self.lazy.choices[index])} else {given[2]}"
        line = f"{name} = {value}"
        if index in self.lazy.guards:
            condition, taken = self.lazy.guards[index]
            line = f"if {'' if taken else 'not '}{self._due(condition)}: {line}"
        self.lines.append(line)
        return name

    def _due(self, condition: int) -> str:
        """The truth of a condition, as the rule sees it."""
        arg = self.lazy.conditions[condition]
        value = f"x{arg}" if type(arg) is int else self._leaf(arg.value if type(arg) is Const else str(arg))
        taken = {*self.variables.values(), *_TAKEN}
        return self.truths.setdefault(f"bool({value} > 0)", locals_for([f"due{condition}"], taken).popitem()[1])

    def _pass(self, value: str) -> str:
        """`value` as the rule sees it: what is shared is passed to it, rounded to the parameter's dtype."""
        if value in self.shared:
            self.passed[value] = None
        return value

    def functions(self) -> list[str]:
        """Source of the three functions."""
        return [self._initial(), self._numbers(), self._rule()]

    def _initial(self) -> str:
        lines = [f"{quoted(s.name)}: {_initial_value(s.init, s.kind)}," for s in self.program.state]
        return function(
            f"_initial{self.suffix}(p, g)", "State before the first step.", ["return {", *indent(lines), "}"]
        )

    def _numbers(self) -> str:
        live, variables = self.program.live.names, self.variables
        reads = [f"{variables[n]} = _number(group[{quoted(n)}])" for n in (*_hypers(self.program), "lr") if n in live]
        if "progress" in live:
            reads.append(f"{variables['progress']} = _number(step / total_steps)")
        if "global_norm" in live:
            reads.append(f"{variables['global_norm']} = group_norm")
        if "step" in live:
            reads.append(f"{variables['step']} = _number(step)")
        reads += [f"{variable} = _number({value!r})" for value, variable in self.literals.items()]
        return function(
            f"_numbers{self.suffix}(group, step, total_steps, group_norm)",
            "What is one number for all elements, in float64.",
            [*reads, *self.shared_lines, f"return [{', '.join((*self.passed, *self.truths))}]"],
        )

    def _rule(self) -> str:
        reads = [f"{self.variables[s.name]} = state[{quoted(s.name)}]" for s in self.program.state]
        if passed := [*self.passed, *self.truths.values()]:
            reads.append(f"{', '.join(passed)}{',' if len(passed) == 1 else ''} = numbers")
        returns = []
        for slot, arg, value in zip(self.program.state, self.program.next_state, self.following, strict=True):
            fresh = type(arg) is int and slot.kind is Kind.TENSOR and arg not in self.lazy.choices
            kept = value if fresh else f"{value}.expand(state[{quoted(slot.name)}].shape).clone()"
            returns.append(f"{quoted(slot.name)}: {kept},")
        return function(
            f"_rule{self.suffix}(g, p, state, numbers)",
            "What the learning rate multiplies, and the state after the step.",
            [*dims_line(self.lines), *reads, *self.lines, f"return {self.update}, {{", *indent(returns), "}"],
        )


def expression(op: Op, args: list[str]) -> str:
    """The torch expression of one operation, with matrix routines under their names in the exported file."""
    return re.sub(r"\blinalg\.", "_", op.torch.format(*args, dims="dims"))


def _hypers(program: Program) -> list[str]:
    return [h.name for h in program.hypers]


def _initial_value(init: float | str, kind: Kind) -> str:
    if isinstance(init, str):
        return f"{init}.detach().clone()"
    if kind is Kind.TENSOR:
        return f"torch.full_like(p, {init!r}, memory_format=torch.contiguous_format)"
    shape = shape_source(kind)
    if kind.is_square:
        return f"({init!r} * torch.eye({shape}[0], dtype=p.dtype, device=p.device)).reshape({shape})"
    return f"torch.full({shape}, {init!r}, dtype=p.dtype, device=p.device)"


def _constants(programs: list[Program]) -> list[str]:
    rows = [f"{quoted(name)}: ({low}, {high})," for name, (_, low, high) in ranges(programs).items()]
    number = function("_number(value)", "", ['return torch.as_tensor(value, dtype=torch.float64, device="cpu")'])
    return ["\n".join(["_RANGES = {", '    "lr": (0.0, math.inf),', *indent(rows), "}"]), number]


def _optimizer(name: str, programs: list[Program], lr: float) -> str:
    hypers, live = ranges(programs), frozenset[str]().union(*(p.live.names for p in programs))
    variables = locals_for(hypers, ("self", "params", "lr", "maximize", "total_steps", "math", "torch"))
    has_fallback, timed = len(programs) > 1, "progress" in live
    pieces = {
        "NAME": name,
        "LR": repr(lr),
        "SIGNATURE": "".join(f" {variables[h]}={default!r}," for h, (default, _, _) in hypers.items()),
        "TOTAL": ", total_steps=None" if timed else "",
        "DEFAULTS": "".join(f"            {quoted(h)}: {variables[h]},\n" for h in hypers)
        + ('            "total_steps": total_steps,\n' if timed else ""),
        "CHECK_TOTAL": _CHECK_TOTAL if timed else "",
        "CHECK_SHAPE": _check_shape(programs[0]) if programs[0].needs_matrix and not has_fallback else "",
        "NORM": _NORM if "global_norm" in live else "norm = None",
        "WHICH": is_unfit(programs[0], "p") if has_fallback else "0",
        "ROUTES": _ROUTES if has_fallback else "",
        "FALLBACK": ", (_initial_fallback, _numbers_fallback, _rule_fallback)" if has_fallback else "",
    }
    source = _CLASS
    for word, text in pieces.items():
        source = source.replace(f"@{word}@", text)
    return source


_CHECK_TOTAL = """
        if not (isinstance(total_steps, int) and total_steps > 0):
            raise ValueError("this rule reads the training progress; pass total_steps=NUMBER_OF_STEPS")"""


def _check_shape(program: Program) -> str:
    return f"""
        for p in self.param_groups[-1]["params"]:
            if {is_unfit(program, "p")}:
                raise ValueError(f"this rule works on {fit(program)}, but a parameter has shape {{tuple(p.shape)}}")"""


_NORM = """norms = [torch.linalg.vector_norm(p.grad) for group in self.param_groups for p in group["params"]
                 if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(norms)).double().cpu() if norms else _number(0.0)"""
_ROUTES = """
    Parameters of fewer than two dimensions are trained by the functions whose names end in `_fallback`."""

_CLASS = '''_RULES = ((_initial, _numbers, _rule)@FALLBACK@,)
_OPTIONS = ("params", "param_names", "maximize", "total_steps")
_OTHERS = ("alpha", "amsgrad", "betas", "centered", "dampening", "eps", "momentum", "nesterov", "weight_decay")


def _is_like_an_option(name):
    near = difflib.get_close_matches(name, _RANGES, 1, 0.8)
    return bool(near) and f"_{near[0]}_" not in f"_{name}_"


class @NAME@(Optimizer):
    """For each parameter p: ``p = p - lr * update``, where the update is what `_rule` returns.

    A parameter group may override `lr` and every hyperparameter.@ROUTES@
    """

    def __init__(self, params, lr=@LR@, *,@SIGNATURE@ maximize=False@TOTAL@):@CHECK_TOTAL@
        Optimizer.__init__(self, params, {
            "lr": lr,
            "maximize": maximize,
@DEFAULTS@        })

    def add_param_group(self, param_group):
        """Add a group as torch does; options of other rules and values outside their range raise `ValueError`.

        Notes of schedulers and libraries, as "max_lr" and "lr_scale", may stand in a group.
        """
        for option, value in {**self.defaults, **param_group}.items():
            if option in _RANGES:
                low, high = _RANGES[option]
                number = isinstance(value, (int, float, torch.Tensor)) and not isinstance(value, bool)
                if not (number and math.isfinite(value) and low <= value < high):
                    raise ValueError(f"{option} must be a number in [{low}, {high}), got {value!r}")
            elif option not in _OPTIONS and (option in _OTHERS or _is_like_an_option(option)):
                raise ValueError(f"unknown option {option!r}; choose from {', '.join(_RANGES)}")
        super().add_param_group(param_group)
        if any(p.dtype is torch.float16 for p in self.param_groups[-1]["params"]):
            raise ValueError("float16 rounds epsilon to 0; keep parameters in float32 and use autocast")@CHECK_SHAPE@

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient; returns the closure's loss, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and (p.grad.layout is not torch.strided or torch.is_complex(p)):
                    raise ValueError(f"sparse gradients and complex parameters are not supported: {tuple(p.shape)}")
        @NORM@
        for group in self.param_groups:
            lr, ready = _number(group["lr"]), {}
            for p in group["params"]:
                if p.grad is None or not p.numel():
                    continue
                g, state, which = -p.grad if group["maximize"] else p.grad, self.state[p], @WHICH@
                initial, numbers, rule = _RULES[which]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32)
                    state.update(initial(p, g))
                state["step"] = state["step"] + 1
                key = (which, float(state["step"]), g.device, g.dtype)
                if key not in ready:
                    found = numbers(group, key[1], self.defaults.get("total_steps"), norm)
                    ready[key] = [x if isinstance(x, bool) else x.to(g.device, g.dtype) for x in found]
                update, following = rule(g, p, state, ready[key])
                state.update(following)
                p.sub_(lr * update)
        return loss'''
