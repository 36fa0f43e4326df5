"""Text as data: the text that every Python carries, and files, cut into windows of characters or tokens."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from optforge.experiments.errors import UserError
from optforge.search.training.task import Splits

CONTEXT = 48
"""Characters that the language model sees at once."""

VOCABULARY = 97
"""Classes of the character task: line feed, the 95 printable ASCII characters, and one for all others."""

MAX_CHARACTERS = 1_000_000
_MODULES = (
    "argparse",
    "ast",
    "difflib",
    "inspect",
    "logging",
    "statistics",
    "subprocess",
    "tarfile",
    "typing",
)
_WINDOWS = 256


@dataclass(frozen=True)
class Windows:
    """Stretches of a text, each an example: `context` characters, and for each of them the one that follows.

    Attributes:
        text: classes of the characters or tokens, integers ``[characters]``.
        starts: where each example begins, int64 ``[examples]``.
        context: length of an example in characters.
        classes: how many there are.
    """

    text: Tensor
    starts: Tensor
    context: int
    classes: int = VOCABULARY

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the examples `indices`, each ``[*indices.shape, context]``."""
        at = self.starts[indices][..., None] + torch.arange(self.context + 1, device=indices.device)
        window = self.text[at]
        return window[..., :-1], window[..., 1:]


@functools.cache
def charlm() -> Splits:
    """Text that every Python carries, to be predicted character by character.

    It is the documentation that `help()` shows (`pydoc_data.topics`) and the source of some large standard
    modules; paragraphs that occur again are left out. Each source is cut on its own, first 80 % for training,
    then 10 % for validation and 10 % for the test, so that all three parts hold prose and code alike.
    Training examples start at every character; validation and test are 256 evenly spaced windows each. As the
    text is that of the running Python, losses of different Python versions are close but not the same.

    Raises:
        UserError: if this Python was installed without these texts.
    """
    parts: tuple[list[Tensor], ...] = ([], [], [])
    room, seen = MAX_CHARACTERS, set[str]()
    for source in _texts():
        paragraphs = [p for p in source.split("\n\n") if p not in seen]
        seen.update(paragraphs)
        codes = encode("\n\n".join(paragraphs) + "\n\n")[:room]
        room -= len(codes)
        cuts = (int(0.8 * len(codes)), int(0.9 * len(codes)))
        for part, piece in zip(parts, codes.tensor_split(cuts), strict=True):
            part.append(piece)
    train, valid, test = (torch.cat(part) for part in parts)
    everywhere = torch.arange(len(train) - CONTEXT)
    return Splits(Windows(train, everywhere, CONTEXT), evenly(valid), evenly(test))


def encode(text: str) -> Tensor:
    """Class of each character, int64 ``[len(text)]``: 0 line feed, 1–95 printable ASCII, 96 anything else."""
    points = np.frombuffer(text.encode("utf-32-le", "replace"), dtype="<u4").astype(np.int64)
    classes = np.where((points >= 32) & (points < 127), points - 31, VOCABULARY - 1)
    return torch.from_numpy(np.where(points == 10, 0, classes))


def evenly(text: Tensor, context: int = CONTEXT, classes: int = VOCABULARY) -> Windows:
    """256 evenly spaced windows of a text."""
    return Windows(text, torch.linspace(0, len(text) - context - 1, _WINDOWS).long(), context, classes)


def _texts() -> Iterator[str]:
    """The sources of the character task, in a fixed order."""
    missing = "task charlm needs the text of {!r}, which this Python lacks; install the full standard library"
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        raise UserError(missing.format("pydoc_data.topics")) from None
    yield "\n\n".join(topics[name] for name in sorted(topics))
    for name in _MODULES:
        spec = importlib.util.find_spec(name)
        loader = spec.loader if spec else None
        source = loader.get_source(name) if hasattr(loader, "get_source") else None  # type: ignore[union-attr]
        if not source:
            raise UserError(missing.format(name))
        yield source
