"""Square matrices of the sides of a parameter: what they are, where they go, and what cannot have them."""

from __future__ import annotations

import pytest
import torch
from support.strategies import assert_same, random_gradients, train
from torch import Tensor, nn

from optforge.primitives import (
    OPS,
    Builder,
    Kind,
    Program,
    ProgramError,
    ProgramOptimizer,
    execute,
    parse_program,
    print_program,
)
from optforge.primitives.analysis.cost import cost
from optforge.primitives.backends.source import compile_step
from optforge.primitives.blocks import inverse_root, newton_schulz
from optforge.primitives.routing import LARGEST_SIDE, can_train

MILLIONTH = torch.tensor(1e-6, dtype=torch.float64)


def whitened() -> Program:
    """A rule of two square slots that anyone can check: (L + 1) g (R + 1), with averages of Gram matrices."""
    b = Builder()
    beta = b.hyper("beta", 0.5, "unit")
    left, right = b.slot("l", Kind.LEFT, 1.0), b.slot("r", Kind.RIGHT, 1.0)
    left.next = b.lerp(left, b.row_gram(b.g), 1.0 - beta)
    right.next = b.lerp(right, b.col_gram(b.g), 1.0 - beta)
    return b.build(b.matmul(b.matmul(left.next, b.g), right.next))


def by_hand(start: Tensor, gradients: list[Tensor], lr: float) -> Tensor:
    """What `whitened` does to a parameter of any number of dimensions, on matrices alone."""
    p = start.reshape(len(start), -1).clone()
    left, right = torch.eye(p.shape[0], dtype=p.dtype), torch.eye(p.shape[1], dtype=p.dtype)
    for gradient in gradients:
        g = gradient.reshape(p.shape)
        left, right = (left + g @ g.T) / 2, (right + g.T @ g) / 2
        p = p - lr * left @ g @ right
    return p.reshape(start.shape)


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (1, 5), (5, 1), (2, 3, 2), (3, 2, 2, 1)])
def test_square_state_is_that_of_the_parameter_as_a_matrix(shape: tuple[int, ...]) -> None:
    start, *gradients = random_gradients(shape, 4, seed=3)
    run = train(whitened(), start, gradients, lr=1e-3)
    torch.testing.assert_close(run.parameters[-1], by_hand(start, gradients, 1e-3), rtol=1e-12, atol=1e-14)
    p = nn.Parameter(start.clone())
    optimizer = ProgramOptimizer([p], whitened(), lr=1e-3)
    for p.grad in gradients:
        optimizer.step()
    torch.testing.assert_close(p.detach(), run.parameters[-1], rtol=1e-12, atol=1e-14)


def test_a_stack_of_parameters_has_a_stack_of_squares() -> None:
    program, runs = whitened(), [random_gradients((2, 3, 2), 1, seed) for seed in range(6)]
    p, g = (torch.stack(each).unflatten(0, (2, 3)) for each in zip(*runs, strict=True))
    state = {s.name: torch.stack([torch.eye(n).double()] * 6).reshape(2, 3, *s.kind.shape((2, 3, 2)))
             for s, n in zip(program.state, (2, 6), strict=True)}  # fmt: skip
    numbers = {"beta": torch.tensor(0.5).double(), "lr": torch.tensor(1.0).double()}
    together = compile_step(program)({"g": g, "p": p, **state, **numbers}, (2, 3, 4)).update.flatten(0, 1)
    for update, (start, gradient) in zip(together, runs, strict=True):
        torch.testing.assert_close(update, start - by_hand(start, [gradient], 1.0), rtol=1e-12, atol=1e-13)


def test_programs_with_squares_are_read_as_they_are_printed() -> None:
    program = whitened()
    assert "slot l = 1.0 left\nslot r = 1.0 right\n" in print_program(program)
    assert parse_program(print_program(program)) == program
    other = parse_program(print_program(program).replace("slot l = 1.0", "slot l = 2.0"))
    assert other.key != program.key


