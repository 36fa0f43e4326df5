"""What losses say, where they are told: whether they fall, and whether they would with the rate that was given.

Pure functions of a few numbers, as in `learned.rules`, against the two ways in which learning may do harm:

- The cap knows nothing but sizes, and may set a given rate aside that works well. So such a rate gets a trial: after
  `WINDOW` steps without it, as many with it. It is kept for as long as losses fall, if they have fallen further by
  then, and is forgotten otherwise, as soon as they rise. The steps without it come first, since a rate that is far too
  large destroys a network within one. Variant: no copy of the parameters is kept, so that the trial begins where the
  steps before it have led.
- A rate that was lifted may turn out too large. Once losses rise by three times their usual scatter, it is halved, but
  not below the given one; and once more for each further rise.
"""

from __future__ import annotations

from typing import NamedTuple

from learned.numeric import Number, of
from learned.rules import PATIENCE, TRUSTED, TRUSTED_WHERE_IT_FALLS

WINDOW = 25  # steps without the given rate, and then with it
OVER, REFUSED = -1.0, -2.0  # where no trial goes on
_SHARE = 0.1  # of a loss in the average
_FEW = 20  # losses, of which nobody knows the scatter
_RISEN = 3.0  # times the scatter, by which the average has risen above its lowest value if the rate is too large
_OUTLIER = 10.0  # times the scatter, as which one that is further above the average counts
_TOLERATED = 0.1  # share of the fall of losses without it, by which they may rise during a trial


class Losses(NamedTuple):
    """What is kept of losses; of no meaning before any is told.

    Attributes:
        loss: their average over about ten steps.
        lowest_loss: its lowest value; that of now after a rise.
        scatter: average of their distance from it.
        stalled: steps since it was lowest.
        told: how many there were.
        rises: how often they have risen while the rate was above the given one.
        trial: steps since the given rate was set aside; 0 if it was not, `OVER` after its trial, `REFUSED` if a step
            with it changes too much for one.
        before, between: the average when it was set aside, and when its trial began.
    """

    loss: Number
    lowest_loss: Number
    scatter: Number
    stalled: Number
    told: Number
    rises: Number
    trial: Number
    before: Number
    between: Number


def heard(known: Losses, loss: Number, lifted: Number) -> tuple[Losses, Number]:
    """After one more loss, and whether they have risen now; one that is not finite counts as none.

    `lifted` says whether the rate is above the given one. Otherwise a rise is that of the program itself.
    """
    do, usable, usual = of(loss), of(loss).isfinite(loss), (known.told > _FEW) & (known.trial <= 0)
    loss = do.where(usual, do.minimum(loss, known.loss + _OUTLIER * known.scatter), loss)
    first = known.told == 0
    average = do.where(first, loss, known.loss + _SHARE * (loss - known.loss))
    far = do.where(usual, do.minimum(abs(loss - average), 2.0 * known.scatter), abs(loss - average))
    scatter = do.where(first, 0.0, known.scatter + _SHARE * (far - known.scatter))
    lower = first | (average < known.lowest_loss)
    risen = usable & usual & lifted & (average > known.lowest_loss + _RISEN * known.scatter)
    after = known._replace(
        loss=average,
        lowest_loss=do.where(lower | risen, average, known.lowest_loss),
        scatter=scatter,
        stalled=do.where(lower, 0.0, known.stalled + 1.0),
        told=known.told + 1.0,
        rises=do.where(risen, known.rises + 1.0, known.rises),
        trial=do.where(known.trial > 0, known.trial + 1.0, known.trial),
    )
    return Losses(*(do.where(usable, new, old) for new, old in zip(after, known, strict=True))), risen


def tried(known: Losses, change: Number) -> tuple[Losses, Number, Number]:
    """After a look at the trial; and whether it begins now, and whether it has failed now.

    `change` is what a step with the given rate changes of weights, relative to their size.
    """
    do = of(known.loss)
    due, last = known.trial == WINDOW + 1.0, known.trial == 2 * WINDOW + 1.0
    begins = due & (change <= TRUSTED_WHERE_IT_FALLS)
    risen = known.loss > known.between + _TOLERATED * abs(known.before - known.between)
    failed = (known.trial > WINDOW + 1.0) & (risen | (last & (known.loss >= known.between)))
    between = do.where(due, known.loss, known.between)
    trial = do.where(due & (change > TRUSTED_WHERE_IT_FALLS), REFUSED, known.trial)
    return known._replace(between=between, trial=do.where(failed | last, OVER, trial)), begins, failed


def set_aside(known: Losses, now: Number) -> Losses:
    """After the given rate was set aside, if it is `now`: where losses are told, its trial comes, once."""
    do = of(known.loss)
    begins = now & (known.told > 0) & (known.trial == 0)
    return known._replace(trial=do.where(begins, 1.0, known.trial), before=do.where(begins, known.loss, known.before))


def trusted(known: Losses, steps: int, now: Number) -> Number:
    """What the given rate may change of weights in a step, relative to their size, after so many steps.

    `now` says whether the loss of this step was told: what is no longer told counts no longer.
    """
    do = of(known.loss)
    falls = now & (known.told > 0) & (known.stalled < PATIENCE)
    early = (known.trial == 0) & (steps < PATIENCE)
    return do.where(falls, do.where(early, TRUSTED_WHERE_IT_FALLS, float("inf")), TRUSTED)


__all__ = ["OVER", "REFUSED", "WINDOW", "Losses", "heard", "set_aside", "tried", "trusted"]
