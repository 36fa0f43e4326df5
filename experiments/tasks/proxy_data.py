"""Data of the proxies: drawn from distributions, or from a text, far longer than a run, so that no example comes twice.

Every function returns splits whose training part holds at least three times as many examples as a run sees. Seeds of a
run choose which, and in what order; validation and test are 4,096 examples each (512 windows of text).
"""

from __future__ import annotations

import functools
import importlib.util
import math

import torch
from torch import Tensor

from optforge.experiments.errors import UserError
from optforge.experiments.tasks.mnist1d import TEMPLATES
from optforge.experiments.tasks.texts import Windows, encode
from optforge.search.training.task import Splits, TensorSplit

TRAIN, MEASURED = 65_536, 4_096

POINTS, LATENT, PIXELS, FEATURES, COORDINATES = 40, 6, 32, 32, 4
"""Sizes of one example: of a curve, of what a picture is made of and the picture, of a teacher's and a wave's input."""

CLASSES, WAVES, TOPICS = 10, 6, 8
"""Classes of curves, of waves and of bags."""

SYMBOLS, LENGTH = 12, 8
"""Symbols of the Markov chain, and the length of a sequence."""

WORDS, BAG = 1_024, 8
"""Size of the vocabulary of bags, and words in one."""

LETTERS, CONTEXT, PIECE = 32, 16, 2_048
"""Classes of the folded text, characters seen at once, and characters of a piece that is in one split."""

MODULES = ("_pydecimal", "turtle", "doctest", "optparse", "mailbox", "pickletools", "pdb", "imaplib", "smtplib", "cgi",
            "ftplib", "calendar", "tokenize", "csv", "shutil", "random", "fractions", "datetime", "_pydatetime",
            "plistlib", "zipfile", "threading", "socketserver", "uuid", "gettext", "locale")  # fmt: skip
_LEAST_CHARACTERS = 250_000


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _parts(inputs: Tensor, targets: Tensor, measured: int = MEASURED) -> Splits:
    sizes = [len(inputs) - 2 * measured, measured, measured]
    return Splits(*(TensorSplit(*part) for part in zip(inputs.split(sizes), targets.split(sizes), strict=True)))


@functools.cache
def curves() -> Splits:
    """Curves in the manner of MNIST-1D (Greydanus & Kobak 2024, arXiv:2011.14439), with fresh distortions each.

    One of ten templates is stretched to 8–14 of 40 points, moved anywhere, scaled by 0.8–1.2, sheared, and laid over
    smooth noise. Variant: drawn all at once, with continuous stretches and moves. Inputs are float32 ``[examples, 40]``
    with mean 0 and variance 1 over everything, targets int64 ``[examples]``.
    """
    g, count = _generator(1), TRAIN + 2 * MEASURED

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, generator=g)

    templates = torch.tensor(TEMPLATES, dtype=torch.float32)
    templates = (templates - templates.mean(1, keepdim=True)) / templates.std(1, keepdim=True)
    templates = templates - templates[:, :1]  # begin at 0, as what surrounds them
    labels = torch.randint(CLASSES, (count,), generator=g)
    width = uniform(8, 14)
    begin = torch.rand(count, 1, generator=g) * (POINTS - width)
    last = templates.shape[1] - 1
    at = (torch.arange(POINTS) - begin) / width * last
    inside = (at >= 0) & (at <= last)
    left = at.clamp(0, last - 1e-4).floor().long()
    own = templates[labels]
    x = torch.lerp(own.gather(1, left), own.gather(1, left + 1), at.clamp(0, last) - left) * inside
    x = x * uniform(0.8, 1.2)
    noise = torch.randn(count, 1, POINTS + 4, generator=g)
    smooth = torch.nn.functional.conv1d(noise, torch.tensor([[[0.06, 0.24, 0.4, 0.24, 0.06]]]))[:, 0]
    x = x + 0.5 * smooth + uniform(-0.75, 0.75) * torch.linspace(-0.5, 0.5, POINTS)
    return _parts((x - x.mean()) / x.std(), labels)


@functools.cache
def pictures() -> Splits:
    """Points of a curved surface of 6 dimensions in 32, each its own target: float32 ``[examples, 32]``.

    x = tanh(z A) B with normal z, A and B, and noise of standard deviation 0.3.
    """
    g = _generator(2)
    z = torch.randn(TRAIN + 2 * MEASURED, LATENT, generator=g)
    hidden = torch.tanh(z @ torch.randn(LATENT, 24, generator=g) * 0.7)
    x = hidden @ torch.randn(24, PIXELS, generator=g)
    x = x / x.std() + 0.3 * torch.randn(x.shape, generator=g)
    return _parts(x, x)


