"""Cost by hand for rules small enough to count, and that dead code and dead slots cost nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from support import strategies as S

from optforge.baselines import BASELINES, NAMED
from optforge.primitives import Builder, Kind, ProgramError
from optforge.primitives.analysis.cost import cost, state_bytes


def sgd():
    b = Builder()
    return b.build(b.g)


def with_slots(count):
    b = Builder()
    update = b.g
    for i in range(count):
        slot = b.slot(f"s{i}")
        slot.next = b.lerp(slot, b.g, 0.1)
        update = update + slot.next
    return b.build(update)


def factored(fallback=None):
    b = Builder()
    rows, cols = b.slot("rows", Kind.ROW), b.slot("cols", Kind.COL)
    rows.next, cols.next = b.lerp(rows, b.row_mean(b.square(b.g)), 0.1), b.lerp(cols, b.col_mean(b.square(b.g)), 0.1)
    return b.build(b.g / b.sqrt(b.outer(rows.next, cols.next)), fallback)


@pytest.mark.parametrize("count", range(4))
def test_state_is_counted_by_the_slot(count):
    assert cost(with_slots(count)).state_bytes == 4 * count
    assert cost(with_slots(count), dtype_bytes=2).state_bytes == 2 * count


@pytest.mark.parametrize(("name", "bytes_"), [("adamw", 8), ("lion", 4), ("lion-raw", 4), ("lion-raw-ablated", 4)])
def test_state_of_named_programs(name, bytes_):
    program = (BASELINES | NAMED)[name].program
    assert cost(program).state_bytes == cost(program, (7,)).state_bytes == bytes_


def test_factored_state_is_rows_and_columns():
    assert cost(factored(), (30, 50)).state_bytes == 4 * (30 + 50) / (30 * 50)
    assert cost(factored(), (3, 5, 2)).state_bytes == 4 * (3 + 5 * 2) / 30


def test_state_of_a_model_is_that_of_its_parameters_together():
    """AdaFactor: a second moment for each row and column of a matrix, for each element of a vector."""
    assert state_bytes(BASELINES["adafactor"].program, [(64, 32), (32,)]) == 4 * (64 + 32 + 32) / (64 * 32 + 32)
    assert state_bytes(BASELINES["adamw"].program, [(64, 32), (32,)]) == state_bytes(BASELINES["adamw"].program) == 8


def test_gradient_descent():
    found = cost(sgd(), (10, 10))
    assert (found.state_bytes, found.flops, found.moved_bytes) == (0, 2, 12)  # read p and g, write p
    assert found.unfused_bytes == 16  # lr * g: read and write; p - that: read twice... and write


def test_lion_by_hand():
    """lerp 3, sign 1, mul 1, add 1, lerp 3, and 2 to apply; p, g, m in and p, m out."""
    found = cost(BASELINES["lion"].program, (1000, 1000))
    assert (found.flops, found.moved_bytes) == (11, 20)
    lerp, sign, decay, add, apply = 3, 2, 2, 3, 4  # tensors in and out of each operation
    assert found.unfused_bytes == pytest.approx(4 * (2 * lerp + sign + decay + add + apply), rel=1e-5)


def test_factored_work_is_counted_by_what_it_touches():
    found = cost(factored(), (100, 50))
    square, means, sqrt, outer, div, apply = 1, 2, 4, 1, 1, 2
    lerps = 3 * (100 + 50) / 5000
    assert found.flops == pytest.approx(square + means + sqrt + outer + div + apply + lerps)
    assert found.moved_bytes == pytest.approx(12 + 2 * found.state_bytes)


def test_a_slot_that_never_changes_is_read_but_not_written():
    b = Builder()
    anchor = b.slot("anchor", init="p")
    anchor.next = anchor
    found = cost(b.build(b.g + (b.p - anchor)))
    assert (found.state_bytes, found.moved_bytes) == (4, 16)


def test_a_program_that_reads_no_gradient_need_not_load_it():
    b = Builder()
    assert cost(b.build(b.p * 0.1)).moved_bytes == 8


def test_vectors_cost_what_the_fallback_costs():
    lion = BASELINES["lion"].program
    assert cost(factored(lion), (7,)) == cost(lion, (7,))
    assert cost(factored(lion), (7, 2)) == cost(factored(), (7, 2))
    with pytest.raises(ProgramError, match="rows and columns"):
        cost(factored(), (7,))


@pytest.mark.parametrize("shape", [(0,), (3, 0), (-1,)])
def test_shapes_without_elements_are_refused(shape):
    with pytest.raises(ProgramError, match="with elements"):
        cost(sgd(), shape)


@given(S.programs(fallback=False))
def test_dead_code_is_free_and_nothing_beats_the_compulsory_traffic(program):
    found = cost(program, (6, 4))
    assert found == cost(program.pruned(), (6, 4))
    assert found.unfused_bytes >= 0 and found.flops >= 2 and found.moved_bytes >= 8 + found.state_bytes
    assert str(found).startswith(f"{found.state_bytes:.4g} bytes of state")
