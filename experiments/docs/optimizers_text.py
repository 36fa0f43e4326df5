"""The words of docs/optimizers.md that no table and no docstring has; see `experiments.docs.optimizers`."""

INTRODUCTION = """
# Optimizers

This page is written by `make docs` from the rows of `baselines/table.py`; the test suite checks that it is current.

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

WHEN = {
    "gradient-descent": "The whole training set is one batch: small and convex problems, and as the rule that theory "
    "speaks of. `optforge train` gives it such batches.",
    "sgd": "There is no memory to spare for state, or a plain reference is needed. With momentum it usually gets "
    "further in as many steps.",
    "momentum": "Convolutional networks for images, with a schedule that lowers the learning rate: tuned well, it is "
    "hard to beat there. Seldom for transformers, whose gradients differ too much in size between layers.",
    "nesterov": "Wherever momentum is used: at the same cost it damps oscillations somewhat better.",
    "adagrad": "Sparse features, as in embeddings and linear models where rare coordinates matter, and online convex "
    "problems. In long training of deep networks its rate falls too early, as the sum of squares never forgets.",
    "rmsprop": "Gradients whose size drifts, as in recurrent networks and reinforcement learning, with half of Adam's "
    "state. Warm up: its first steps are ten times too long, see the variant.",
    "adam": "A first choice without weight decay: gradients of very different sizes, little time for tuning. With "
    "weight decay, take `adamw`.",
    "adam-l2": "Only to see how it differs from `adamw`: the penalty is divided by the size of the gradients, so that "
    "weights with large gradients decay least.",
    "adamw": "The usual choice for transformers, and for whatever has not been tried yet. Warm up, and keep biases and "
    "norms out of the decay (`baselines.groups`).",
    "nadam": "In place of `adam` where the first steps matter. Gains over a tuned Adam are usually small.",
    "adafactor": "Large models with little memory: the second moment of an n × m matrix takes n + m numbers. The "
    "relative step suits models whose layers differ in size; keep the clipping of updates.",
    "adan": "Large batches, where twice the state of `adamw` can be afforded; its authors report fewer steps on vision "
    "and language models, and tolerance of large learning rates.",
    "lion": "Large batches, with half of the state of `adamw`. Every element moves by the same length, so take a "
    "learning rate 3 to 10 times smaller than that of `adamw`, and a weight decay larger by the same factor.",
    "lars": "Convolutional networks with batches of many thousand images, with warm-up. The learning rate multiplies "
    "`trust_coefficient`, hence its unusual size.",
    "lamb": "Transformers with batches of many thousand sequences, with warm-up. At usual batch sizes `adamw` is as "
    "good and simpler.",
    "shampoo": "Large batches and long runs, where steps are few and each may cost more: its preconditioners take the "
    "curvature between rows and between columns into account, and its learning rate is AdamW's.",
    "soap": "Where Shampoo is of use, with less to tune: AdamW in a rotated space. The paper reports fewer steps than "
    "both need for language models in large batches; state is several times AdamW's.",
    "muon": "The hidden matrices of transformers and other networks, in large batches: its authors report fewer steps "
    "than `adamw` to the same loss, for some matrix products in each. Vectors go to AdamW by themselves; embeddings "
    "and the last layer should be sent there.",
    "schedule-free-adamw": "The length of training is not known beforehand, or no schedule is wanted (warm-up still "
    "is). Evaluate and save the averages: `optimizer.eval()`, or `with averaged(optimizer):`. Batch norm needs its "
    "statistics taken anew with them.",
    "prodigy": "There is no time to tune the learning rate: leave `lr` at 1 and let a cosine schedule lower it. It "
    "costs twice the state of Adam.",
    "lion-raw": "Not for training: to see what evolution's find looked like before anyone simplified it.",
    "lion-raw-ablated": "Not for training: to see `optforge simplify` turn it into Lion.",
    "cautious-adamw": "Wherever `adamw` is used, with the same hyperparameters and memory; how much it helps depends "
    "on the model.",
    "cautious-lion": "Wherever `lion` is used, with the same hyperparameters and memory; how much it helps depends on "
    "the model.",
}
"""When to use each optimizer."""

_CAUTIOUS = (
    "{} without the elements of its update that point against the present gradient; what remains is divided by its "
    "share. `baselines.cautious.cautious` makes the same of any program; decoupled weight decay is left "
    "alone, decay inside a rule (Adan, LAMB) is not.",
    "Liang et al. 2024, arXiv:2411.16085",
)
ABOUT = {
    "lion-raw": (
        "Lion as evolution found it, with statements that have no effect and constants in place of hyperparameters.",
        "Chen et al. 2023, arXiv:2302.06675, program 4",
    ),
    "lion-raw-ablated": (
        "The raw find without the two statements whose removal does not change how it trains: clip and arcsin.",
        "Chen et al. 2023, arXiv:2302.06675, section 2.4",
    ),
    "cautious-adamw": (_CAUTIOUS[0].format("AdamW"), _CAUTIOUS[1]),
    "cautious-lion": (_CAUTIOUS[0].format("Lion"), _CAUTIOUS[1]),
}
"""Idea and source of the programs that have no hand-written form, and hence no docstring and no row."""
