"""Hand-written optimizers from the papers, each paired with its program."""

from baselines.adafactor import AdaFactor
from baselines.adagrad import AdaGrad
from baselines.adam import Adam, AdamL2
from baselines.adamw import AdamW
from baselines.base import HandWritten
from baselines.lion import Lion
from baselines.nadam import NAdam
from baselines.rmsprop import RMSProp
from baselines.sgd import SGD, GradientDescent, Momentum, Nesterov
from baselines.table import BASELINES, NAMED, Baseline, Oracle

__all__ = [
    "BASELINES",
    "NAMED",
    "SGD",
    "AdaFactor",
    "AdaGrad",
    "Adam",
    "AdamL2",
    "AdamW",
    "Baseline",
    "GradientDescent",
    "HandWritten",
    "Lion",
    "Momentum",
    "NAdam",
    "Nesterov",
    "Oracle",
    "RMSProp",
]