@functools.cache
def teacher() -> Splits:
    """Outputs of a random network on inputs whose variances fall as a power law: ``[examples, 32]`` to 4 numbers.

    The covariance of the inputs has eigenvalues proportional to 1/i in a random basis, as spectra of data often have
    (Zhang et al. 2019, arXiv:1907.04164, §3, use the same). The teacher has 64 tanh units; targets have variance 1.
    """
    g = _generator(3)
    scale = torch.arange(1, FEATURES + 1).rsqrt()
    basis = torch.linalg.qr(torch.randn(FEATURES, FEATURES, generator=g)).Q
    z = torch.randn(TRAIN + 2 * MEASURED, FEATURES, generator=g)
    hidden = torch.tanh(1.5 * z * scale @ torch.randn(FEATURES, 64, generator=g) / math.sqrt(2))
    y = hidden @ torch.randn(64, 4, generator=g)
    x = z * scale * math.sqrt(FEATURES / float(scale.square().sum()))
    return _parts(x @ basis, (y - y.mean(0)) / y.std(0))


@functools.cache
def waves() -> Splits:
    """Which of 6 random sums of waves is highest at a point: ``[examples, 4]`` in [-1, 1] to classes ``[examples]``."""
    g = _generator(4)
    x = 2 * torch.rand(TRAIN + 2 * MEASURED, COORDINATES, generator=g) - 1
    frequencies = 2.5 * torch.randn(COORDINATES, 4 * WAVES, generator=g)
    phases = 2 * math.pi * torch.rand(4 * WAVES, generator=g)
    heights = torch.sin(x @ frequencies + phases).unflatten(1, (WAVES, 4)).sum(2)
    return _parts(x, heights.argmax(1))


@functools.cache
def chain() -> Splits:
    """Sequences of a Markov chain of order two over 12 symbols, each symbol to be predicted from those before it.

    Inputs and targets are int64 ``[examples, 8]``. For each pair of symbols, the next one follows a distribution that
    is drawn once, a softmax of normal numbers times 2.5.
    """
    g = _generator(5)
    table = torch.softmax(2.5 * torch.randn(SYMBOLS, SYMBOLS, SYMBOLS, generator=g), -1)
    found = list(torch.randint(SYMBOLS, (2, TRAIN + 2 * MEASURED), generator=g))
    for _ in range(LENGTH - 1):
        found.append(torch.multinomial(table[found[-2], found[-1]], 1, generator=g)[:, 0])
    sequences = torch.stack(found, 1)
    return _parts(sequences[:, :-1], sequences[:, 1:], MEASURED // 4)  # 8,192 predictions


@functools.cache
def bags() -> Splits:
    """Bags of 8 words from a vocabulary of 1,024 whose frequencies fall as 1/rank: int64 ``[examples, 8]``.

    Each word speaks for topics by a hidden normal vector; the target ``[examples]`` is drawn from the softmax of their
    sum, so that what rare words mean can only be learned from the few examples that hold them.
    """
    g = _generator(6)
    frequency = 1 / (torch.arange(WORDS) + 5.0)
    words = torch.multinomial(frequency, (TRAIN + 2 * MEASURED) * BAG, replacement=True, generator=g).view(-1, BAG)
    meaning = torch.randn(WORDS, TOPICS, generator=g)
    topics = torch.multinomial(torch.softmax(4 * meaning[words].sum(1), -1), 1, generator=g)[:, 0]
    return _parts(words, topics)


@functools.cache
def letters() -> Splits:
    """Source of Python's standard library in 32 classes, to be predicted character by character.

    Capitals count as small letters; digits, brackets, quotes and all other characters are one class each. Each module
    is cut into pieces of 2,048 characters; of ten, eight are trained on and one each validates and tests. Modules are
    others than those of the task ``charlm``.

    Raises:
        UserError: if this Python was installed without its source.
    """
    parts: tuple[list[Tensor], ...] = ([], [], [])
    for text in filter(None, map(_source, MODULES)):
        for number, piece in enumerate(fold(text).split(PIECE)):
            parts[max(0, number % 10 - 7)].append(piece)
    train, valid, test = (torch.cat(part) if part else torch.empty(0) for part in parts)
    if len(train) < _LEAST_CHARACTERS:
        raise UserError("task proxy-text needs the source of Python's standard library; install the full library")
    everywhere = torch.arange(len(train) - CONTEXT)
    held_out = (torch.linspace(0, len(x) - CONTEXT - 1, 512).long() for x in (valid, test))
    measured = (Windows(x, at, CONTEXT, LETTERS) for x, at in zip((valid, test), held_out, strict=True))
    return Splits(Windows(train, everywhere, CONTEXT, LETTERS), *measured)


def fold(text: str) -> Tensor:
    """Class of each character, int64 ``[len(text)]``, see `letters`."""
    return _FOLDED[encode(text)]


def _source(module: str) -> str | None:
    spec = importlib.util.find_spec(module)
    loader = spec.loader if spec else None
    return loader.get_source(module) if hasattr(loader, "get_source") else None  # type: ignore[union-attr]


def _folded() -> Tensor:
    """For each class of `texts.encode` its class here."""
    groups = {" ": 1, "0123456789": 28, "()[]{}": 29, "\"'`": 30}
    known = {c: number for group, number in groups.items() for c in group}
    known |= {c: 2 + i for i, small in enumerate("abcdefghijklmnopqrstuvwxyz") for c in (small, small.upper())}
    return torch.tensor([0, *(known.get(chr(31 + code), 31) for code in range(1, 96)), 31])


_FOLDED = _folded()
