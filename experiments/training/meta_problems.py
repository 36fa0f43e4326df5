"""What `optforge meta-train` trains rules on, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from optforge.learned.meta.tasks import Problem, classifier, quadratics


def digit_images(side: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Training images as pixels in [0, 1] ``[examples, side²]``, and classes: 8 is scikit-learn's, 28 and 14 MNIST's.

    Raises:
        UserError: where the files of MNIST are not.
    """
    if side == 8:
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        return torch.tensor(x / 16, dtype=torch.float32).to(device), torch.tensor(y).long().to(device)
    from optforge.experiments.tasks import get_task

    train: Any = get_task("mnist").data().train
    pixels = train.pixels.float() / 255
    return avg_pool2d(pixels, 28 // side).flatten(1).to(device), train.classes.to(device)


PROBLEMS: dict[str, Callable[[str], Problem]] = {
    "quadratics": lambda device: quadratics(),
    "digits": lambda device: classifier("digits", *digit_images(8, device), workers=4),
    "mnist-small": lambda device: classifier("mnist-small", *digit_images(14, device), workers=2),
    "mnist": lambda device: classifier("mnist", *digit_images(28, device), workers=1),
}
"""What rules can be meta-trained on, by name, for a device; `mnist-small` has its pixels averaged two by two."""
