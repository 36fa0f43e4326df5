"""Exported files: they run without optforge, do what the interpreter does, and hold no one else's code."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
import tokenize
from io import BytesIO

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support import strategies as S

from optforge.baselines import BASELINES, NAMED
from optforge.primitives import OPS, Builder, Const, Kind, ProgramError, ProgramOptimizer, linalg, parse_program
from optforge.primitives.backends.to_jax import expression
from optforge.primitives.blocks import every
from optforge.primitives.builder import Expr
from optforge.primitives.export.one_file import FORMATS, comments, export, identifier

SHAPE, VECTOR, STEPS = (4, 3), (5,), 20
NAMES = {name: row.program for name, row in (BASELINES | NAMED).items()}

# Runs in a process of its own: no module of optforge can be imported there.
_BEGIN = """
import json, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "optforge":
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
cases, results = json.load(sys.stdin), []
def load(case):
    scope = {"__name__": "exported"}
    exec(compile(case["source"].encode(), "exported.py", "exec"), scope)
    return scope[case["name"]]
"""
_END = "\njson.dump(results, sys.stdout)\n"
_TORCH = """
import torch
torch.set_num_threads(1)
for case in cases:
    parameters = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in case["start"]]
    optimizer = load(case)(parameters, **case["options"])
    path = []
    for gradients in case["gradients"]:
        for p, g in zip(parameters, gradients):
            g = torch.tensor(g, dtype=torch.float64)
            p.grad = g if p.grad is None else p.grad.copy_(g)  # in place, as zero_grad(set_to_none=False) leads to
        optimizer.step()
        path.append([p.tolist() for p in parameters])
    results.append(path)
"""
_JAX = """
import jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp, numpy as np, optax
np.seterr(all="ignore")
for n, case in enumerate(cases):
    options = case["options"]
    rule = load(case)(options.pop("lr"), **options)
    parameters = [jnp.array(x, dtype=jnp.float64) for x in case["start"]]
    state, path = rule.init(parameters), []
    update = jax.jit(rule.update) if n < 8 else rule.update
    for gradients in case["gradients"]:
        updates, state = update([jnp.array(g, dtype=jnp.float64) for g in gradients], state, parameters)
        parameters = optax.apply_updates(parameters, updates)
        path.append([p.tolist() for p in parameters])
    results.append(path)
"""


def run(script, cases):
    """What the exported sources of `cases` make of their starting points, after each step."""
    done = subprocess.run(
        [sys.executable, "-c", _BEGIN + script + _END], input=json.dumps(cases), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [[[torch.tensor(x, dtype=torch.float64) for x in ps] for ps in path] for path in json.loads(done.stdout)]


def case(program, to, shapes, seed=0):
    """A run of the exported program, as `run` wants it, and the interpreter's path for the same numbers."""
    draws = [S.random_gradients(shape, STEPS, seed + n) for n, shape in enumerate(shapes)]
    options = {"lr": 0.01} | ({"total_steps": 100} if reads(program, "progress") else {})
    asked = {
        "source": export(program, "mine", to),
        "name": {"torch": "Mine", "optax": "mine"}[to],
        "start": [d[0].tolist() for d in draws],
        "gradients": [[d[step].tolist() for d in draws] for step in range(1, STEPS + 1)],
        "options": options,
    }
    paths = []
    for shape, (start, *gradients) in zip(shapes, draws, strict=True):
        rule = program.fallback if program.needs_matrix and len(shape) < 2 else program
        paths.append(S.train(rule, start, gradients, total_steps=100).parameters)
    return asked, [list(step) for step in zip(*paths, strict=True)]


def reads(program, name):
    programs = [program, program.fallback] if program.fallback and program.needs_matrix else [program]
    return any(name in p.live.names for p in programs)


def shapes_of(program):
    if reads(program, "global_norm"):
        return [SHAPE]  # the plain loop that is compared with trains one parameter at a time
    return [SHAPE, VECTOR] if program.fallback or not program.needs_matrix else [SHAPE]


def drawn(strategy, count):
    """`count` examples, the same ones each time."""
    found = []

    @settings(max_examples=count, derandomize=True, database=None, phases=[Phase.generate])
    @given(strategy)
    def collect(example):
        found.append(example)

    collect()
    return found


