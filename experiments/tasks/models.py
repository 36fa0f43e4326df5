"""Small models of the built-in tasks: pure functions of parameters and inputs, so that many train as one."""

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
            x = _layer(layer, x.relu() if number else x)
        return x.mT


class ConvNet(nn.Module):
    """3×3 convolutions, each followed by ReLU and each halving the side of the image, and a linear layer.

    Maps images ``[batch, channels · side²]``, in any shape that holds as many pixels, to ``[batch, classes]``;
    initialised as torch's layers are.

    Args:
        shape: channels and side of the images, in pixels.
        widths: channels after each convolution.
        classes: number of classes.
    """

    def __init__(self, shape: tuple[int, int], widths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, side = shape
        self.shape = (channels, side, side)
        self.layers = nn.ModuleList(
            nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in itertools.pairwise((channels, *widths))
        )
        for _ in widths:
            side = math.ceil(side / 2)
        self.head = nn.Linear(widths[-1] * side**2, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of each example."""
        x = images.reshape(-1, *self.shape)
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x.flatten(1))


class GRU(nn.Module):
    """A gated recurrent unit that reads classes ``[…, time]`` and answers at the last `answers` positions.

    Gates of Cho et al. 2014 (arXiv:1406.1078) in the variant of `torch.nn.GRU`, whose reset gate acts after the
    matrix product. It is written out, as the fused kernel cannot be stacked.

    Args:
        vocabulary: number of classes, of inputs and of answers.
        width: of the hidden state.
        answers: number of positions whose logits are returned, ``[…, answers, vocabulary]``.
    """

    def __init__(self, vocabulary: int, width: int, answers: int) -> None:
        super().__init__()
        self.width, self.answers = width, answers
        self.read = nn.Embedding(vocabulary, 3 * width)
        self.hidden = nn.Linear(width, 3 * width)
        self.head = nn.Linear(width, vocabulary)
        bound = 1 / math.sqrt(width)
        for p in self.parameters():
            nn.init.uniform_(p, -bound, bound)

    def forward(self, classes: Tensor) -> Tensor:
        """Logits at the last positions."""
        read = self.read(classes.long())
        h = torch.zeros_like(read[..., 0, : self.width])
        states = []
        for x in read.unbind(-2):
            reset_x, keep_x, new_x = x.chunk(3, -1)
            reset_h, keep_h, new_h = self.hidden(h).chunk(3, -1)
            keep = (keep_x + keep_h).sigmoid()
            new = (new_x + (reset_x + reset_h).sigmoid() * new_h).tanh()
            h = new + keep * (h - new)
            states.append(h)
        return self.head(torch.stack(states[-self.answers :], -2))


class ResidualMLP(nn.Module):
    """Narrow residual layers ``x + relu(W x + b) / √depth`` between two linear ones; features first, as `MLP`.

    Maps ``[batch, inputs]`` to ``[batch, outputs]``; initialised as `torch.nn.Linear` does.
    """

    def __init__(self, inputs: int, width: int, depth: int, outputs: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(inputs, width), nn.Linear(width, outputs)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of each example."""
        x = _layer(self.first, inputs.mT)
        for layer in self.layers:
            x = x + _layer(layer, x).relu() / math.sqrt(len(self.layers))
        return _layer(self.last, x).mT


class CurveNet(nn.Module):
    """Convolutions of width 5 along a curve, each followed by ReLU and each halving its length, and a linear layer.

    Maps ``[batch, points]`` to ``[batch, classes]``; initialised as torch's layers are. A convolution is one matrix
    product with all windows side by side, which can be stacked where torch's own kernel cannot.
    """

    WINDOW = 5

    def __init__(self, points: int, widths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(i, o, self.WINDOW) for i, o in itertools.pairwise((1, *widths)))
        for _ in widths:
            points = (points - self.WINDOW) // 2 + 1
        self.head = nn.Linear(widths[-1] * points, classes)

    def forward(self, curves: Tensor) -> Tensor:
        """Logits of each example."""
        x = curves.mT[None]  # [channels, points, batch]
        for layer in self.layers:
            assert isinstance(layer, nn.Conv1d)
            length = (x.shape[-2] - self.WINDOW) // 2 + 1
            windows = [x[..., k : k + 2 * length - 1 : 2, :] for k in range(self.WINDOW)]
            columns = torch.stack(windows, -3).flatten(-4, -3).flatten(-2)  # [channels · window, length · batch]
            x = layer.weight.flatten(1) @ columns + layer.bias[:, None]  # type: ignore[index]
            x = x.relu().unflatten(-1, (length, -1))
        return _layer(self.head, x.flatten(-3, -2)).mT


class WordBag(nn.Module):
    """The summed embeddings of a bag of words, a ReLU layer and a linear one.

    Maps ``[batch, words]`` to ``[batch, classes]``. Embeddings are normal with standard deviation 0.1.
    """

    def __init__(self, vocabulary: int, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embed.weight, std=0.1)
        self.hidden, self.head = nn.Linear(width, hidden), nn.Linear(hidden, classes)

    def forward(self, words: Tensor) -> Tensor:
        """Logits of each bag."""
        return self.head(self.hidden(self.embed(words.long()).sum(-2)).relu())


def _layer(layer: nn.Module, x: Tensor) -> Tensor:
    """A linear layer on features first, ``[features, batch]``."""
    assert isinstance(layer, nn.Linear)
    return layer.weight @ x + layer.bias[:, None]
