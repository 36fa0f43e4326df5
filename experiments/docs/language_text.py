"""The words of docs/language.md. ``<name>`` on a line of its own is a table, ``<<name>>`` a fact; see `language`."""

CHAPTERS = r"""
# The language of update rules

This page is written by `make docs` from the tables in `primitives/`; the test suite checks that it is current.

A program says how one parameter is updated. It reads the gradient, the parameter, a few signals, its hyperparameters
and its own state; it computes an *update* and the next value of each piece of state. The engine then applies
`p ← p − lr · update`. Programs are immutable data: checked when constructed, hashable, and never code.

## The text form

```
<<lion>>
```

A file holds, in any order, one item on each line; `#` starts a comment. It begins with `optforge <<version>>`.

```
file      = "optforge <<version>>" { line } [ "fallback" { line } ]
line      = hyper | slot | statement | update | next
hyper     = "hyper" name "=" number scale
slot      = "slot" name "=" ( number | "p" | "g" ) kind
statement = "x" index "=" op "(" argument { "," argument } ")"
update    = "update" argument
next      = "next" name "=" argument
argument  = "x" index | name | number
scale     = "log" | "unit" | "linear"
kind      = "tensor" | "row" | "col" | "scalar" | "left" | "right"
```

Statements number their results x0, x1, … in order, and each may read only earlier ones. What a statement reads of a
slot is its value before the step; `next` gives the value after it. A slot starts from a number, or from a copy of the
parameter (`p`) or of its first gradient (`g`). `update` must be of kind tensor, and each `next` of its slot's kind.
Statements may be without effect: searches keep them, while keys, costs, formulas and exports leave them out.

Names are lower-case identifiers of at most <<name>> ASCII letters, digits and underscores. They may be neither signals
nor of the form `x12`, nor one of the words
<<reserved>>.

A program has at most <<statements>> statements, <<slots>> slots and <<hypers>> hyperparameters, its text at most
<<characters>> characters. Literals are finite; there is no negative zero. Reading takes time linear in the text, never
evaluates any of it, and ends in a program or in a `ProgramError` that names the line. `python tests/support/fuzz.py`
tries to prove otherwise; 1,200,000 cases (seed 0) have not.

`parse_program(text)` reads, `print_program(program)` writes, and `parse_program(print_program(p)) == p`.

### Fallback

Vectors have no rows and columns, and cannot be orthogonalised. A program that needs a matrix may name another one for
parameters that are none, after a line `fallback`. More parameters go there by their names, such as embeddings, or by
group:

```python
optimizer = ProgramOptimizer(model.named_parameters(), program, where=lambda name, p: "embed" not in name)
optimizer = ProgramOptimizer([{"params": hidden}, {"params": embeddings, "use_fallback": True}], program)
optimizer.routes  # which parameter goes where
```

`optforge.primitives.routing.routing(program, model.named_parameters(), predicate)` tells it beforehand.

## Kinds

Every value has a kind: along which axes of the parameter it varies. A parameter with more than two dimensions is seen
as a matrix of its first dimension by all others.

<kinds>

An elementwise op gives what its arguments vary along together: row with col is tensor, anything with tensor is tensor.
There is no other implicit conversion. Square matrices of a side go elementwise with their own kind and with scalars,
and meet a tensor in products. A slot of such a kind starts as a multiple of the identity: `slot q = 1.0 left` is the
identity itself. They exist for sides of up to <<side>> rows or columns; a parameter with a longer side goes to the
fallback.

## Signals

<signals>

What spans the whole model enters as a signal, so that a program stays a rule for one parameter.

## Hyperparameters and their scales

A hyperparameter has a default and a scale, the invertible map to a line without bounds. Learned hyperparameters,
tuning and mutation all move along it.

<scales>

Values that are one number for all parameters are computed in float64 and rounded where they meet a tensor.

## Ops

Ops keep their raw IEEE meaning: a division by zero is infinite. Protected variants are rows of their own. *Meaning* is
the formula in sympy, which equals the torch template to twelve digits on random points of the domain; where there is
no closed form for each element, it is the torch template over the parameter's dimensions `dims`. ⇄ marks ops whose
arguments may be swapped. *Flops* are for each element of the widest argument; those of products of matrices are for one
call, whose first argument has r rows and k columns, and whose last has c columns. An op alone moves every argument and
its result once, 4 bytes for each of the numbers that its kind holds (`Op.traffic`).

<ops>

Domains are where an op is finite and real:

<domains>

### Lion's 45 functions

Chen et al. 2023 (Symbolic Discovery of Optimization Algorithms, arXiv:2302.06675) searched over 45 functions. All are
here; where the released code is known to be wrong (its `cbrt` returned a function, its `invert` negated bits) the
paper's text is followed.

<lion45>

### Adding an op

An op is one row. In your own package:

```python
# my_package/ops.py
from optforge.primitives import Op

SMOOTH_SIGN = Op(
    name="smooth_sign",
    arity=1,
    torch="{0} * torch.rsqrt(torch.square({0}) + 1)",  # torch, math, and the arguments; nothing else
    sympy="{0}/sqrt({0}**2 + 1)",                      # or None: no closed form for each element
    flops=4,
    domain=("real",),
    source="x / sqrt(x^2 + 1)",
    subsets=frozenset({"smooth"}),
    derivative=lambda b, result, x: (b.pow(b.square(x) + 1.0, -1.5),),  # or None: torch finds it
)
```

```toml
# its pyproject.toml
[project.entry-points."optforge.ops"]
smooth_sign = "my_package.ops:SMOOTH_SIGN"   # a row, or an iterable of rows
```

Once the package is installed, programs may use the op, and searches find it in its subsets. Plug-ins are loaded once,
when a name is met that is not in the table; one that fails is named in the error, and a name that is taken is refused.
For a row without a package there is `optforge.primitives.ops.register([row])`. Learned hyperparameters need
derivatives: one for
each argument, as an expression that multiplies the argument's own. A row that gives none gets them from
`torch.func.jvp`, which takes more time and memory.

Rows with reductions name a rule for kinds (`rule=reduction`, see `primitives/op.py`) and reduce over `{dims}` with
`keepdim=True`, so that the same template serves one parameter and a stack of them. Your tests can be ours:

```python
from optforge.primitives.testing import check_op

def test_my_row():
    check_op(SMOOTH_SIGN)  # shapes, dtypes, stacks, domain, commutativity, formula
```

## Blocks

Functions from expressions to expressions, for programs written with `Builder`:

<blocks>

## Simplification

`simplify(program)` rewrites by sound rules until none applies: wherever the left side is finite, the right side has
the same value up to rounding. `x`, `y`, `z` stand for any value and `a`, `b` for literals; each rule is tested on
random inputs of its domain. Beyond the rules, literals are folded, equal expressions are one, commutative arguments
are matched in both orders, slots that always hold the same value are merged, and what no update can depend on is
dropped.

<rules>

`equivalent(p, q)` says *proved* if both simplify to the same program, *refuted* with a counter-example, or *not
decided*. How often fingerprints err is measured in [fingerprints.md](fingerprints.md).

## Gallery

Every baseline as formula, pseudo-code, file and cost. State and bytes moved are bytes for each element of a 1024 × 1024
parameter in float32; flops likewise.

<gallery>
"""
