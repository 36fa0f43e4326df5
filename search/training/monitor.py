"""What an optimizer does while it trains, as a few numbers: norms, ratios, signs and counts, of any torch optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from optforge.primitives.parameters import whole
from optforge.search.training.guard import Tally

EVERY = 50
"""Steps between two observations, by default."""

MOMENTS: tuple[tuple[str, ...], ...] = (("exp_avg",), ("momentum_buffer",), ("m",))
SECOND_MOMENTS: tuple[tuple[str, ...], ...] = (
    ("exp_avg_sq",), ("n",), ("v",), ("square_avg",), ("sum",), ("total",), ("row", "col"), ("row_var", "col_var"),
    ("variance",),
)  # fmt: skip
"""Names under which torch's optimizers, ours and other packages' keep averages: the first that is there counts."""


class _Seen(NamedTuple):
    """One parameter in one step, with what was measured of it."""

    name: str
    group: int
    rate: float
    measured: dict[str, float]


class Monitor:
    """Observe the first and every N-th step of an optimizer, without changing anything.

    ::

        monitor = Monitor(optimizer, names=model.named_parameters())
        for inputs, targets in batches:
            ...
            optimizer.step()
            for tag, value in monitor.take().items():
                writer.add_scalar(tag, value, monitor.steps)

    An observation has these scalars, each over all parameters that had a gradient and, where there are several groups,
    for each group again (``…/NAME``, or the group's number if it has no `name`):

    ========================= =========================================================================================
    grad_norm                 Euclidean norm of the gradients that the optimizer got
    grad_norm_before_clip     the same before clipping, if a `tally` knows
    update_norm               of the change of the parameters, ‖Δ‖
    update_to_weight          ‖Δ‖ / ‖p‖
    sign_agreement            share of elements that moved against their gradient, among those that moved and have one
    momentum_norm             of the average of gradients, where the state has one (see `MOMENTS`)
    second_moment_min, …_max  range of the average of squares (see `SECOND_MOMENTS`)
    trust_ratio/PARAMETER     for each parameter ‖p‖ / ‖update‖, where Δ = lr · update, and 1 where either is 0: what
                              LAMB would multiply the rate by (You et al. 2020)
    skipped_share, clipped_…  of the steps since the last observation, if a `tally` counts them
    ========================= =========================================================================================

    The step that is observed takes a copy of the parameters, which is dropped after it; between observations there are
    no copies, and a hook costs about a microsecond. Numbers are read from the device in one go.

    Args:
        optimizer: any torch optimizer; its hooks are used, and closures are fine.
        every: steps between observations; 0 for none, which leaves `rates`.
        names: parameters by name, as from ``model.named_parameters()``; by default the names that the optimizer was
            given, or numbers.
        tally: counts of skipped and clipped steps, as a `Guard` has.
        prefix: first part of all tags.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        every: int = EVERY,
        *,
        names: Iterable[tuple[str, Tensor]] = (),
        tally: Tally | None = None,
        prefix: str = "optimizer",
    ) -> None:
        if every < 0:
            raise ValueError(f"every must be a number of steps, or 0 for none, got {every}")
        self.optimizer, self.every, self.tally, self.prefix = optimizer, every, tally, prefix
        self.steps = 0
        """Steps that were made so far."""
        self._names = {p: name for name, p in names}
        self._rates: list[Any] = []
        self._before: list[list[Tensor]] | None = None
        self._scalars: dict[str, float] = {}
        self._counted = Tally()
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def take(self) -> dict[str, float]:
        """Scalars of the latest step by tag if it was observed, else nothing; each observation is given once."""
        taken, self._scalars = self._scalars, {}
        return taken

    def rates(self) -> dict[str, float]:
        """Learning rate of the latest step, ``lr``, for each group, and ``learned/NAME`` of all that is learned.

        The rate is what the optimizer's ``effective_lrs()`` gives, if it has that, else ``group["lr"]``.
        """
        names = _labels(self.optimizer.param_groups)
        rates = _effective(self.optimizer, self._rates) if self.steps else []
        found = {self._tag("lr", name): float(lr) for name, lr in zip(names, rates, strict=False)}
        values: Callable[[], dict[str, float]] = getattr(self.optimizer, "learned_values", dict)
        return found | {self._tag("learned", name): value for name, value in values().items()}

    def remove(self) -> None:
        """Observe no more."""
        for hook in self._hooks:
            hook.remove()

    @property
    def due(self) -> bool:
        """Whether the next step will be observed."""
        return self.every > 0 and (self.steps == 0 or (self.steps + 1) % self.every == 0)

    def _before_step(self, *_: Any) -> None:
        self._before = None
        if self.due:
            self._before = [[_plain(p).clone() for p in group["params"]] for group in self.optimizer.param_groups]

    def _after_step(self, *_: Any) -> None:
        self.steps += 1
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self._rates = [r.detach().clone() if isinstance(r, Tensor) else r for r in rates]
        if self._before is not None:
            with torch.no_grad():
                self._scalars = self._summary(self._observe(self._before))
            self._before = None

    def _observe(self, before: list[list[Tensor]]) -> list[_Seen]:
        """Everything about the step just made; uses up `before`."""
        about: list[tuple[str, int, float]] = []
        measured: list[dict[str, Tensor]] = []
        groups = self.optimizer.param_groups
        rates = _effective(self.optimizer, [group["lr"] for group in groups])
        for number, (group, olds) in enumerate(zip(groups, before, strict=True)):
            ready = [(i, p) for i, p in enumerate(group["params"]) if p.grad is not None and p.numel()]
            rate = float(rates[number])
            about += [(self._name(group, number, i, p), number, rate) for i, p in ready]
            sign = -1.0 if group.get("maximize") else 1.0
            params = [p for _, p in ready]
            states = [self.optimizer.state.get(p, {}) for p in params]
            rows = zip(_measure([olds[i] for i, _ in ready], params, sign), _measure_states(states), strict=True)
            measured += [row | more for row, more in rows]
        return [_Seen(*one, numbers) for one, numbers in zip(about, _read(measured), strict=True)]

    def _summary(self, seen: Sequence[_Seen]) -> dict[str, float]:
        scalars = {self._tag(name): value for name, value in _totals(seen).items()}
        labels = _labels(self.optimizer.param_groups)
        for number, label in enumerate(labels if len(labels) > 1 else []):
            own = _totals([s for s in seen if s.group == number])
            scalars |= {self._tag(name, label): value for name, value in own.items()}
        for s in seen:
            weight, update = s.measured["weight"], s.measured["update"]
            scalars[self._tag("trust_ratio", s.name)] = s.rate * weight / update if weight and update else 1.0
        if self.tally is not None:
            now, last = self.tally, self._counted
            steps = max(1, now.steps - last.steps)
            scalars[self._tag("skipped_share")] = (now.skipped - last.skipped) / steps
            scalars[self._tag("clipped_share")] = float(now.clipped - last.clipped) / steps
            if now.norm is not None:
                scalars[self._tag("grad_norm_before_clip")] = float(now.norm)
            self._counted = replace(now)
        return scalars

    def _tag(self, *parts: str) -> str:
        return "/".join(filter(None, (self.prefix, *parts)))

    def _name(self, group: dict[str, Any], number: int, index: int, p: Tensor) -> str:
        if p in self._names:
            return self._names[p]
        return str(group["param_names"][index]) if "param_names" in group else f"{number}.{index}"


