"""Why what is learned moved: a sentence for each large move, from what the optimizer keeps anyway."""

from __future__ import annotations

import math

from optforge.learned.hypergradient import LearnedOptimizer
from optforge.learned.losses import ANEW, BEGUN, FAILED, KEPT, PATIENCE, RISEN, ROSE, STALLED, Losses
from optforge.learned.rules import CAP, MARGIN
from optforge.primitives.kinds import SCALES

LARGE = 0.99 * math.log(2.0)  # a factor of 2, or as much on a hyperparameter's own scale; but for rounding

_RAISED = {
    BEGUN: "losses are told, so that the given rate gets a trial",
    KEPT: "losses fell well with it",
    ANEW: "the first gradients were far larger than the second ones, so that everything begins anew",
}
_LOWERED = {
    STALLED: f"losses have not fallen for {PATIENCE} steps with the rate that was given",
    FAILED: "losses have hardly fallen with the rate that was given",
    ROSE: "losses have risen with the rate that was given",
    RISEN: "losses have risen, so that it goes back towards the rate that was given",
}
_BACK = "losses have risen, so that it goes back towards where it began"


class Moves:
    """Follows an optimizer's learned quantities; what it reads may wait for the device, so it is asked now and then.

    ::

        moves = Moves(optimizer)
        for step, batch in enumerate(batches):
            ...
            if step % 100 == 0:
                for sentence in moves.take():
                    print(step, sentence)

    Args:
        optimizer: whose quantities.
        noted: their values when they were last mentioned, which changes; by default those of now. Rates of groups and
            tensors are there as shares of the common one.
    """

    def __init__(self, optimizer: LearnedOptimizer, noted: dict[str, float] | None = None) -> None:
        self.optimizer = optimizer
        self.noted = optimizer.learned_values() | {"caused": self._cause()[1]} if noted is None else noted

    def take(self) -> list[str]:
        """A sentence for each quantity that has moved by a factor of 2 since it was last mentioned.

        The rates of groups and tensors are mentioned where they have moved so far from the rate that all share.
        """
        found = []
        cause, caused = self._cause()
        cause = cause if caused > self.noted.get("caused", 0.0) else 0.0
        self.noted["caused"] = caused
        for name, value in self.optimizer.learned_values().items():
            before = self.noted[name]
            moved = self._on_scale(name, value) - self._on_scale(name, before)
            if abs(moved) >= LARGE:
                self.noted[name] = value
                verb = "raised" if value > before else "lowered"
                found.append(
                    f"{name} {verb} from {before:.3g} to {value:.3g}: {self._reason(name, before, value, cause)}"
                )
        first = self.optimizer.param_groups[0]
        common = first["base_lr"] * math.exp(float(first["learning"]["common"]))
        for name, rate in self.optimizer.learned_rates().items():
            share, before = rate / common, self.noted.setdefault(name, rate / common)
            if abs(math.log(share / before)) >= LARGE:
                self.noted[name] = share
                verb, more = ("raised", "more") if share > before else ("lowered", "less")
                found.append(
                    f"{name} {verb} from {before:.3g} to {share:.3g} times the common rate: its gradients agree {more} "
                    "with the steps before them than those of the others"
                )
        return found

    def _on_scale(self, name: str, value: float) -> float:
        if name == "lr":
            return math.log(value)
        return SCALES[self.optimizer.scale(name)].forward(value)

    def _cause(self) -> tuple[float, float]:
        """Why losses moved what is learned, and in which step, at the latest."""
        losses = Losses(*self.optimizer.param_groups[0]["learning"]["losses"].tolist())
        return losses.cause, losses.caused

    def _reason(self, name: str, before: float, value: float, cause: float) -> str:
        """Why, given what losses have caused since the last time."""
        up, group = value > before, self.optimizer.param_groups[0]
        learning = group["learning"]
        if name != "lr":
            if cause == RISEN and up == (learning["start"][name] > before):
                return _BACK
            way = "against" if up else "along"
            return f"gradients have pointed {way} what {name} changes in a step, so that the next loss is smaller so"
        if (found := (_RAISED if up else _LOWERED).get(cause)) and (cause != RISEN or before > group["base_lr"]):
            return found
        if self.optimizer.rule == "two-sided" and (large := float(learning["large"])):
            most = max(CAP / large, float(learning["given"]))
            if value > 0.999 * most or before > most:
                share = f"{100 * most * large:.2g} %"
                return f"this is the cap, at which a step changes weights by up to {share} of their size"
        memory = learning["memory"]
        told = ""
        if "trace" in memory and float(memory["weight"]):
            cosine = float(memory["trace"]) / float(memory["weight"])
            told = f" (average cosine {cosine:.2f})" if (cosine > 0) == up and abs(cosine) > MARGIN else ""
        return f"gradients {'agree with' if up else 'turn against'} the steps before them{told}"


__all__ = ["LARGE", "Moves"]