def matrix_program(fallback):
    b = Builder()
    rows, cols = b.slot("rows", Kind.ROW), b.slot("cols", Kind.COL, 0.5)
    count, first = b.slot("count", Kind.SCALAR, 1.0), b.slot("first", init="g")
    m, rate = b.slot("m"), b.slot("rate", Kind.SCALAR)
    m.next, rate.next = m * 0.9 + b.g, b.lr
    rows.next, cols.next = b.row_mean(b.square(b.g)), b.lerp(cols, b.col_mean(b.square(b.g)), b.hyper("class", 0.1))
    count.next, first.next = b.norm(m.next) * 1e-3 + count, m
    factored = b.g / (b.sqrt(b.outer(rows.next, cols.next)) + 1e-3)
    return b.build(b.orthogonalise(m.next) * count + factored * (1 + rate) + 0.1 * b.tanh(first) + 0.01 * b.p, fallback)


def lazy_program():
    """A root every third step, and within it a basis; another condition; what both sides need; names that are taken."""
    b = Builder()
    left, root = b.slot("l", Kind.LEFT), b.slot("due0", Kind.LEFT, 1.0)
    basis, m = b.slot("x7_new", Kind.RIGHT, 1.0), b.slot("m")
    left.next = b.lerp(left, b.row_gram(b.g) + b.identity(left), 0.5)
    right = b.col_gram(m + b.g) + b.identity(basis)
    inner: Expr = every(b, 2.0, b.basis(right, basis, 1e-6), basis)
    outer = b.inverse_root4(left.next, 1e-6) * (1.0 + b.trace(inner))
    every(b, b.hyper("every", 3.0, "log"), outer, root)
    m.next = b.choose(b.less(b.step, 3.0), b.g, m * 0.9 + b.tanh(b.g))
    size = b.slot("size", Kind.SCALAR)
    every(b, 2.0, b.norm(b.g), size)
    early = b.choose(b.less(b.step, 2.0), b.lr, 0.5)  # one number for all, as the other is for the second step
    inner = inner * (1.0 + b.choose(b.less(b.step, 2.0), early, 0.1 * size.next))
    return b.build(b.matmul(b.matmul(root.next, m.next), inner))


SPECIAL = [
    matrix_program(BASELINES["adamw"].program),
    parse_program(
        "optforge 1\nhyper self_ = 0.5 linear\nhyper lambda = 0.5 linear\nhyper torch = 0.5 unit\n"
        "hyper super = 0.5 unit\nhyper isinstance = 2 log\nslot state = p tensor\n"
        "slot numbers = 0.0 tensor\nslot dims = 0.0 tensor\n"
        "slot c0 = 0.25 tensor\nslot k0 = 0.25 tensor\n"
        "x0 = mul(g, lambda)\nx1 = mul(x0, torch)\nx2 = add(x1, super)\nx3 = lerp(state, x2, isinstance)\n"
        "x4 = max(x3, 0.125)\nx5 = add(x4, c0)\nx6 = sub(x5, k0)\nx7 = mul(dims, progress)\nx8 = add(x6, x7)\n"
        "x9 = mul(numbers, self_)\nx10 = add(x8, x9)\nx11 = mul(x10, step)\nx12 = mul(x11, lr)\nupdate x12\n"
        "next state = numbers\nnext numbers = state\nnext dims = x6\nnext c0 = k0\nnext k0 = g\n"
    ),
    parse_program("optforge 1\nx0 = div(g, global_norm)\nupdate x0\n"),
    parse_program("optforge 1\nupdate g\n"),
    parse_program("optforge 1\nupdate p\n"),
    lazy_program(),
]


# torch


def test_torch_files_run_without_optforge_and_equal_the_interpreter_bit_for_bit():
    programs = [*NAMES.values(), *SPECIAL, *drawn(S.programs(), 80)]
    asked, expected = zip(*(case(p, "torch", shapes_of(p), n) for n, p in enumerate(programs)), strict=True)
    for program, got, wanted in zip(programs, run(_TORCH, asked), expected, strict=True):
        for step, (one, other) in enumerate(zip(got, wanted, strict=True)):
            for x, y in zip(one, other, strict=True):
                assert torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0)), f"step {step + 1} of\n{program}"


def test_programs_move_parameters_at_all():
    """Guards the test above against comparing nothing with nothing."""
    _, path = case(SPECIAL[1], "torch", [SHAPE])
    assert bool((path[-1][0] - path[0][0]).abs().min() > 1e-6) and bool(path[-1][0].isfinite().all())


def module(source):
    scope = {"__name__": "exported"}
    exec(compile(source.encode(), "exported.py", "exec"), scope)
    return scope


def trained(optimizer, parameters, seed=3, steps=3):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return [p.detach().clone() for p in parameters]


