"""Hand-written optimizers from the papers, each paired with its program."""

from baselines.adafactor import AdaFactor
from baselines.adamw import AdamW
from baselines.base import HandWritten
from baselines.lion import Lion
from baselines.table import BASELINES, NAMED, Baseline, Oracle

__all__ = ["BASELINES", "NAMED", "AdaFactor", "AdamW", "Baseline", "HandWritten", "Lion", "Oracle"]
