"""What all hand-written optimizers share, so that each file holds one paper's rule and nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from optforge.baselines.checks import check_beta, check_bool, check_dtype, check_not_negative, check_unit
from optforge.primitives.options import is_note
from optforge.primitives.parameters import (
    REST,
    check_state_dtype,
    is_sharded,
    load_unrounded,
    shards_refused,
    state_dtype,
    with_gradients,
)

Lists = dict[str, list[Tensor]]


def with_l2(group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    """Gradients of the loss plus ``weight_decay / 2 · ‖p‖²``: coupled decay, as in most of `torch.optim`."""
    weight_decay = group["weight_decay"]  # the gradients are the caller's, so that the sum is never in place
    return list(torch._foreach_add(grads, params, alpha=weight_decay)) if weight_decay else grads


def decay_weights(group: dict[str, Any], params: list[Tensor]) -> None:
    """Decoupled weight decay, in place."""
    torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])


def average_squares(v: list[Tensor], grads: list[Tensor], decay: float) -> None:
    """Let the averages `v` take in the squares of `grads`, in place."""
    torch._foreach_mul_(v, decay)
    torch._foreach_addcmul_(v, grads, grads, 1 - decay)


def corrected_root(v: list[Tensor], decay: float, step: int, eps: float) -> list[Tensor]:
    """Roots of averages of squares, corrected for their start at zero, plus `eps`."""
    roots = torch._foreach_div(v, 1 - decay**step)
    torch._foreach_sqrt_(roots)
    # Epsilon joins the root of the corrected average, below the fraction bar. Write-ups have it under the root, or
    # beside the quotient, where it would be a constant drift; TensorFlow's joins the uncorrected root.
    torch._foreach_add_(roots, eps)
    return list(roots)


class HandWritten(Optimizer):
    """A `torch.optim.Optimizer` whose rule is `_apply`, over lists of tensors and in place.

    A subclass names its hyperparameters in ``__init__`` and the state that begins at zero in `_zeros`, and writes the
    paper's formulas down in `_apply`; `_check` and `_start` are for further hyperparameters and state. Here are
    closures, groups, `maximize`, arithmetic in another dtype, and a step number for each parameter: one that is
    unfrozen late begins at step 1.

    Args:
        params: parameters or parameter groups; a group may override every hyperparameter.
        defaults: the hyperparameters.
        maximize: ascend instead of descend.
        state_dtype: dtype of state and arithmetic, by default the parameter's, of float16 ``torch.float32``. With that,
            parameters in 16 bits also keep what rounding takes from them (``state["p"]``), so that small updates add
            up.

    Raises:
        ValueError: for a hyperparameter out of range, by its name, in the constructor or in a group; for an option
            that the optimizer does not have.
        ProgramError: for sparse or complex gradients, in `step`.
    """

    _zeros: tuple[str, ...] = ()  # state that begins at zero
    _betas = 2  # how many numbers `betas` are

    def __init_subclass__(cls, **defaults: Any) -> None:
        """``class AdamW(Adam, weight_decay=0.01)`` has the constructor of Adam with another default."""
        super().__init_subclass__()
        if defaults:
            cls.__init__ = _with_defaults(cls.__init__, defaults)  # type: ignore[method-assign]

    def __init__(
        self,
        params: ParamsT,
        defaults: dict[str, Any],
        *,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(params, {**defaults, "maximize": maximize, "state_dtype": state_dtype})

    def _check(self, group: dict[str, Any]) -> None:
        """Raise `ValueError` naming the first hyperparameter of `group` that is out of range.

        Names that mean the same in all papers are checked here.
        """
        check_not_negative(group, *(name for name in ("lr", "eps", "weight_decay") if name in self.defaults))
        if "momentum" in self.defaults:
            check_unit(group, "momentum")
        if "betas" in self.defaults:
            check_beta(group, "betas", count=self._betas)

    def _start(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """State of `p` before its first step; `p` has the dtype of the state."""
        return {name: torch.zeros_like(p) for name in self._zeros}

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        """One update in place of parameters that are all at the same `step`, 1 for the first.

        `state` has one list for each key of `_start`; the lists run in the order of `params`.
        """
        raise NotImplementedError

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as torch does, after a check of its options."""
        for name in param_group.keys() - {"params", "param_names", *self.defaults}:
            if not is_note(name, self.defaults):
                raise ValueError(f"unknown option {name!r} in a parameter group; known: {', '.join(self.defaults)}")
        group = {**self.defaults, **param_group}
        check_bool(group, "maximize")
        check_dtype(group, "state_dtype")
        self._check(group)
        super().add_param_group(param_group)
        try:
            check_state_dtype(group["state_dtype"], self.param_groups[-1]["params"])
            for p in self.param_groups[-1]["params"]:
                if is_sharded(p) and self._mixes(p, group):
                    raise shards_refused(p, type(self).__name__)
        except ValueError:
            self.param_groups.pop()
            raise

    @torch._disable_dynamo  # torch.compile mixes up groups whose updates differ by numbers in their state
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; returns the closure's loss, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        ready = with_gradients(self.param_groups)
        self._before_step(ready)
        for options, params in zip(self.param_groups, ready, strict=True):
            group = {**options, "lr": float(options["lr"])}  # which may be a tensor
            alike: dict[tuple[Any, ...], list[Tensor]] = {}
            for p in params:
                state = self.state[p] or self._begin(p, group)
                state["step"] += 1
                alike.setdefault((state["step"].item(), p.dtype, *state), []).append(p)
            for (step, *_), moved in alike.items():
                self._update(group, moved, int(step))
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load as torch does, except that state is never rounded to the dtype of the parameter.

        Raises:
            ValueError: before anything changes, if the state is that of another optimizer.
        """
        dtypes = {p: state_dtype(p, group["state_dtype"]) for group in self.param_groups for p in group["params"]}
        load_unrounded(self, super().load_state_dict, state_dict, dtypes.__getitem__, self._check_saved)

    def _check_saved(self, saved: dict[str, Any]) -> None:
        for group, old in zip(self.param_groups, saved["param_groups"], strict=False):
            for p, index in zip(group["params"], old["params"], strict=False):
                own = {"step", *self._start(torch.empty_like(p, device="meta"), {**group, **old})}
                found = set(saved["state"].get(index, own)) - {REST}
                if found != own:
                    raise ValueError(
                        f"the checkpoint holds {', '.join(sorted(found))} for a parameter of shape {tuple(p.shape)}, "
                        f"where {type(self).__name__} has {', '.join(sorted(own))}; load one of the same optimizer"
                    )

    def _mixes(self, p: Tensor, group: dict[str, Any]) -> bool:
        """Whether the rule needs all elements of `p` in one place, so that it cannot be sharded."""
        return False

    def _before_step(self, ready: Sequence[Sequence[Tensor]]) -> None:
        """For rules that need all parameters of all groups at once; called before any of them moves."""

    def _begin(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        dtype = state_dtype(p, group["state_dtype"])
        state = self.state[p]
        state |= {"step": torch.zeros((), dtype=torch.float32), **self._start(p.detach().to(dtype), group)}
        if dtype != p.dtype:
            state[REST] = torch.zeros_like(p, dtype=dtype)
        return state

    def _update(self, group: dict[str, Any], moved: list[Tensor], step: int) -> None:
        states = [self.state[p] for p in moved]
        grads: list[Tensor] = [p.grad for p in moved]  # type: ignore[misc]
        if group["maximize"]:
            grads = list(torch._foreach_neg(grads))
        params = moved
        if REST in states[0]:
            dtype = states[0][REST].dtype
            grads = [g.to(dtype) for g in grads]
            params = [p.to(dtype) + state[REST] for p, state in zip(moved, states, strict=True)]
        lists = {name: [s[name] for s in states] for name in states[0] if name not in ("step", REST)}
        self._apply(group, params, grads, lists, step)
        if params is not moved:
            for p, whole, state in zip(moved, params, states, strict=True):
                p.copy_(whole)
                state[REST].copy_(whole.sub_(p))


def _with_defaults(function: Any, changes: Mapping[str, Any]) -> FunctionType:
    """The same function with other default values of some arguments."""
    parameters = inspect.signature(function).parameters.values()
    kept = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is not p.empty}
    if unknown := changes.keys() - kept:
        raise TypeError(f"{function.__qualname__} has no argument {min(unknown)!r} with a default")
    values = tuple((kept | dict(changes)).values())
    copy = FunctionType(function.__code__, function.__globals__, function.__name__, values, function.__closure__)
    copy.__kwdefaults__, copy.__annotations__ = function.__kwdefaults__, function.__annotations__
    return copy