def parameters(*shapes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(s, generator=generator).requires_grad_() for s in shapes or (SHAPE, VECTOR)]


def test_groups_override_rate_and_hyperparameters():
    adamw = module(export(NAMES["adamw"], "adamw"))["Adamw"]
    ours, theirs = parameters(), parameters()
    groups = [{"params": [0], "beta1": 0.5, "lr": 0.1}, {"params": [1]}]
    for make, ps in ((adamw, ours), (lambda g, **k: ProgramOptimizer(g, NAMES["adamw"], **k), theirs)):
        trained(make([g | {"params": [ps[g["params"][0]]]} for g in groups], lr=0.01, eps=1e-3), ps)
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)
    assert not torch.allclose(ours[0], parameters()[0])


def test_state_moves_between_the_exported_optimizer_and_optforge(tmp_path):
    program = SPECIAL[0]
    make = module(export(program, "mixed"))["Mixed"]
    here, there = parameters(), parameters()
    first = ProgramOptimizer(here, program, lr=0.01)
    trained(first, here)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    with torch.no_grad():
        for p, q in zip(there, here, strict=True):
            p.copy_(q)
    second = make(there, lr=0.5)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for x, y in zip(trained(first, here), trained(second, there), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)
    for p, q in zip(here, there, strict=True):
        ours, theirs = ({k: v.shape for k, v in o.state[x].items()} for o, x in ((first, p), (second, q)))
        assert ours == theirs


def test_closure_maximize_and_missing_gradients():
    make = module(export(NAMES["lion"], "lion"))["Lion"]
    (down,), (up,) = parameters(SHAPE), parameters(SHAPE)
    start = down.detach().clone()
    for p, maximize in ((down, False), (up, True)):
        optimizer = make([p, torch.zeros(3, requires_grad=True)], lr=0.1, maximize=maximize)

        def closure(p=p):
            p.grad = None
            loss = p.square().sum()
            loss.backward()
            return loss

        assert optimizer.step(closure).item() == float(start.square().sum())
    torch.testing.assert_close(down - start, start - up)
    assert bool((down - start).abs().sum() > 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": -1.0}, "lr must be a number in [0.0, inf), got -1.0"),
        ({"beta1": 1.0}, "beta1 must be a number in [0.0, 1.0), got 1.0"),
        ({"eps": float("nan")}, "eps must be"),
        ({"weight_decay": "0.1"}, "weight_decay must be"),
        ({"beta2": True}, "beta2 must be"),
    ],
)
def test_values_outside_their_range_are_refused(options, words):
    make = module(export(NAMES["adamw"], "adamw"))["Adamw"]
    with pytest.raises(ValueError, match=re.escape(words)):
        make(parameters(), **options)
    with pytest.raises(ValueError, match=re.escape(words)):
        make([{"params": parameters(), **options}])


def test_other_misuse_is_refused():
    make = module(export(NAMES["adamw"], "adamw"))["Adamw"]
    with pytest.raises(ValueError, match="unknown option 'beta3'"):
        make([{"params": parameters(), "beta3": 0.5}])
    (p,) = parameters(SHAPE)
    p.grad = torch.ones(SHAPE).to_sparse()
    with pytest.raises(ValueError, match="sparse"):
        make([p]).step()
    alone = module(export(matrix_program(None), "rows"))["Rows"]
    with pytest.raises(ValueError, match="rows and columns"):
        alone(parameters())
    timed = module(export(SPECIAL[1], "timed"))["Timed"]
    with pytest.raises(ValueError, match="total_steps"):
        timed(parameters())


# optax


NEEDS_JAX = pytest.mark.skipif(importlib.util.find_spec("optax") is None, reason="optax and JAX are not installed")


def one_op(name):
    """A program whose update is one op on gradients in its domain, and on the parameter."""
    b, op = Builder(), OPS[name]
    into = {"unit_ball": lambda x: b.tanh(x) * 0.9, "at_least_one": lambda x: b.abs(x) + 1.1, "real": lambda x: x}
    kinds = next((k for k in op.result if all(kind is Kind.TENSOR for kind in k)), next(iter(op.result)))
    make = {Kind.TENSOR: lambda x: x, Kind.ROW: b.row_mean, Kind.COL: b.col_mean, Kind.SCALAR: b.mean,
            Kind.LEFT: lambda x: b.row_gram(x) + b.identity(b.row_gram(x)),  # which is not singular
            Kind.RIGHT: lambda x: b.col_gram(x) + b.identity(b.col_gram(x))}  # fmt: skip
    values = zip((b.g, b.p, b.g * b.p, b.g + b.p), kinds, op.domain, strict=False)
    args = [make[kind](into.get(domain, lambda x: b.abs(x) + 0.1)(x)) for x, kind, domain in values]
    return b.build(S.seen_in_update(b, b.op(name, *args), op.result[kinds]) + 0.0 * b.g)


