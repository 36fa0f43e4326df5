"""Transformers in plain PyTorch, for text and for images, in four sizes.

They are pure functions of parameters and inputs, so that many of them train as one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Size(NamedTuple):
    """A preset: width of the stream, heads, blocks, and for text the context and the most tokens of a vocabulary."""

    width: int
    heads: int
    depth: int
    context: int
    vocabulary: int


SIZES: Mapping[str, Size] = MappingProxyType({
    "nano": Size(64, 4, 2, 64, 1024),
    "micro": Size(128, 4, 4, 128, 4096),
    "mini": Size(384, 6, 6, 256, 8192),
    "small": Size(768, 12, 12, 1024, 50257),  # GPT-2's smallest, 124 M parameters; ViT-B in images
})  # fmt: skip
"""Presets, as in ``--task tinystories:micro``."""


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, §3.2), ``[…, time, width]`` to the same.

    Written with plain matrix products and a softmax, which `torch.func.vmap` turns into larger products of
    the same form; a fused kernel would be looped over.

    Args:
        width: of the stream.
        heads: width must be a multiple of it.
        context: longest input, if each position sees only those before it; None if each sees all.
    """

    mask: Tensor | None

    def __init__(self, width: int, heads: int, context: int | None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        future = None if context is None else torch.full((context, context), -math.inf).triu(1)
        self.register_buffer("mask", future, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix each position with those that it sees."""
        time, width = x.shape[-2:]
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for part in self.qkv(x).chunk(3, dim=-1))
        scores = q @ k.mT / math.sqrt(width // self.heads)
        if self.mask is not None:
            scores = scores + self.mask[:time, :time]
        return self.out((scores.softmax(-1) @ v).transpose(-2, -3).flatten(-2))


class Block(nn.Module):
    """Pre-normalised transformer block (Xiong et al. 2020, figure 1b), its GELU layer four times as wide."""

    def __init__(self, width: int, heads: int, context: int | None) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, context)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Attention, then the layer, each added to what went in."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A decoder-only transformer with learned positions: classes ``[…, time]`` to logits ``[…, time,
    vocabulary]``.

    Initialised as GPT-2 (Radford et al. 2019): weights normal with standard deviation 0.02, divided by
    √(2 · depth) where a block adds to the stream, biases zero. Variant: no dropout.

    Args:
        vocabulary: number of classes.
        context: longest input, in positions.
        width: of the stream; must be a multiple of `heads`.
        heads: of each attention.
        depth: number of blocks.
        tied: whether the output layer has the weights of the embedding, as in GPT-2, or its own.
    """

    def __init__(
        self, vocabulary: int, context: int, width: int = 64, heads: int = 4, depth: int = 2, tied: bool = False
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.empty(context, width))
        self.blocks = nn.Sequential(*(Block(width, heads, context) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = None if tied else nn.Linear(width, vocabulary, bias=False)
        _initialise(self, depth)

    def forward(self, classes: Tensor) -> Tensor:
        """Logits of the next class at every position."""
        x = self.embed(classes.long()) + self.position[: classes.shape[-1]]
        x = self.norm(self.blocks(x))
        return x @ self.embed.weight.mT if self.head is None else self.head(x)


class ViT(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929): images ``[…, channels, side, side]`` to logits.

    Variant: the mean over all patches is classified (Beyer et al. 2022, arXiv:2205.01580, §3) in place of a class
    token, positions are learned, weights are initialised as in `GPT`, and there is no dropout.

    Args:
        shape: channels and side of the images, in pixels.
        patch: side of a patch in pixels, a divisor of the images'.
        classes: number of classes.
        width, heads, depth: as in `GPT`.
    """

    def __init__(
        self, shape: tuple[int, int], patch: int, classes: int, width: int = 64, heads: int = 4, depth: int = 2
    ) -> None:
        super().__init__()
        channels, side = shape
        if side % patch:
            raise ValueError(f"images of {side} pixels cannot be cut into patches of {patch}")
        self.patch = patch
        self.embed = nn.Linear(channels * patch**2, width)
        self.position = nn.Parameter(torch.empty((side // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads, None) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        _initialise(self, depth)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[…, classes]``."""
        rows = images.unflatten(-1, (-1, self.patch)).unflatten(-3, (-1, self.patch))  # […, channels, y, dy, x, dx]
        patches = rows.transpose(-2, -3).movedim(-5, -3).flatten(-3).flatten(-3, -2)  # […, y · x, channels · dy · dx]
        return self.head(self.norm(self.blocks(self.embed(patches) + self.position)).mean(-2))


def _initialise(model: nn.Module, depth: int) -> None:
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(p)
        elif p.ndim == 2:
            added = name.endswith(("out.weight", "mlp.2.weight"))
            nn.init.normal_(p, std=0.02 / math.sqrt(2 * depth) if added else 0.02)
