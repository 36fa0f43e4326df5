"""The `torch.optim.Optimizer` face of any program."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import Optimizer, ParamsT

from optforge.primitives.backends.compiled import Bound, Kernel, kernel
from optforge.primitives.backends.interpret import Stepped
from optforge.primitives.backends.numbers import Numbers
from optforge.primitives.checkpoint import check_fits
from optforge.primitives.kinds import Kind, ProgramError
from optforge.primitives.options import check_group, merged_hypers, with_fallback
from optforge.primitives.parameters import (
    REST,
    begin,
    check_state_dtype,
    global_norm,
    load_unrounded,
    local,
    placed_like,
    state_dtype,
    with_gradients,
)
from optforge.primitives.program import Program
from optforge.primitives.routing import Predicate, Route, routing

Move = tuple[Tensor, Tensor]  # a parameter and its gradient


class ProgramOptimizer(Optimizer):
    """Train with a program: ``p ← p - lr · update`` for each parameter.

    Args:
        params: parameters or parameter groups. A group may override `lr`, `maximize` and every hyperparameter, and
            ``use_fallback=True`` hands its parameters to the program's fallback.
        program: the update rule; its fallback, if it has one, trains what the rule cannot or shall not.
        where: says of a parameter's name and the parameter whether the program itself shall train it; asked once, when
            its group is added. Names are those of ``model.named_parameters()``; parameters without names have ``""``.
            Copies may hold any predicate, pickles only a function of a module, no lambda.
        lr: learning rate, positive or zero; schedulers change it as they do for any torch optimizer.
        compile: compile the step: the first one takes a second, all others run in place at the speed of memory.
        state_dtype: dtype of state and arithmetic, by default the parameter's, of float16 ``torch.float32``. With that,
            parameters in 16 bits also keep what rounding takes from them (``state["p"]``), so that small updates add
            up.
        maximize: ascend instead of descend.
        differentiable: let gradients flow through the step, into its inputs.
        total_steps: length of training, needed only by programs that read the signal `progress`.
        **hypers: values for the program's hyperparameters; defaults come from the program.

    Parameters sharded by FSDP2 (any `DTensor`) are trained shard by shard. Those of lazy modules are trained once they
    have a shape. `OneCycleLR` and `CyclicLR` cycle a hyperparameter called `momentum`; for programs without one, make
    them with ``cycle_momentum=False``.

    Raises:
        ProgramError: for unknown hyperparameters or values outside their scale, and for sharded parameters if the
            program mixes elements of a parameter, at construction; for sparse or complex gradients, in `step`.
    """

    def __init__(
        self,
        params: ParamsT,
        program: Program,
        lr: float | Tensor = 1e-3,
        *,
        where: Predicate | None = None,
        compile: bool = False,
        state_dtype: torch.dtype | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        total_steps: int | None = None,
        **hypers: float,
    ) -> None:
        if not isinstance(program, Program):
            raise ProgramError(f"expected a Program, got {type(program).__name__}; BASELINES[name].program is one")
        if state_dtype is not None and not (isinstance(state_dtype, torch.dtype) and state_dtype.is_floating_point):
            raise ProgramError(f"state_dtype must be a floating-point dtype like torch.float32, got {state_dtype!r}")
        if compile and differentiable:
            raise ProgramError("a compiled step writes in place; choose compile or differentiable, not both")
        self.program = program
        self.where = where
        self._routes: dict[Tensor, Route] = {}
        self.compile = compile
        self.state_dtype = state_dtype
        self.total_steps = total_steps
        self._bound: dict[int, Bound] = {}
        if "progress" in self._reads() and not (isinstance(total_steps, int) and total_steps > 0):
            raise ProgramError("this program reads the training progress; pass total_steps=NUMBER_OF_STEPS")
        options = {"lr": lr, "maximize": maximize, "differentiable": differentiable}
        super().__init__(params, options | merged_hypers(program, hypers))

    def _reads(self) -> set[str]:
        return set().union(*(p.live.names for p in with_fallback(self.program)))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as torch does, refusing values outside their range and options the program does not have."""
        check_group(self.program, param_group, self.defaults)
        super().add_param_group(param_group)
        try:
            check_state_dtype(self.state_dtype, self.param_groups[-1]["params"])
            self._routes |= self._decided(self.param_groups[-1:])  # refuses what cannot be trained
        except Exception:
            self.param_groups.pop()
            raise

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles hold; torch alone would keep its own attributes and lose these."""
        own = ("program", "where", "_routes", "compile", "state_dtype", "total_steps")
        return super().__getstate__() | {name: getattr(self, name) for name in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._bound = {}

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with the text of the program and where each parameter goes."""
        return super().state_dict() | {"program": str(self.program), "routes": [r.which for r in self.routes]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load as torch does, except that state is never rounded to the dtype of the parameter.

        Raises:
            ProgramError: before anything changes, if another program or other routes left the checkpoint.
        """
        load_unrounded(self, super().load_state_dict, state_dict, self._dtype, self._check_saved)

    def _check_saved(self, saved: dict[str, Any]) -> None:
        parameters = [p for group in self.param_groups for p in group["params"]]
        check_fits(saved, self.program, list(zip(parameters, self.routes, strict=True)))

    @torch._disable_dynamo  # state is taken from one place to another, which torch.compile does not follow
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; returns the closure's loss, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            self._step()
        return loss

    def _step(self) -> None:
        ready = with_gradients(self.param_groups)
        if any(ready):
            self._move(ready)

    def _move(self, ready: list[list[Tensor]]) -> None:
        """The step itself, of at least one parameter; of each group those that have a gradient."""
        signals = {}
        if "global_norm" in self._reads():
            signals["global_norm"] = global_norm(p.grad for p in chain.from_iterable(ready)).double()
        run = self._step_compiled if self.compile else self._step_eager
        for group, params in zip(self.param_groups, ready, strict=True):
            pairs = [(p, g) for p in params if (g := p.grad) is not None]
            scalars = {name: _scalar(group[name]) for name in self._hyper_names()} | signals
            run(pairs, scalars | {"lr": _scalar(group["lr"])}, -1 if group["maximize"] else 1)

    def _numbers(self, program: Program, scalars: dict[str, Tensor], step: float) -> Numbers:
        values = scalars | {"step": _scalar(step)}
        if self.total_steps is not None:
            values["progress"] = values["step"] / self.total_steps
        return Numbers(program, values)

    def _begin(self, p: Tensor, sign: int) -> dict[str, Any]:
        """State of `p` before its first step, whose gradient the rule sees times `sign`."""
        state, dtype = self.state[p], self._dtype(p)
        state["step"] = torch.zeros((), dtype=torch.float32)
        with torch.no_grad():
            for slot in self.route(p).state:
                value = begin(slot, p, dtype)
                state[slot.name] = -value if slot.init == "g" and sign == -1 else value
            if dtype != p.dtype:
                state[REST] = torch.zeros_like(p, dtype=dtype, requires_grad=False)
        return state

    def _dtype(self, p: Tensor) -> torch.dtype:
        return state_dtype(p, self.state_dtype)

    def _execute(self, p: Tensor, program: Program, inputs: dict[str, Tensor], numbers: Numbers) -> Stepped:
        """What `program` makes of `inputs` (parameter, gradient, slots) and `numbers` for parameter `p`."""
        return numbers.hoisted(inputs, numbers.rounded(inputs["g"]), range(inputs["g"].ndim), numbers.due)

    def _hyper_names(self) -> list[str]:
        return [name for program in with_fallback(self.program) for name in program.defaults()]

    def _step_eager(self, pairs: list[Move], scalars: dict[str, Tensor], sign: int) -> None:
        numbers: dict[tuple[str, float], Numbers] = {}  # parameters may differ in program and step
        for p, g in pairs:
            which, state = self._routed(p).which, self.state[p] or self._begin(p, sign)
            step = state["step"].item() + 1
            state["step"].fill_(step)
            if (which, step) not in numbers:
                numbers[which, step] = self._numbers(self.route(p), scalars, step)
            self._step_parameter(p, g if sign == 1 else -g, state, numbers[which, step])

    def _step_parameter(self, p: Tensor, g: Tensor, state: dict[str, Any], numbers: Numbers) -> None:
        program, dtype = numbers.program, self._dtype(p)
        held = local(p)
        whole = held.to(dtype) + local(state[REST]) if REST in state else held
        if self.defaults["differentiable"]:
            whole = whole.clone()  # the parameter changes in place, but its old value is what derivatives ask for
        inputs = {"g": local(g).to(dtype), "p": whole} | {s.name: local(state[s.name]) for s in program.state}
        update, following = self._execute(p, program, inputs, numbers)
        for slot, arg, value in zip(program.state, program.next_state, following, strict=True):
            if value is inputs[slot.name]:
                continue  # it stays what it is
            # a fresh tensor; anything else may alias, such as what is chosen
            own = type(arg) is int and slot.kind is Kind.TENSOR and program.body[arg].op != "choose"
            value = value if own else value.to(dtype).expand(inputs[slot.name].shape).clone()
            state[slot.name] = placed_like(state[slot.name], value)
        if REST in state:
            whole = whole - numbers.rate(dtype) * update
            held.copy_(whole)
            state[REST] = placed_like(state[REST], whole - held.to(dtype))
        else:
            held.sub_(numbers.rate(dtype) * update)

    def _step_compiled(self, pairs: list[Move], scalars: dict[str, Tensor], sign: int) -> None:
        together: dict[tuple[Kernel, float], tuple[list[Bound], list[Tensor]]] = {}
        for p, g in pairs:
            bound = self._bound.get(id(p))
            if bound is None or not bound.holds(p, self.state.get(p)):
                self._bound[id(p)] = bound = self._bind(p, sign)
            step, g = bound.advance(), local(g)
            if g.numel():  # a shard may be empty
                all_bound, gradients = together.setdefault((bound.kernel, step), ([], []))
                all_bound.append(bound)
                gradients.append(g)
        for (compiled, step), (all_bound, gradients) in together.items():
            compiled.run(all_bound, gradients, self._numbers(compiled.program, scalars, step), sign)

    def _bind(self, p: Tensor, sign: int) -> Bound:
        """Compiled code reads memory unchecked, so that everything is checked here."""
        held, dtype, program = local(p), self._dtype(p), self.route(p)
        state = self.state[p] or self._begin(p, sign)
        kinds = {s.name: s.kind for s in program.live_state} | ({REST: Kind.TENSOR} if dtype != p.dtype else {})
        for name, kind in kinds.items():
            x = state.get(name)
            if x is None or x.shape != kind.shape(p.shape) or local(x).device != held.device:
                raise ProgramError(
                    f"state {name!r} of a parameter of shape {tuple(p.shape)} does not fit it; load a checkpoint of "
                    "this program, or begin with empty state"
                )
            if x.dtype != dtype:
                state[name] = x.to(dtype)
        return kernel(program, dtype, p.dtype, held.device).bind(p, held, state, list(kinds))

    @property
    def routes(self) -> list[Route]:
        """Where each parameter goes, in order: to the program or to its fallback."""
        return [self._routed(p) for group in self.param_groups for p in group["params"]]

    def route(self, p: Tensor) -> Program:
        """The program that trains `p`, which is a parameter of this optimizer."""
        chosen = self.program if self._routed(p).which == "program" else self.program.fallback
        assert chosen is not None
        return chosen

    def _routed(self, p: Tensor) -> Route:
        if p not in self._routes:  # put in another's place, as what shards models does, or lazy until now
            if is_lazy(p):
                raise ProgramError("a lazy parameter has no shape yet; run the model once on a batch before this")
            self._routes = self._decided(self.param_groups)
        return self._routes[p]

    def _decided(self, groups: Iterable[dict[str, Any]]) -> dict[Tensor, Route]:
        found: dict[Tensor, Route] = {}
        for group in groups:
            params = group["params"]
            pairs = zip(group.get("param_names", [""] * len(params)), params, strict=True)
            named = [(name, p) for name, p in pairs if not is_lazy(p)]  # others wait until they have a shape
            where = (lambda name, p: False) if group.get("use_fallback") else self.where
            found |= zip((p for _, p in named), routing(self.program, named, where), strict=True)
        return found


def _scalar(value: float | Tensor) -> Tensor:
    return value.double().reshape(()) if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
