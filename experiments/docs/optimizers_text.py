"""The words of docs/optimizers.md that no table and no docstring has; see `experiments.docs.optimizers`."""

INTRODUCTION = """
# Optimizers

This page is written by `make docs` from the `ROWS` of the modules in `baselines`, in the order of publication; the test
suite checks that it is current.

Every optimizer here is written twice: by hand as a plain `torch.optim.Optimizer`, and as a program in the
[language of update rules](language.md). The test suite holds each to the other, and to somebody else's implementation
where there is one.

```python
import torch
from optforge.baselines import BASELINES, AdamW
from optforge.primitives import ProgramOptimizer

model = torch.nn.Linear(3, 2)
optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)

# the same as a program
program = BASELINES["adamw"].program
optimizer = ProgramOptimizer(model.parameters(), program, lr=1e-3, weight_decay=0.1)
```

*State* is counted in numbers for each parameter: `2×` is twice the model's size. *Bytes* are measured after a step,
for each element of a 256 × 256 matrix in float32; `optforge optimizers --memory` measures convolutions and vectors,
too. Learning rates are where the best one usually lies for networks trained from scratch; let a schedule lower them.

<table>

## To look at

`optforge trajectories` draws the paths of any optimizers on two-dimensional surfaces. These are the pictures of

```console
$ optforge trajectories gradient-descent momentum adam --surface zigzag --lr momentum=0.03
$ optforge trajectories --surface rosenbrock --surface saddle
```

On `w₁² + 3 w₂²` with a learning rate of 0.3, gradient descent multiplies w₂ by −0.8 in each step and jumps from one
side of the valley to the other; momentum with a tenth of the rate rolls in a curve, and Adam goes straight, too far,
and back.

![Three paths on an elongated bowl: gradient descent zigzags across the valley](images/zigzag.png)

Where a surface prescribes no learning rate, each optimizer has the best one of a ladder. In Rosenbrock's valley most of
the steps are spent along its flat floor.

![Five paths in Rosenbrock's curved valley](images/rosenbrock.png)

The start is almost on the ridge that leads to the saddle. Rules that normalise every element of the gradient leave it
at once; gradient descent and momentum follow it until the tiny slope to the side has grown.

![Five paths that leave a saddle, animated](images/saddle.gif)

## Notation

θ is the parameter (`p`), g its gradient, η the learning rate (`lr`), t the step, counted from 1 for each parameter, λ
the weight decay, ε `eps`, μ the momentum. `=` names a value, `←` overwrites state or the parameter. Formulas and
pseudo-code are made from the programs; both say what a step does in order.

## What is not here, and why

A program sees one parameter, its gradient, and state of its shape, once a step. Some rules need more than that:

- **Sophia** (Liu et al. 2023, arXiv:2305.14342) estimates the diagonal of the Hessian from a second gradient, of labels
  that the model draws or along a random vector. Only the training loop can compute it.
- **SAM** (Foret et al. 2020, arXiv:2010.01412) takes the gradient at a second point, and **L-BFGS** searches along a
  line. Both evaluate the loss more than once a step.
- **K-FAC** (Martens & Grosse 2015, arXiv:1503.05671) reads the inputs of layers and the gradients of their outputs.
- **Adam-mini** has one second moment for each head of queries and keys. The shape of a tensor does not show its heads,
  so that [adam-mini](#adam-mini) has one for each row.
- **Prodigy** estimates one distance for all parameters. What programs share is the norm of all gradients
  (`global_norm`), so that the program of [prodigy](#prodigy) has one distance for each tensor.

Muon and its relatives are for hidden layers. Embeddings and heads have the same shapes, so the row, not the program,
tells them apart by their names. The commands of `optforge` go by shape alone.

```python
hidden_only = ProgramOptimizer(model.named_parameters(), BASELINES["muon"].program, where=BASELINES["muon"].where)
hidden_only.routes  # which parameter goes where
```

## By hand and as programs
"""

PROGRAMS_ONLY = """
## As programs only
"""
