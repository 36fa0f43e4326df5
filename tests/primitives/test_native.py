"""Native steps: C++ that must do what the interpreter does, on any program that it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from support.strategies import ALL_OPS, OPS, assert_same, programs, random_gradients
from torch import Tensor, nn

from optforge.baselines import BASELINES
from optforge.primitives import Builder, Kind, Program, ProgramOptimizer
from optforge.primitives.backends import toolchain
from optforge.primitives.backends.compiled import NativeKernel, kernel
from optforge.primitives.backends.inductor import InductorKernel
from optforge.primitives.backends.trace import Untraceable, trace

TRACEABLE = tuple(name for name in ALL_OPS if "linalg." not in OPS[name].torch and name not in ("rows", "cols"))
SHAPES = ((3, 4), (40, 3), (1, 5), (2, 3, 2), (7,), (), (9000,))
CPU = torch.device("cpu")


def parameters(
    dtype: torch.dtype = torch.float64, shapes: tuple[tuple[int, ...], ...] = SHAPES, noise: float = 0.0
) -> list[nn.Parameter]:
    """Of all shapes; `noise` moves them by so many parts of themselves."""
    return [nn.Parameter(random_gradients(s, 0, i, dtype)[0] * (1 + noise)) for i, s in enumerate(shapes)]


def train(optimizer: ProgramOptimizer, steps: int = 3) -> list[Tensor]:
    """Parameters and state after some steps on gradients that depend on shape and step alone."""
    held = optimizer.param_groups[0]["params"]
    for t in range(steps):
        for i, p in enumerate(held):
            p.grad = random_gradients(tuple(p.shape), 0, 100 * t + i, p.dtype)[0]
        optimizer.step()
    slots = optimizer.program.live_state
    return [*(p.detach() for p in held), *(optimizer.state[p][s.name] for p in held for s in slots if p.ndim > 1)]


def rows_and_columns() -> Program:
    """Sums of every kind, of sums, and of what is no tensor; state of every kind; more than two passes."""
    b = Builder()
    r, c, s, m = b.slot("r", Kind.ROW), b.slot("c", Kind.COL, init=1.0), b.slot("s", Kind.SCALAR), b.slot("m")
    r.next = b.lerp(r, b.row_mean(b.square(b.g)), 0.3)
    c.next = b.lerp(c, b.col_norm(b.g), 0.2)
    normal = b.centralise(b.g) / (b.sqrt(b.outer(r.next, c.next) / (b.mean_of(r) + 1.0)) + 0.1)
    s.next = b.max(s, b.rms(normal))
    m.next = b.lerp(m, normal * b.col_mean(normal), 0.1)
    return b.build(m.next / s.next + 0.1 * b.cosine(b.p, b.g) * b.p + b.dot(m, b.g) * 1e-3)


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a step would go through `torch.compile`."""
    monkeypatch.setattr("optforge.primitives.backends.compiled.InductorKernel", None)


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.usefixtures("native")
def test_native_step_is_the_eager_one(name: str, dtype: torch.dtype) -> None:
    program = BASELINES[name].program
    one, other = (train(ProgramOptimizer(parameters(dtype), program, 0.01, compile=c)) for c in (False, True))
    tight = {"rtol": 1e-12, "atol": 1e-14} if dtype is torch.float64 else {"rtol": 1e-5, "atol": 1e-7}
    torch.testing.assert_close(other, one, **tight)


@pytest.mark.usefixtures("native")
def test_sums_over_rows_and_columns() -> None:
    shapes = ((3, 4), (200, 3), (1, 5), (5, 2), (2, 3, 2), (70, 700))
    one, other = (
        train(ProgramOptimizer(parameters(shapes=shapes), rows_and_columns(), 0.01, compile=c)) for c in (False, True)
    )
    torch.testing.assert_close(other, one, rtol=1e-11, atol=1e-13)


@settings(max_examples=25)
@given(programs([name for name in TRACEABLE if OPS[name].domain and set(OPS[name].domain) == {"real"}]))
def test_any_program_is_computed_as_eagerly(program: Program) -> None:
    """To rounding: no further off than what a disturbance of the last digits does to the interpreter itself."""
    shapes = tuple(s for s in SHAPES if len(s) > 1) if program.needs_matrix and not program.fallback else SHAPES
    eager, disturbed, compiled = (
        train(ProgramOptimizer(parameters(shapes=shapes, noise=e), program, 1e-3, compile=c, total_steps=9))
        for c, e in ((False, 0.0), (False, 1e-14), (True, 0.0))
    )
    assert all(isinstance(kernel(p, torch.float64, torch.float64, CPU), NativeKernel)
               for p in (program, program.fallback) if p is not None)  # fmt: skip
    for a, b, c in zip(eager, disturbed, compiled, strict=True):
        assert torch.equal(a.isfinite(), c.isfinite()) or not torch.equal(a.isfinite(), b.isfinite())
        scale = torch.where(a.isfinite(), a.abs(), 0).max() if a.numel() else 0
        allowed = 1e-12 * (1 + scale) + 1e4 * torch.where(b.isfinite(), (a - b).abs(), 0).max()
        off = torch.where(a.isfinite() & c.isfinite(), (a - c).abs(), 0)
        assert (off <= allowed).all(), (program, a, c)


