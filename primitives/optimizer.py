"""The `torch.optim.Optimizer` face of any program."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from primitives.interpret import Stepped, initial_slot
from primitives.kinds import Kind, ProgramError
from primitives.program import Program, check_hypers
from primitives.source import compile_step


class ProgramOptimizer(Optimizer):
    """Train with a program: ``p ← p - lr · update`` for each parameter.

    Args:
        params: parameters or parameter groups. A group may override `lr` and every hyperparameter.
        program: the update rule, or its fallback for parameters of fewer than two dimensions if it has one.
        lr: learning rate, positive or zero; schedulers change it as they do for any torch optimizer.
        maximize: ascend instead of descend.
        total_steps: length of training, needed only by programs that read the signal `progress`.
        **hypers: values for the program's hyperparameters; defaults come from the program.

    Raises:
        ProgramError: for unknown hyperparameters or values outside their scale, at construction; for sparse or
            complex gradients, in `step`.
    """

    def __init__(
        self,
        params: ParamsT,
        program: Program,
        lr: float = 1e-3,
        *,
        maximize: bool = False,
        total_steps: int | None = None,
        **hypers: float,
    ) -> None:
        if not isinstance(program, Program):
            raise ProgramError(f"expected a Program, got {type(program).__name__}; BASELINES[name].program is one")
        self.program = program
        self.total_steps = total_steps
        if "progress" in self._reads() and not (isinstance(total_steps, int) and total_steps > 0):
            raise ProgramError("this program reads the training progress; pass total_steps=NUMBER_OF_STEPS")
        defaults = {"lr": lr, "maximize": maximize, **self._check_hypers(hypers)}
        super().__init__(params, defaults)

    def _programs(self) -> list[Program]:
        return [p for p in (self.program, self.program.fallback) if p is not None]

    def _reads(self) -> set[str]:
        return set().union(*(p.live.names for p in self._programs()))

    def _check_hypers(self, values: dict[str, float]) -> dict[str, float]:
        """Defaults of the program and its fallback, overridden by `values`; a name they share has one value."""
        merged: dict[str, float] = {}
        for program in reversed(self._programs()):
            merged |= program.defaults()
        if unknown := sorted(values.keys() - merged.keys()):
            known = ", ".join(merged) or "none"
            raise ProgramError(f"unknown hyperparameter {unknown[0]!r}; this program has: {known}")
        for program in self._programs():
            own = {name: value for name, value in values.items() if name in program.defaults()}
            merged |= {name: value for name, value in check_hypers(program, own).items() if name in own}
        return merged

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as torch does, refusing values outside their range and options the program does not have."""
        options = {k: v for k, v in param_group.items() if k not in ("params", "param_names")}
        lr = options.pop("lr", self.defaults["lr"])
        if not isinstance(lr, Tensor) and not (isinstance(lr, int | float) and math.isfinite(lr) and lr >= 0):
            raise ProgramError(f"lr must be a finite number of at least 0, got {lr!r}")
        options.pop("maximize", None)
        own = {k: v for k, v in options.items() if k != "initial_lr"}  # schedulers leave initial_lr in groups
        self._check_hypers(own)
        super().add_param_group(param_group)
        try:
            for p in self.param_groups[-1]["params"]:
                self.route(p)  # refuses what the program cannot train, before training starts
        except ProgramError:
            self.param_groups.pop()
            raise

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles hold; torch alone would keep its own attributes and lose these."""
        return super().__getstate__() | {"program": self.program, "total_steps": self.total_steps}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; returns the closure's loss, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                _check_gradient(p)  # of all, before any parameter moves
        self._before_step()
        signals = {}
        if "global_norm" in self._reads():
            signals["global_norm"] = global_norm(
                p.grad for group in self.param_groups for p in group["params"]
            ).double()
        for group in self.param_groups:
            scalars = {name: _scalar(group[name]) for name in self._hyper_names()} | signals
            scalars["lr"] = self._rate(group)
            for p in group["params"]:
                if p.grad is not None:
                    self._step_parameter(p, -p.grad if group["maximize"] else p.grad, scalars)
        return loss

    def _before_step(self) -> None:
        """For subclasses: called once a step, when all gradients are there and no parameter has moved."""

    def _rate(self, group: dict[str, Any]) -> Tensor:
        """Learning rate of this step for a group, 0-dimensional."""
        return _scalar(group["lr"])

    def _execute(self, p: Tensor, program: Program, inputs: dict[str, Tensor]) -> Stepped:
        """What `program` makes of `inputs` for parameter `p`."""
        return compile_step(program)(inputs, range(p.ndim))

    def _hyper_names(self) -> list[str]:
        return [name for program in self._programs() for name in program.defaults()]

    def _step_parameter(self, p: Tensor, g: Tensor, scalars: dict[str, Tensor]) -> None:
        program = self.route(p)
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            for slot in program.state:
                state[slot.name] = initial_slot(slot, p, g)
        state["step"] = state["step"] + 1  # not in place: another optimizer may have loaded this state
        inputs = scalars | {"g": g, "p": p, "step": state["step"].double()}
        if self.total_steps is not None:
            inputs["progress"] = inputs["step"] / self.total_steps
        for slot in program.state:
            inputs[slot.name] = state[slot.name]
        update, following = self._execute(p, program, inputs)
        for slot, arg, value in zip(program.state, program.next_state, following, strict=True):
            own = type(arg) is int and slot.kind is Kind.TENSOR  # a fresh tensor; anything else may alias
            state[slot.name] = value if own else value.to(p.dtype).expand(state[slot.name].shape).clone()
        self._apply(p, update, scalars["lr"])

    def _apply(self, p: Tensor, update: Tensor, lr: Tensor) -> None:
        p.sub_(lr * update)

    def route(self, p: Tensor) -> Program:
        """The program that trains `p`: the fallback for parameters without rows and columns, if it is needed."""
        if p.ndim >= 2 or not self.program.needs_matrix:
            return self.program
        if self.program.fallback is None:
            raise ProgramError(
                f"this program works on rows and columns, but a parameter has shape {tuple(p.shape)}; "
                "give the program a fallback for such parameters"
            )
        return self.program.fallback


def _check_gradient(p: Tensor) -> None:
    sparse = p.grad is not None and p.grad.layout is not torch.strided
    if sparse or (p.grad is not None and torch.is_complex(p)):
        kind = "sparse gradients" if sparse else "complex parameters"
        raise ProgramError(f"programs do not define a meaning for {kind} (parameter of shape {tuple(p.shape)})")


def global_norm(gradients: Iterable[Tensor | None]) -> Tensor:
    """Euclidean norm of all gradients together, 0-dimensional; 0 if there are none."""
    norms = [torch.linalg.vector_norm(g) for g in gradients if g is not None]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def _scalar(value: float | Tensor) -> Tensor:
    return value.double() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