def _measure(old: list[Tensor], params: list[Tensor], sign: float) -> list[dict[str, Tensor]]:
    """Of each parameter, now and before; uses up `old`. `sign` is -1 where a step should go up the gradient."""
    if not params:
        return []
    grads = [_plain(p.grad) for p in params]  # type: ignore[arg-type]
    weights = _norms(old)
    torch._foreach_sub_(old, [_plain(p) for p in params])
    updates = _norms(old)
    torch._foreach_sign_(old)
    torch._foreach_mul_(old, torch._foreach_sign(grads))
    moved = torch._foreach_norm(old, 1)
    rows = zip(weights, updates, _norms(grads), old, moved, strict=True)
    return [{"weight": w, "update": u, "grad": g, "against": sign * x.sum(), "moved": n} for w, u, g, x, n in rows]


def _measure_states(states: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
    """Of the averages of each parameter, if it has any."""
    found = [(_first(state, MOMENTS), _first(state, SECOND_MOMENTS)) for state in states]
    norms = iter(_norms([moment for moment, _ in found if moment is not None]))
    rows = []
    for moment, second in found:
        row = {} if moment is None else {"moment": next(norms)}
        rows.append(row if second is None else row | {"lowest": second.amin(), "highest": second.amax()})
    return rows


def _totals(seen: Sequence[_Seen]) -> dict[str, float]:
    """Scalars of several parameters as if they were one vector."""

    def of(name: str) -> list[float]:
        return [s.measured[name] for s in seen if name in s.measured]

    if not seen:
        return {}
    weight, update, moved = math.hypot(*of("weight")), math.hypot(*of("update")), sum(of("moved"))
    totals = {"grad_norm": math.hypot(*of("grad")), "update_norm": update}
    if weight:
        totals["update_to_weight"] = update / weight
    if moved:
        totals["sign_agreement"] = (sum(of("against")) + moved) / (2 * moved)
    if of("moment"):
        totals["momentum_norm"] = math.hypot(*of("moment"))
    if of("lowest"):
        totals |= {"second_moment_min": min(of("lowest")), "second_moment_max": max(of("highest"))}
    return totals


def _effective(optimizer: Optimizer, given: list[Any]) -> list[Any]:
    """The rates of the last step for each group: what the optimizer says, or those that it was given."""
    own: Callable[[], list[float]] | None = getattr(optimizer, "effective_lrs", None)
    return given if own is None else own()


def _labels(groups: Sequence[dict[str, Any]]) -> list[str]:
    """Names of groups in tags; that of a single group is left out."""
    return [""] if len(groups) == 1 else [str(group.get("name", i)) for i, group in enumerate(groups)]


def _plain(x: Tensor) -> Tensor:
    """As a dense tensor of real numbers without a history."""
    x = x.detach()
    x = x if x.layout is torch.strided else x.to_dense()
    return torch.view_as_real(x) if x.is_complex() else x


def _norms(tensors: list[Tensor]) -> list[Tensor]:
    """Euclidean norm of each, in at least single precision."""
    wide = [x if x.dtype.itemsize >= 4 else x.float() for x in tensors]
    return list(torch._foreach_norm(wide)) if wide else []


def _first(state: dict[str, Any], names: Sequence[tuple[str, ...]]) -> Tensor | None:
    for some in names:
        found = [_plain(state[name]) for name in some if isinstance(state.get(name), Tensor) and state[name].numel()]
        if found:
            return found[0] if len(found) == 1 else torch.cat([x.flatten() for x in found])
    return None


def _read(rows: list[dict[str, Tensor]]) -> list[dict[str, float]]:
    """The same as numbers, brought from the device at once."""
    there = [whole(x) for row in rows for x in row.values()]
    if not there:
        return []
    device, dtype = there[0].device, torch.promote_types(there[0].dtype, torch.float32)
    numbers = iter(torch.stack([x.to(device, dtype) for x in there]).tolist())
    return [{name: next(numbers) for name in row} for row in rows]