def is_normal(program):
    """Whether no number in it is so small that XLA takes it for zero."""
    numbers = [a.value for _, args in program.body for a in args if isinstance(a, Const)]
    numbers += [h.default for h in program.hypers] + [s.init for s in program.state if isinstance(s.init, float)]
    return all(x == 0 or abs(x) > 1e-300 for x in numbers)


@NEEDS_JAX
def test_optax_files_equal_the_interpreter():
    programs = [*NAMES.values(), *SPECIAL, *map(one_op, OPS), *drawn(S.total_programs().filter(is_normal), 30)]
    asked, expected = zip(*(case(p, "optax", shapes_of(p), n) for n, p in enumerate(programs)), strict=True)
    for program, got, wanted in zip(programs, run(_JAX, asked), expected, strict=True):
        for one, other in zip(got, wanted, strict=True):
            for x, y in zip(one, other, strict=True):
                ok = y.isfinite() & (y.abs() < 1e30)
                torch.testing.assert_close(x[ok], y[ok], rtol=1e-6, atol=1e-9, msg=lambda m, p=program: f"{m}\n{p}")


# Steps of jit whose parameters and state are donated, on a model of mixed precision; then the dtypes before and after,
# and whether lax.scan, which refuses a carry that changes its dtype, takes the step.
_JAX_HABITS = """
import jax, jax.numpy as jnp, optax
for case in cases:
    given, held = (jnp.dtype(name) for name in case["dtypes"])
    rule = load(case)(1e-2, **case["options"])
    parameters = [jnp.array(x, dtype=held) for x in case["start"]]
    state = rule.init(parameters)
    before = jax.tree_util.tree_map(lambda x: x.dtype.name, (parameters, state))
    def step(parameters, state):
        gradients = [jnp.zeros(p.shape, given).at[0].set(0.1) for p in parameters]
        updates, state = rule.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state
    parameters, state = step(parameters, state)
    donated = jax.jit(step, donate_argnums=(0, 1))
    for _ in range(2):
        parameters, state = donated(parameters, state)
    after = jax.tree_util.tree_map(lambda x: x.dtype.name, (parameters, state))
    (parameters, state), _ = jax.lax.scan(lambda c, _: (step(*c), None), (parameters, state), None, length=2)
    finite = all(bool(jnp.isfinite(x).all()) for x in jax.tree_util.tree_leaves((parameters, state)))
    results.append([before == after, finite, sorted(set(jax.tree_util.tree_leaves(after[1])))])
"""


@NEEDS_JAX
@pytest.mark.parametrize(
    ("given", "held", "state"),
    [
        ("bfloat16", "float32", "float32"),
        ("float32", "bfloat16", "bfloat16"),
        ("float16", "float16", "float32"),
        ("float32", "float32", "float32"),
    ],
)
def test_optax_files_keep_the_dtype_of_state_and_let_everything_be_donated(given, held, state):
    """Also of rules with slots that begin at the parameter, or that become one and the same value."""
    twins = parse_program(
        "optforge 1\nslot a = p tensor\nslot b = p tensor\nslot c = g tensor\nslot d = 0 tensor\nx0 = add(a, b)\n"
        "x1 = add(c, d)\nx2 = add(x0, x1)\nx3 = mul(x2, 0.01)\nupdate x3\nnext a = x3\nnext b = x3\nnext c = g\n"
        "next d = g\n"
    )
    names = ["adamw", "schedule-free-adamw", "prodigy", "adan", "adafactor", "sgd"]
    cases = [
        {
            "source": export(program, "mine", "optax"),
            "name": "mine",
            "start": [[[1.0, 2.0], [3.0, 4.0]], [1.0, 2.0]],
            "dtypes": [given, held],
            "options": {},
        }
        for program in (*(NAMES[name] for name in names), twins)
    ]
    done = subprocess.run(
        [sys.executable, "-c", _BEGIN + _JAX_HABITS + _END], input=json.dumps(cases), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = dict(zip([*names, "twins"], json.loads(done.stdout), strict=True))
    stateless = ["int32"]
    assert {name: row for name, row in found.items() if row[:2] != [True, True]} == {}
    assert {name: row[2] for name, row in found.items() if row[2] not in (stateless, [state, "int32"])} == {}


@pytest.mark.parametrize("name", OPS)
def test_every_op_has_a_jax_meaning(name):
    text = expression(OPS[name], [f"a{i}" for i in range(OPS[name].arity)])
    names = {n.id for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name)}
    routines = {f"_{routine}" for routine in vars(linalg)} | {"_lerp"}
    assert names - {"dims", "a0", "a1", "a2", "a3"} <= {"jnp", "math"} | routines
    assert "torch" not in text and "keepdim=" not in text and "dim=" not in text.replace("keepdims=", "")