@pytest.mark.parametrize("make", [rows_and_columns, BASELINES["lion"].build])
def test_the_number_of_threads_changes_nothing(make: type[Program]) -> None:
    shapes = ((300, 500), (40, 30), (60, 4))
    results = []
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(train(ProgramOptimizer(parameters(torch.float32, shapes), make(), 0.01, compile=True)))
    finally:
        torch.set_num_threads(before)
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


@pytest.mark.usefixtures("native")
def test_bfloat16_is_rounded_as_torch_does() -> None:
    """To nearest, ties to even, NaN and infinity as they are."""
    b = Builder()
    program = b.build(b.g)
    values = torch.cat([torch.randn(500) * 10.0 ** torch.randint(-30, 30, (500,)), 1 + torch.arange(9) / 256])
    p = nn.Parameter(torch.zeros(len(values) + 2, dtype=torch.bfloat16))
    optimizer = ProgramOptimizer([p], program, 1.0, compile=True, state_dtype=torch.float32)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    whole = torch.cat([values, torch.tensor([torch.nan, torch.inf])])
    optimizer.state[p]["p"].copy_(whole)
    optimizer.step()
    assert_same(p.detach(), whole.to(torch.bfloat16))
    assert_same((p.detach().float() + optimizer.state[p]["p"])[:-2], values)


def test_maximize_needs_no_other_kernel() -> None:
    up, down = (nn.Parameter(torch.ones(5)) for _ in range(2))
    optimizers = [ProgramOptimizer([p], BASELINES["adamw"].program, 0.1, compile=True, maximize=p is up, weight_decay=0)
                  for p in (up, down)]  # fmt: skip
    for p, optimizer in zip((up, down), optimizers, strict=True):
        p.grad = torch.arange(5.0)
        optimizer.step()
    assert_same(up - 1, 1 - down)


def test_what_cannot_be_written_says_so_and_goes_elsewhere() -> None:
    b = Builder()
    muon = b.build(b.orthogonalise(b.g))
    with pytest.raises(Untraceable, match="linalg"):
        trace(muon)
    assert isinstance(kernel(muon, torch.float32, torch.float32, CPU), InductorKernel)
    lion = BASELINES["lion"].program
    assert isinstance(kernel(lion, torch.bfloat16, torch.bfloat16, CPU), InductorKernel)
    assert isinstance(kernel(lion, torch.float32, torch.float32, CPU), NativeKernel)


def test_a_machine_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "compiler", lambda: None)
    b = Builder()
    assert isinstance(kernel(b.build(b.g * 3.14159), torch.float32, torch.float32, CPU), InductorKernel)


def test_a_compiler_that_fails_is_reported() -> None:
    with pytest.warns(UserWarning, match="fails to compile"):
        assert toolchain.build("this is not C++") is None


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "optforge"


def answer(number: int) -> str:
    return f'extern "C" int answer() {{ return {number}; }}'


def built(source: str) -> int:
    library = toolchain.build(source)
    assert library is not None
    found: int = library.answer()
    return found


def test_a_library_is_built_once_and_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [built(answer(n)) for n in (41, 42)] == [41, 42]
    assert len(list(cache.iterdir())) == 2 and cache.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(toolchain, "TemporaryDirectory", lambda **_: pytest.fail("built again"))
    assert [built(answer(n)) for n in (42, 41)] == [42, 41]


def test_a_damaged_library_is_built_anew(cache: Path) -> None:
    assert built(answer(43)) == 43
    (kept,) = cache.iterdir()
    kept.unlink()  # the loaded one stays mapped
    kept.write_bytes(b"not a library")
    assert built(answer(43)) == 43
    assert kept.read_bytes()[:4] != b"not "


def test_a_folder_that_others_can_write_to_is_not_trusted(cache: Path) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    assert built(answer(44)) == 44
    assert not list(cache.iterdir())


def test_the_oldest_libraries_make_room(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "MOST_KEPT", 2)
    for n in range(5):
        assert built(answer(50 + n)) == 50 + n
    assert len(list(cache.iterdir())) == 2
