"""One row per baseline: its name, both of its forms, where it comes from, and where its learning rate lies."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from torch.optim.optimizer import Optimizer

from baselines import (
    adafactor,
    adagrad,
    adam,
    adamw,
    adan,
    lamb,
    lars,
    lion,
    muon,
    nadam,
    prodigy,
    rmsprop,
    schedule_free,
    sgd,
    shampoo,
    soap,
)
from baselines.cautious import cautious
from baselines.raw import lion_raw
from primitives import Program


@dataclass(frozen=True)
class Oracle:
    """Somebody else's implementation of the same rule, which tests compare with.

    Attributes:
        path: module and class, as in ``torch.optim.AdamW``.
        options: what it must be told to mean the same as our defaults, beside the hyperparameters.
        renamed: hyperparameters that it calls by other names, ours to theirs; None for one that it does not have.
        note: where the two differ, and hence are not compared.
        dims: for parameters of how many dimensions they are the same; none if tests compare them in some other way.
    """

    path: str
    options: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str | None] = field(default_factory=dict)
    note: str = ""
    dims: tuple[int, ...] = (0, 1, 2, 3)


@dataclass(frozen=True)
class Baseline:
    """A hand-written optimizer and its program; each is the oracle of the other.

    Attributes:
        name: as in commands, lower case with dashes.
        optimizer: the hand-written form.
        build: makes the program.
        paper: authors, year and where to find it.
        lr_range: where the best learning rate usually lies for networks trained from scratch.
        oracles: independent implementations.
        full_batch: whether the rule is meant for gradients of the whole training set.
    """

    name: str
    optimizer: Callable[..., Optimizer]
    build: Callable[[], Program]
    paper: str
    lr_range: tuple[float, float]
    oracles: tuple[Oracle, ...] = ()
    full_batch: bool = False

    @cached_property
    def program(self) -> Program:
        """The rule in the primitive language, with the paper's default hyperparameters."""
        return self.build()

    def by_hand(self, **hypers: float) -> dict[str, Any]:
        """The program's hyperparameters, with `hypers` in place of defaults, as the hand-written form names them.

        Numbered ones are gathered: ``beta1`` and ``beta2`` become ``betas=(…, …)``, ``eps1`` and ``eps2`` ``eps``.
        """
        gathered: dict[str, list[float]] = {}
        options: dict[str, Any] = {}
        fallback = self.program.fallback.defaults() if self.program.fallback else {}
        for name, value in (fallback | self.program.defaults() | hypers).items():
            if numbered := re.fullmatch(r"(beta|eps)[0-9]", name):
                gathered.setdefault({"beta": "betas", "eps": "eps"}[numbered[1]], []).append(value)
            else:
                options[name] = value
        return options | {name: tuple(values) for name, values in gathered.items()}