def test_an_op_without_a_jax_meaning_is_refused_by_name():
    from optforge.primitives.op import Op

    with pytest.raises(ProgramError, match=r"op odd cannot be exported to JAX: torch\.erf has no known"):
        expression(Op("odd", 1, "torch.erf({0})", None), ["x"])
    with pytest.raises(ProgramError, match="op odd cannot be exported to JAX: the method or attribute 'sqrt_'"):
        expression(Op("odd", 1, "{0}.sqrt_()", None), ["x"])


# names and provenance

HOSTILE = (
    "'''", '"""', "\\", "a\nimport os", "a\rb", "a\x0cb", "x\x00y", "\u2028import os", "\ud800", "class", "Optimizer",
    "ValueError", "1st", "", "…", "🦁", "a" * 5000, "{0}", "%s", "@NAME@", "}", "lambda: 0", "jax", "# type: ignore",
    "-*- coding: utf-7 -*-", "\u202e", "_", "state", "State", "\\end{aligned}\n\\input{/etc/passwd}",
)  # fmt: skip


def safe(source, to):
    """Whether only comments differ from what a harmless name gives; and whether the file is one at all."""
    encoded = source.encode("utf-8")
    if to in ("torch", "optax"):
        assert tokenize.detect_encoding(BytesIO(encoded).readline)[0] == "utf-8"
        return ast.dump(ast.parse(encoded))
    mark = {"latex": "%", "text": "#"}[to]
    return "\n".join(line for line in source.split("\n") if not line.startswith(mark))


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_and_provenance_stay_comments(text, to):
    program = NAMES["lion"]
    plain = safe(export(program, "Q7", to), to)
    got = safe(export(program, text, to, {text: text, "from": text}), to)
    name = identifier(text, snake=to == "optax")
    assert name.isidentifier() and name.isascii() and len(name) < 80
    assert got == plain.replace("'Q7'" if to == "torch" else "'q7'", repr(name))
    assert safe(export(program, "Q7", to, text), to) == plain
    if to == "text":
        assert parse_program(export(program, text, to, text)) == program


@given(st.text(), st.text())
def test_any_name_gives_an_importable_file(name, provenance):
    scope = module(export(NAMES["lion"], name, "torch", provenance))
    assert issubclass(scope[identifier(name)], torch.optim.Optimizer)


@pytest.mark.parametrize("text", HOSTILE)
def test_comments_are_single_printable_lines(text):
    for line in comments(f"a{text}b"):
        assert line.startswith("#") and line.isprintable() and len(line.splitlines()) == 1


def test_names_stay_readable():
    assert identifier("lion-raw") == "LionRaw" and identifier("lion-raw", snake=True) == "lion_raw"
    assert identifier("first#1") == "First1" and identifier("2nd", snake=True) == "rule_2nd"


# what is in a file


def test_a_torch_file_tells_what_it_holds():
    source = export(NAMES["lion-raw-ablated"], "raw", "torch", {"from": "runs/a#1"})
    assert f"# key: {NAMES['lion-raw-ablated'].key}" in source and "# from: runs/a#1" in source
    assert "update = (x0 / sqrt(x0 * x0) + p * 0.4602) * 0.0002" in source and "cosh" not in source
    assert "optforge" not in source and "import optforge.primitives" not in source


def test_text_and_latex():
    text = export(matrix_program(NAMES["lion"]), "mixed", "text", "here")
    assert parse_program(text).key == matrix_program(NAMES["lion"]).key and "# here" in text
    assert r"\theta &\leftarrow \theta - \eta" in export(NAMES["lion"], "lion", "latex")


def test_an_unknown_format_is_refused():
    with pytest.raises(ProgramError, match="choose one of torch, optax, latex, text"):
        export(NAMES["lion"], "lion", "keras")
