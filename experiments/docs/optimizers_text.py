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
from baselines import BASELINES, AdamW
from primitives import ProgramOptimizer

model = torch.nn.Linear(3, 2)
optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)

# the same as a program
program = BASELINES["adamw"].program
optimizer = ProgramOptimizer(model.parameters(), program, lr=1e-3, weight_decay=0.1)
```

*State* is counted in numbers for each parameter: `2×` is twice the model's size. `optforge optimizers --memory`
measures it. Learning rates are where the best one usually lies for networks trained from scratch; let a schedule lower
them.

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

## By hand and as programs
"""

PROGRAMS_ONLY = """
## As programs only
"""
