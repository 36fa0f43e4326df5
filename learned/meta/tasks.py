"""The distribution of training problems that rules are meta-trained on: functions to draw, to start from, to measure.

Everything is drawn for many workers at once, with a leading dimension, from one generator; `Problem.loss` is written
for one of them, and `torch.func.vmap` makes it many.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Params = dict[str, Tensor]
FLOOR = 1e-3  # of a loss under a root, whose derivative at 0 is infinite


@dataclass(frozen=True)
class Problem:
    """A family of functions to be minimised.

    Attributes:
        name: what it is called in cards.
        summary: one line on what it is.
        horizon: steps of one training run.
        workers: how many are trained at once; fewer for large ones.
        draw: of a generator and the number of workers n, what tells instances apart and their initial parameters, both
            by name, ``[n, …]``.
        batches: of a generator, n and a number of steps, what each step sees, ``[n, steps, …]``.
        loss: of parameters, instance and batch of one worker, 0-dimensional.
        root: minimise the square root of losses that span orders of magnitude.
        late: how much more late steps count than early ones: as the power `late` of the share of the run that is over.
        examples: how many there are, which batches number; 0 for functions without data.
    """

    name: str
    summary: str
    horizon: int
    workers: int
    draw: Callable[[torch.Generator, int], tuple[Params, Params]]
    batches: Callable[[torch.Generator, int, int], Tensor]
    loss: Callable[[Params, Mapping[str, Tensor], Tensor], Tensor]
    root: bool = False
    late: float = 2.0
    examples: int = 0

    def objective(self, loss: Tensor, step: Tensor | float) -> Tensor:
        """What training minimises at a step (1 is the first), from the loss before it; weights are 1 on average."""
        measured = (loss + FLOOR).sqrt() if self.root else loss
        return (1 + self.late) * (step / self.horizon) ** self.late * measured


def quadratics(n: int = 10, horizon: int = 100, workers: int = 192) -> Problem:
    """‖W θ − y‖² with W ``[n, n]`` and y ``[n]`` standard normal (Andrychowicz et al. 2016, §3.1).

    The start, which the paper does not give, is normal with standard deviation 0.01. Variant: training minimises the
    root of the loss, whose derivative does not grow with it: a run that diverges does not rule the mean.
    """

    def draw(generator: torch.Generator, count: int) -> tuple[Params, Params]:
        w, y, x = (torch.randn(count, *s, generator=generator) for s in ((n, n), (n,), (n,)))
        return {"w": w, "y": y}, {"x": 0.01 * x}

    def loss(params: Params, instance: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        return (instance["w"] @ params["x"] - instance["y"]).square().sum()

    def none(generator: torch.Generator, count: int, steps: int) -> Tensor:
        return torch.zeros(count, steps, 0)

    summary = f"‖W θ − y‖² in {n} dimensions, W and y standard normal, {horizon} steps"
    return Problem(f"quadratics-{n}", summary, horizon, workers, draw, none, loss, root=True)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "relu": torch.relu, "tanh": torch.tanh}


def classifier(
    name: str,
    inputs: Tensor,
    targets: Tensor,
    hidden: tuple[int, ...] = (20,),
    activation: str = "sigmoid",
    horizon: int = 100,
    workers: int = 4,
    batch_size: int = 128,
) -> Problem:
    """Cross-entropy [nats] of a fully connected network on minibatches (Andrychowicz et al. 2016, §3.2).

    The paper's has 20 hidden sigmoid units and batches of 128. The start, which the paper does not give, is torch's:
    weights and biases uniform within 1/√fan-in.

    Args:
        name: of the data.
        inputs: ``[examples, features]``, on the device that trains.
        targets: classes, int64 ``[examples]``.
        hidden: widths of the hidden layers.
        activation: a key of `ACTIVATIONS`.
        horizon, workers: see `Problem`.
        batch_size: examples per step, drawn with replacement.
    """
    act = ACTIVATIONS[activation]
    widths = [inputs.shape[1], *hidden, int(targets.max()) + 1]

    def draw(generator: torch.Generator, count: int) -> tuple[Params, Params]:
        params = {}
        for k, (i, o) in enumerate(itertools.pairwise(widths)):
            for part, shape in (("weight", (o, i)), ("bias", (o,))):
                params[f"{k}.{part}"] = (2 * torch.rand(count, *shape, generator=generator) - 1) / i**0.5
        return {}, params

    def loss(params: Params, instance: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        x = inputs[batch]
        for k in range(len(widths) - 1):
            x = (act(x) if k else x) @ params[f"{k}.weight"].T + params[f"{k}.bias"]
        return torch.nn.functional.cross_entropy(x, targets[batch])

    def batches(generator: torch.Generator, count: int, steps: int) -> Tensor:
        return torch.randint(len(inputs), (count, steps, batch_size), generator=generator)

    net = "-".join(map(str, widths))
    summary = f"MLP {net} with {activation} on {name}, batches of {batch_size}, {horizon} steps"
    return Problem(f"{name}-{net}-{activation}", summary, horizon, workers, draw, batches, loss, examples=len(inputs))
