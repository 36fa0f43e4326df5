"""Hand-written optimizers from the papers, each paired with its program."""

from baselines.adafactor import AdaFactor
from baselines.adamw import AdamW
from baselines.lion import Lion
from baselines.table import BASELINES, NAMED, Baseline

__all__ = ["BASELINES", "NAMED", "AdaFactor", "AdamW", "Baseline", "Lion"]
