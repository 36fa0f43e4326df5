"""Hand-written optimizers from the papers, each paired with its program."""

from baselines.adafactor import AdaFactor
from baselines.adagrad import AdaGrad
from baselines.adam import Adam, AdamL2
from baselines.adamw import AdamW
from baselines.adan import Adan
from baselines.base import HandWritten
from baselines.cautious import cautious
from baselines.lamb import LAMB
from baselines.lars import LARS
from baselines.lion import Lion
from baselines.muon import Muon
from baselines.nadam import NAdam
from baselines.prodigy import Prodigy
from baselines.rmsprop import RMSProp
from baselines.schedule_free import ScheduleFreeAdamW, averaged, is_schedule_free
from baselines.sgd import SGD, GradientDescent, Momentum, Nesterov
from baselines.shampoo import Shampoo
from baselines.soap import SOAP
from baselines.table import BASELINES, NAMED, Baseline, Oracle

__all__ = [
    "BASELINES",
    "LAMB",
    "LARS",
    "NAMED",
    "SGD",
    "SOAP",
    "AdaFactor",
    "AdaGrad",
    "Adam",
    "AdamL2",
    "AdamW",
    "Adan",
    "Baseline",
    "GradientDescent",
    "HandWritten",
    "Lion",
    "Momentum",
    "Muon",
    "NAdam",
    "Nesterov",
    "Oracle",
    "Prodigy",
    "RMSProp",
    "ScheduleFreeAdamW",
    "Shampoo",
    "averaged",
    "cautious",
    "is_schedule_free",
]
