"""What losses say, where they are told: whether they fall, and whether they would with the rate that was given.

Pure functions of a few numbers, as in `learned.rules`, against the two ways in which learning may do harm:

- The cap knows nothing but sizes, and may set a given rate aside that works well. So such a rate gets a trial: after
  `WINDOW` steps without it, as many with it. If losses have fallen by then at least half as far as without it, it is
  kept for as long as they fall; otherwise, or as soon as they rise, it is forgotten. The steps without it come first,
  since a rate that is far too large destroys a network within one. Variant: no copy of the parameters is kept, so
  that the trial begins where the steps before it have led.
- A rate that was lifted may turn out too large. Once losses rise by a few times their usual scatter, it is halved, but
  not below the given one. They must rise twice as far to halve it once more, and so on: if that does not help, then it
  is something else that makes them rise.

The median of the last three losses stands for the latest one, so that none of them alone decides anything. Steps whose
loss is not told, or is not finite, do not count.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from optforge.learned.numeric import Number, of
from optforge.learned.rules import TRUSTED

WINDOW = 25  # steps without the given rate, at the least, and then with it
WAITS = 50  # steps without it, at the most, until it changes little enough
PATIENCE = 50  # steps without a lower average after which losses do not fall
TRIED = 0.25  # largest step of a weight matrix, relative to its size, with a rate on trial
TRUSTED_AT_FIRST = 0.15  # the same for the given rate in the first steps, which are the largest ones of some rules
FIRST = 10  # how many those are
TRUST, WAITING, TRIAL, PASSED, OVER = 0.0, 1.0, 2.0, 3.0, 4.0  # phases of the given rate
STALLED, BEGUN, KEPT, FAILED, ROSE, RISEN, ANEW = 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0  # causes of moves
_ENOUGH = 0.5  # of the fall without the given rate: losses always fall more slowly later on
_SHARE = 0.1  # of a loss in the average
_SLOWLY = 0.02  # of a distance in the scatter
_FEW = 20  # losses, of which nobody knows the scatter
_JUMP = 5.0  # times the scatter, as which a larger distance counts in it: losses that explode are not usual
_FELL = 0.01  # times the scatter, by which the average is at least below its lowest value, if losses fall
_FAR = 7.0  # times the scatter, by which the average is above its lowest value, if they have risen: hardly ever noise
_FORGOTTEN = 0.001  # of each rise in a step
_LARGEST = 1e100  # loss, whose sums and products do not overflow


class Losses(NamedTuple):
    """What is kept of losses; of no meaning before any is told.

    Attributes:
        loss: their average over about ten steps.
        last, earlier: the last two.
        middle: the median of the last three.
        lowest_loss: the lowest average, since losses began anew or a trial began.
        scatter: average distance of such medians from the ones before them, which a steady fall hardly changes.
        stalled: how many there were since the average was lowest.
        told: how many there were.
        told_at: the step of the last one.
        rises: how many rises there were in about the last thousand losses, while the rate was above the given one.
        phase: of the given rate: `TRUST` in it, `WAITING` for its trial, on `TRIAL`, which it has `PASSED`, or `OVER`.
        since: how many losses there were in this phase, if it is one of the two in the middle.
        mark: while it waits, the average when it was set aside; on trial, what the average must come to until its end.
        cause, caused: why losses moved what is learned, and in which step, at the latest.
    """

    loss: Number
    last: Number
    earlier: Number
    middle: Number
    lowest_loss: Number
    scatter: Number
    stalled: Number
    told: Number
    told_at: Number
    rises: Number
    phase: Number
    since: Number
    mark: Number
    cause: Number
    caused: Number


def heard(known: Losses, loss: Number, lifted: Number, step: int) -> tuple[Losses, Number]:
    """After one more loss, and whether they are far above their lowest average.

    `lifted` says whether the rate is above the given one, or other hyperparameters are learned, so that a rise may be
    their doing, which moves them. Losses begin anew from where they are then, and so while the given rate is set aside.
    """
    do, usable = of(loss), abs(loss) < _LARGEST
    first, early, usual = known.told == 0, known.told < 3, (known.told > _FEW) & (known.scatter > 0)
    last, earlier = do.where(first, loss, known.last), do.where(first, loss, known.earlier)
    low, high = do.minimum(last, earlier), do.maximum(last, earlier)
    middle = do.maximum(low, do.minimum(high, loss))
    jump = do.where(early, 0.0, abs(middle - known.middle))
    jump = do.where(usual, do.minimum(jump, _JUMP * known.scatter), jump)
    average = do.where(early, middle, known.loss + _SHARE * (middle - known.loss))
    lower = early | (average < known.lowest_loss - _FELL * known.scatter)
    too_high = known.lowest_loss + _FAR * 2.0**known.rises * known.scatter
    risen = usable & usual & (average > too_high)
    begins = risen & (lifted | (known.phase == WAITING))
    after = known._replace(
        loss=do.where(begins, middle, average),
        last=loss,
        earlier=last,
        middle=middle,
        lowest_loss=do.where(begins, middle, do.where(lower, average, known.lowest_loss)),
        scatter=known.scatter + do.clip(1.0 / (known.told + 1.0), _SLOWLY, 1.0) * (jump - known.scatter),
        stalled=do.where(lower, 0.0, known.stalled + 1.0),
        told=known.told + 1.0,
        told_at=float(step),
        rises=(1.0 - _FORGOTTEN) * known.rises + do.where(risen & lifted, 1.0, 0.0),
        since=known.since + 1.0,
        mark=do.where(early, average, known.mark),
    )
    after = Losses(*(do.where(usable, new, old) for new, old in zip(after, known, strict=True)))
    return _moved(after, risen & lifted, RISEN, step), risen


def tried(known: Losses, rose: Number, change: Number, step: int) -> tuple[Losses, Number, Number]:
    """After a look at the given rate; and whether its trial begins now, and whether it has failed now.

    Args:
        known: as `heard` gives it.
        rose: whether losses have risen while that rate was in use, and trusted only because they fell.
        change: what a step with it changes of weights, relative to their size.
        step: number of this step.
    """
    do = of(known.loss)
    waits, ends = known.phase == WAITING, (known.phase == TRIAL) & (known.since >= WINDOW)
    begins = waits & (known.since >= WINDOW) & (change <= TRIED)
    failed = rose | (ends & (known.loss >= known.mark))
    over = failed | (waits & (known.since >= WAITS) & ~begins)
    phase = do.where(begins, TRIAL, do.where(ends, PASSED, known.phase))
    known = known._replace(
        lowest_loss=do.where(begins, known.loss, known.lowest_loss),  # rises before it say nothing about it
        stalled=do.where(begins, 0.0, known.stalled),
        phase=do.where(over, OVER, phase),
        since=do.where(begins, 0.0, known.since),
        mark=do.where(begins, known.loss - _ENOUGH * (known.mark - known.loss), known.mark),
    )
    cause = do.where(begins, BEGUN, do.where(rose, ROSE, do.where(failed, FAILED, KEPT)))
    return _moved(known, begins | failed | ends, cause, step), begins, failed


def set_aside(known: Losses, now: Number, step: int) -> Losses:
    """After the given rate was set aside, if it is `now`: once losses are told, its trial comes, but only one."""
    do = of(known.loss)
    waits = known.phase == TRUST
    known = known._replace(
        phase=do.where(now, do.where(waits, WAITING, OVER), known.phase),
        since=do.where(now, 0.0, known.since),
        mark=do.where(now & waits, known.loss, known.mark),
    )
    return _moved(known, now & (known.told > 0) & (known.stalled >= PATIENCE), STALLED, step)


def trusted(known: Losses, step: int) -> tuple[Number, Number]:
    """Whether losses fall, and what the given rate may therefore change of weights in a step, relative to their size.

    What has not been told for long counts no longer.
    """
    do = of(known.loss)
    falls = (known.told > 0) & (known.stalled < PATIENCE) & (step - known.told_at < PATIENCE)
    passed = (known.phase == TRIAL) | (known.phase == PASSED)
    limit = TRUSTED_AT_FIRST if step < FIRST else TRUSTED
    return falls, do.where(falls, do.where(passed, math.inf, limit), TRUSTED)


def packed(losses: Losses) -> Tensor:
    """All of it in one tensor of float64, as it is kept."""
    return torch.stack(losses) if isinstance(losses.loss, Tensor) else torch.tensor(losses, dtype=torch.float64)


def anew(known: Losses, step: int) -> Losses:
    """After everything but losses began anew, with the given rate in use."""
    return _moved(known._replace(phase=0.0 * known.phase + TRUST), known.told >= 0, ANEW, step)


def _moved(known: Losses, now: Number, cause: Number, step: int) -> Losses:
    do = of(known.loss)
    return known._replace(cause=do.where(now, cause, known.cause), caused=do.where(now, float(step), known.caused))


__all__ = ["PATIENCE", "WINDOW", "Losses", "anew", "heard", "packed", "set_aside", "tried", "trusted"]
