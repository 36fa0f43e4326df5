"""Text files as data: byte by byte, or as byte pairs of a tokenizer trained on them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from optforge.experiments.errors import UserError
from optforge.experiments.tasks.places import END
from optforge.experiments.tasks.texts import Windows, evenly
from optforge.search.training.task import Splits

TRAIN, VALID = 0.9, 0.95
"""Where the training and the validation text end; the test text is the rest."""

MAX_STARTS = 10_000_000
"""Most training examples; in longer texts they begin at every second, third, … position."""

_LEARNED_FROM = 20_000_000  # characters that a tokenizer is trained on: more of them hardly change its merges
_AT_ONCE = 1000  # stories


@functools.cache
def text_bytes(path: Path, context: int) -> Splits:
    """A file, to be predicted byte by byte; classes are the different bytes in it, in order.

    The first 90 % are for training, where an example starts at every byte; of the next 5 % for validation and the
    last 5 % for the test, 256 evenly spaced windows each.

    Raises:
        UserError: if the file cannot be read, or is too short.
    """
    content = np.frombuffer(_read(path), np.uint8)
    present = np.bincount(content, minlength=256) > 0
    classes = (np.cumsum(present) - 1).astype(np.uint8)[content]
    cuts = [int(TRAIN * len(classes)), int(VALID * len(classes))]
    return _windows(path, torch.from_numpy(classes).tensor_split(cuts), context, int(present.sum()))


@functools.cache
def text_tokens(path: Path, context: int, vocabulary: int) -> Splits:
    """A file, to be predicted token by token; stories or articles are separated by ``<|endoftext|>``.

    Tokens are byte pairs (Sennrich et al. 2016, arXiv:1508.07909; on bytes as in GPT-2), so that every text has
    tokens; they are learned from the training part. Split as `text_bytes`, between stories where one ends soon enough.

    Args:
        path: UTF-8 text; bytes that are not are replaced.
        context: length of an example in tokens.
        vocabulary: most tokens, at least 257: the bytes and the separator. Short texts give fewer.

    Raises:
        UserError: if the file cannot be read or is too short, or the package `tokenizers` is not installed.
    """
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError:
        raise UserError("byte pairs need the package tokenizers; pip install 'optforge[text]'") from None
    text = _read(path).decode("utf-8", "replace")
    cuts = [0, _cut(text, TRAIN), _cut(text, VALID), len(text)]
    parts = [text[start:end] for start, end in itertools.pairwise(cuts)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_stories(parts[0][:_LEARNED_FROM]), trainer)
    end = tokenizer.token_to_id(END)
    encoded = [torch.from_numpy(_encoded(tokenizer, part, end)) for part in parts]
    return _windows(path, encoded, context, tokenizer.get_vocab_size())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read as a text: {error.strerror}") from None


def _cut(text: str, share: float) -> int:
    """Where to cut after `share` of the text: where the next story begins, if that is within a hundredth of it."""
    at = int(share * len(text))
    end = text.find(END, at, at + len(text) // 100)
    return at if end < 0 else end + len(END)


def _stories(text: str) -> Iterator[str]:
    return (story for piece in text.split(END) if (story := piece.strip()))


def _encoded(tokenizer: object, text: str, end: int | None) -> np.ndarray:
    """Tokens of the stories, each with `end` after it, int32."""
    stories, found = list(_stories(text)), [np.zeros(0, np.int32)]
    for first in range(0, len(stories), _AT_ONCE):
        batch = tokenizer.encode_batch_fast(stories[first : first + _AT_ONCE])  # type: ignore[attr-defined]
        found += [np.array([*encoding.ids, end], np.int32) for encoding in batch]
    return np.concatenate(found)


def _windows(path: Path, parts: list[Tensor] | tuple[Tensor, ...], context: int, classes: int) -> Splits:
    train, valid, test = parts
    shortest = min(len(part) for part in parts)
    if shortest < context + 1:
        raise UserError(
            f"{path} is too short: a twentieth of it has {shortest} tokens, and an example needs {context + 1}"
        )
    starts = torch.arange(0, len(train) - context, -(-len(train) // MAX_STARTS))
    rest = (evenly(part, context, classes) for part in (valid, test))
    return Splits(Windows(train, starts, context, classes), *rest)