@pytest.mark.parametrize(
    ("statement", "kinds"),
    [
        ("matmul(g, l)", "TENSOR, LEFT"),
        ("matmul(r, g)", "RIGHT, TENSOR"),
        ("matmul(l, r)", "LEFT, RIGHT"),
        ("matmul(g, g)", "TENSOR, TENSOR"),
        ("add(l, g)", "LEFT, TENSOR"),
        ("add(l, r)", "LEFT, RIGHT"),
        ("mul(row_mean, l)", "ROW, LEFT"),
        ("left_t(r, g)", "RIGHT, TENSOR"),
        ("row_diagonal(r)", "RIGHT"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_kinds(statement: str, kinds: str) -> None:
    text = f"""optforge 1
    slot l = 1.0 left
    slot r = 1.0 right
    slot row_mean = 0.0 row
    x0 = {statement}
    update g
    next l = l
    next r = r
    next row_mean = row_mean"""
    with pytest.raises(ProgramError, match=rf"x0 = {statement.split('(')[0]}.* of kind \({kinds}\)"):
        parse_program(text)


def test_long_sides_are_told_at_construction_or_go_to_the_fallback() -> None:
    program, long = whitened(), (2, LARGEST_SIDE + 1)
    b = Builder()
    flat = b.build(b.sign(b.g))
    with pytest.raises(
        ProgramError, match=r"of sides of up to 10,000, not of 10,001, but a parameter has shape \(2, 1"
    ):
        ProgramOptimizer([nn.Parameter(torch.zeros(long))], program)
    both = Program(program.state, program.hypers, program.body, program.update, program.next_state, flat)
    optimizer = ProgramOptimizer([nn.Parameter(torch.zeros(s)) for s in (long, (2, 2, 3), (3,))], both)
    assert [route.which for route in optimizer.routes] == ["fallback", "program", "fallback"]
    assert not can_train(program, (LARGEST_SIDE + 1, 2)) and can_train(program, (LARGEST_SIDE, 2))


def test_only_the_side_that_has_a_square_is_limited() -> None:
    b = Builder()
    left = b.slot("l", Kind.LEFT)
    left.next = b.row_gram(b.g)
    program = b.build(b.matmul(left.next, b.g))
    assert program.sides == {Kind.LEFT}
    assert can_train(program, (2, LARGEST_SIDE + 1)) and not can_train(program, (LARGEST_SIDE + 1, 2))
    assert not can_train(program, (5,))


def test_squares_that_do_nothing_are_still_held_and_hence_limited() -> None:
    program = parse_program("optforge 1\nslot l = 0.0 left\nupdate g\nnext l = l")
    assert can_train(program, (5,)) and not can_train(program, (LARGEST_SIDE + 1, 2))
    p = nn.Parameter(torch.zeros(5))
    p.grad = torch.ones(5)
    ProgramOptimizer([p], program, lr=1.0).step()
    assert_same(p.detach(), -torch.ones(5))


def test_cost_counts_squares_and_products() -> None:
    """Of a 3 × 7 parameter, worked out by hand."""
    found = cost(whitened(), (3, 7))
    grams, products, lerps, apply = 2 * (9 * 7 + 49 * 3), 2 * (9 * 7 + 3 * 49), 3 * (9 + 49), 2 * 21
    assert found.flops * 21 == pytest.approx(grams + products + lerps + apply)
    assert found.state_bytes * 21 == pytest.approx(4 * (9 + 49))
    assert found.moved_bytes * 21 == pytest.approx(4 * (3 * 21 + 2 * (9 + 49)))
    assert cost(whitened(), (3, 7, 1)).flops == found.flops
    with pytest.raises(ProgramError, match="sides of up to 10,000"):
        cost(whitened(), (2, LARGEST_SIDE + 1))


def positive(n: int, condition: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A positive definite matrix with eigenvalues from 1 down to ``1 / condition``; these, and its eigenvectors."""
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    values = condition ** -torch.linspace(0, 1, n, dtype=torch.float64)
    return (q * values) @ q.T, values, q


@pytest.mark.parametrize("p", [1, 2, 4])
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6, 1e14])
@pytest.mark.parametrize("n", [1, 5, 30])
def test_inverse_roots_are_those_of_the_damped_eigenvalues(p: int, condition: float, n: int) -> None:
    a, values, q = positive(n, condition)
    ridge = 1e-6 * values.square().sum().sqrt()
    exact = (q * (values + ridge) ** (-1 / p)) @ q.T
    got = OPS[f"inverse_root{p}"].function(1e-3 * a, torch.tensor(1e-6, dtype=torch.float64), dims=(0, 1))
    torch.testing.assert_close(got, 1e3 ** (1 / p) * exact, rtol=0, atol=1e-9 * float(got.abs().max()))


def test_single_precision_roots_are_good_to_a_percent_at_the_papers_damping() -> None:
    a, values, q = positive(40, 1e9)
    exact = (q * (values + 1e-6 * values.square().sum().sqrt()) ** -0.25) @ q.T
    for dtype in (torch.float32, torch.bfloat16):
        held = a.to(dtype) if dtype is torch.float32 else torch.eye(40, dtype=dtype)
        expected = exact if dtype is torch.float32 else torch.eye(40).double()
        got = OPS["inverse_root4"].function(held, torch.tensor(1e-6, dtype=dtype), dims=(0, 1))
        assert got.dtype is dtype
        assert torch.linalg.norm(got.double() - expected) < 0.01 * torch.linalg.norm(expected)


@pytest.mark.parametrize("p", [1, 2, 4])
@pytest.mark.parametrize("damping", [0.0, 1e-12, 1e-6])
def test_roots_of_what_has_none_are_finite(p: int, damping: float) -> None:
    """Zero and singular matrices, and such that rounding has left with negative eigenvalues."""
    one = torch.ones(6, 6)
    tiny = torch.diag(torch.tensor([1.0, 1e-3, 0.0, -1e-9, -1e-7, 1e-38]))
    for a in (torch.zeros(6, 6), one, tiny, 1e30 * one, 1e-30 * one, torch.zeros(1, 1)):
        assert OPS[f"inverse_root{p}"].function(a, torch.tensor(damping), dims=(0, 1)).isfinite().all()
    zero = OPS[f"inverse_root{p}"].function(torch.zeros(3, 3).double(), torch.tensor(1e-6).double(), dims=(0, 1))
    torch.testing.assert_close(zero, 1e-16 ** (-1 / p) * torch.eye(3).double(), rtol=1e-6, atol=0)


def test_other_roots_are_refused() -> None:
    b = Builder()
    for p in (0, -2, 3, 2.5, True):
        with pytest.raises(ProgramError, match=f"p = 1, 2 or 4, got {p}"):
            inverse_root(b, b.row_gram(b.g), p)  # type: ignore[arg-type]
    with pytest.raises(ProgramError, match="unknown op 'inverse_root0'; did you mean inverse_root"):
        parse_program("optforge 1\nx0 = row_gram(g)\nx1 = inverse_root0(x0, 1.0)\nupdate g")
    program = b.build(b.matmul(inverse_root(b, b.row_gram(b.g), 2), b.g))
    assert [op for op, _ in program.body] == ["row_gram", "inverse_root2", "matmul"]


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 2)])
def test_bases_become_eigenvectors(shape: tuple[int, ...]) -> None:
    """Of both sides: orthogonal after each step, and diagonalising after many."""
    g = random_gradients(shape, 0, seed=5)[0]
    m, dims = g.reshape(len(g), -1), tuple(range(len(shape)))
    for gram, kind in ((m @ m.T, Kind.LEFT), (m.T @ m, Kind.RIGHT)):
        own = kind.shape(shape)
        q = torch.eye(len(gram), dtype=g.dtype).reshape(own)
        for _ in range(300):
            q = OPS["basis"].function(gram.reshape(own), q, MILLIONTH, dims=dims)
            flat = q.reshape(len(gram), -1)
            torch.testing.assert_close(flat.T @ flat, torch.eye(len(gram), dtype=g.dtype))
        diagonal = flat.T @ gram @ flat
        torch.testing.assert_close(diagonal, torch.diag(diagonal.diagonal()), rtol=0, atol=1e-9)
        expected = torch.linalg.eigvalsh(gram).flip(0)
        torch.testing.assert_close(diagonal.diagonal(), expected, rtol=0, atol=1e-9)


def test_a_basis_keeps_directions_in_which_nothing_is_known() -> None:
    """A Gram matrix of rank 1 says which vector comes first; the others stay where they were, as far as they can."""
    u = torch.tensor([0.6, 0.8, 0.0, 0.0, 0.0], dtype=torch.float64)
    q = OPS["basis"].function(torch.outer(u, u), torch.eye(5).double(), MILLIONTH, dims=(0, 1))
    torch.testing.assert_close(q[:, 0].abs(), u, rtol=0, atol=1e-6)
    torch.testing.assert_close(q[:, 2:], torch.eye(5).double()[:, 2:], rtol=0, atol=1e-6)
    assert_same(OPS["basis"].function(torch.zeros(3, 3), torch.eye(3), MILLIONTH.float(), dims=(0, 1)), torch.eye(3))


def test_orthogonalise_can_be_said_with_other_coefficients() -> None:
    jordan, cubic = (3.4445, -4.775, 2.0315), (1.5, -0.5, 0.0)
    g = random_gradients((4, 6), 0, seed=6)[0]
    updates = []
    for coefficients in ([jordan] * 5, [cubic] * 60):
        b = Builder()
        updates.append(execute(b.build(newton_schulz(b, b.g, coefficients)), {"g": g}).update)
    torch.testing.assert_close(updates[0], OPS["orthogonalise"].function(g, dims=(0, 1)), rtol=1e-12, atol=1e-12)
    u, _, vt = torch.linalg.svd(g, full_matrices=False)
    torch.testing.assert_close(updates[1], u @ vt, rtol=0, atol=1e-10)  # the cubic leads to the polar factor itself
