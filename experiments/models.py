"""Models of the built-in tasks: pure functions of parameters and inputs, so that many train as one."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """A ReLU network with linear layers between the given widths, initialised as `torch.nn.Linear` does.

    Maps ``[batch, widths[0]]`` to ``[batch, widths[-1]]``. Activations are held features first: a stack of networks
    that see the same batch then multiplies it by all their first layers in one large matrix product.
    """

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(widths))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of each example."""
        x = inputs.mT
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            x = layer.weight @ (x.relu() if number else x) + layer.bias[:, None]
        return x.mT


class Attention(nn.Module):
    """Causal multi-head self-attention (Vaswani et al. 2017, §3.2), ``[…, time, width]`` to the same.

    Written with plain matrix products and a softmax, which `torch.func.vmap` turns into larger products of
    the same form; a fused kernel would be looped over.
    """

    mask: Tensor

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        future = torch.full((context, context), -math.inf).triu(1)
        self.register_buffer("mask", future, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix each position with those before it."""
        time, width = x.shape[-2:]
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for part in self.qkv(x).chunk(3, dim=-1))
        scores = q @ k.mT / math.sqrt(width // self.heads) + self.mask[:time, :time]
        return self.out((scores.softmax(-1) @ v).transpose(-2, -3).flatten(-2))


class Block(nn.Module):
    """Pre-normalised transformer block (Xiong et al. 2020, figure 1b), its GELU layer four times as wide."""

    def __init__(self, width: int, heads: int, context: int) -> None:
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
    √(2 · depth) where a block adds to the stream, biases zero. Variant: no dropout, and the output layer has
    weights of its own.

    Args:
        vocabulary: number of classes.
        context: longest input, in positions.
        width: of the stream; must be a multiple of `heads`.
        heads: of each attention.
        depth: number of blocks.
    """

    def __init__(self, vocabulary: int, context: int, width: int = 64, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.empty(context, width))
        self.blocks = nn.Sequential(*(Block(width, heads, context) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.ndim == 2:
                added = name.endswith(("out.weight", "mlp.2.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * depth) if added else 0.02)

    def forward(self, classes: Tensor) -> Tensor:
        """Logits of the next class at every position."""
        x = self.embed(classes.long()) + self.position[: classes.shape[-1]]
        return self.head(self.norm(self.blocks(x)))