BASELINES: dict[str, Baseline] = {
    row.name: row
    for row in (
        Baseline(
            "gradient-descent",
            sgd.GradientDescent,
            sgd.gradient_descent_program,
            "Cauchy 1847; Curry 1944, doi:10.1090/qam/10667",
            (3e-1, 3.0),
            (Oracle("torch.optim.SGD"),),
            full_batch=True,
        ),
        Baseline(
            "sgd",
            sgd.SGD,
            sgd.sgd_program,
            "Robbins & Monro 1951, doi:10.1214/aoms/1177729586",
            (1e-1, 1.0),
            (Oracle("torch.optim.SGD"),),
        ),
        Baseline(
            "momentum",
            sgd.Momentum,
            sgd.momentum_program,
            "Polyak 1964, doi:10.1016/0041-5553(64)90137-5",
            (1e-2, 1e-1),
            (Oracle("torch.optim.SGD"),),
        ),
        Baseline(
            "nesterov",
            sgd.Nesterov,
            sgd.nesterov_program,
            "Nesterov 1983; Sutskever et al. 2013, https://proceedings.mlr.press/v28/sutskever13.html",
            (1e-2, 1e-1),
            (Oracle("torch.optim.SGD", {"nesterov": True}),),
        ),
        Baseline(
            "adagrad",
            adagrad.AdaGrad,
            adagrad.program,
            "Duchi, Hazan & Singer 2011, https://jmlr.org/papers/v12/duchi11a.html",
            (1e-2, 1e-1),
            (Oracle("torch.optim.Adagrad"),),
        ),
        Baseline(
            "rmsprop",
            rmsprop.RMSProp,
            rmsprop.program,
            "Tieleman & Hinton 2012, https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf",
            (3e-4, 1e-2),
            (Oracle("torch.optim.RMSprop", note="its centered variance may round to below 0, and becomes NaN"),),
        ),
        Baseline(
            "adam",
            adam.Adam,
            adam.program,
            "Kingma & Ba 2015, arXiv:1412.6980",
            (3e-4, 1e-2),
            (Oracle("torch.optim.Adam"),),
        ),
        Baseline(
            "adam-l2",
            adam.AdamL2,
            adam.l2_program,
            "Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2 with L2 regularisation",
            (3e-4, 1e-2),
            (Oracle("torch.optim.Adam"),),
        ),
        Baseline(
            "adamw",
            adamw.AdamW,
            adamw.program,
            "Loshchilov & Hutter 2019, arXiv:1711.05101",
            (3e-4, 1e-2),
            (Oracle("torch.optim.AdamW"),),
        ),
        Baseline(
            "nadam",
            nadam.NAdam,
            nadam.program,
            "Dozat 2016, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ",
            (3e-4, 1e-2),
            (Oracle("torch.optim.NAdam"),),
        ),
        Baseline(
            "adafactor",
            adafactor.AdaFactor,
            adafactor.program,
            "Shazeer & Stern 2018, arXiv:1804.04235",
            (1e-2, 1e-1),
            (
                Oracle("torch.optim.Adafactor", note="has relative_step always, and adds epsilon elsewhere", dims=()),
                Oracle("pytorch_optimizer.AdaFactor", note="ignores lr unless told relative_step=False", dims=()),
            ),
        ),
        Baseline(
            "adan",
            adan.Adan,
            adan.program,
            "Xie et al. 2022, arXiv:2208.06677",
            (3e-3, 3e-2),
            (Oracle("pytorch_optimizer.Adan"),),
        ),
        Baseline(
            "lion",
            lion.Lion,
            lion.program,
            "Chen et al. 2023, arXiv:2302.06675",
            (3e-5, 1e-3),
            (Oracle("lion_pytorch.Lion"),),
        ),
        Baseline(
            "lars",
            lars.LARS,
            lars.program,
            "You, Gitman & Ginsburg 2017, arXiv:1708.03888",
            (1.0, 1e1),
            (Oracle("pytorch_optimizer.LARS", note="vectors are exempt there", dims=(2, 3)),),
        ),
        Baseline(
            "lamb",
            lamb.LAMB,
            lamb.program,
            "You et al. 2020, arXiv:1904.00962",
            (3e-3, 3e-2),
            (Oracle("pytorch_optimizer.Lamb", note="corrects one bias of two: its first step is 10 lr", dims=()),),
        ),
        Baseline(
            "muon",
            muon.Muon,
            muon.program,
            "Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982",
            (3e-3, 3e-2),
            (Oracle("torch.optim.Muon", note="orthogonalises in bfloat16; has no part for vectors", dims=()),),
        ),
        Baseline(
            "shampoo",
            shampoo.Shampoo,
            shampoo.program,
            "Gupta, Koren & Singer 2018, arXiv:1802.09568; Anil et al. 2020, arXiv:2002.09018; Shi et al. 2023, "
            "arXiv:2309.06497",
            (3e-4, 1e-2),
        ),
        Baseline(
            "soap",
            soap.SOAP,
            soap.program,
            "Vyas et al. 2024, arXiv:2409.11321",
            (1e-3, 1e-2),
            (Oracle("pytorch_optimizer.SOAP", note="makes no update in its first step; sorts the bases", dims=()),),
        ),
        Baseline(
            "schedule-free-adamw",
            schedule_free.ScheduleFreeAdamW,
            schedule_free.program,
            "Defazio et al. 2024, arXiv:2405.15682",
            (1e-2, 1e-1),
            (Oracle("schedulefree.AdamWScheduleFree"),),
        ),
        Baseline(
            "prodigy",
            partial(prodigy.Prodigy, per_tensor=True),  # a program sees one parameter
            prodigy.program,
            "Mishchenko & Defazio 2023, arXiv:2306.06101",
            (3e-2, 1.0),
            (Oracle("prodigyopt.Prodigy", note="one d for all parameters; scales epsilon by the next d", dims=()),),
        ),
    )
}

NAMED: dict[str, Callable[[], Program]] = {
    "lion-raw": lion_raw,
    "lion-raw-ablated": lambda: lion_raw(ablated=True),
    "cautious-adamw": lambda: cautious(BASELINES["adamw"].program),
    "cautious-lion": lambda: cautious(BASELINES["lion"].program),
}
"""Programs that go by a name but have no hand-written twin."""
