"""A checkpoint goes where it came from: what differs is said before anything changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.routing import ADAMW, BY_SHAPE, LION, named, no_embedding, orthogonal, step, through_file
from support.strategies import assert_same
from torch import nn

from optforge.learned import LearnedOptimizer
from optforge.primitives import Program, ProgramError, ProgramOptimizer, parse_program


def test_checkpoint_with_other_routes_is_refused() -> None:
    first = ProgramOptimizer(named(), orthogonal(LION), where=no_embedding)
    step(first, 0)
    saved = first.state_dict()
    with pytest.raises(
        ProgramError, match=r"parameter 0, '0.weight', went to the fallback, but here it goes to the program; build"
    ):
        ProgramOptimizer(named(), orthogonal(LION)).load_state_dict(saved)
    ProgramOptimizer(named(), orthogonal(LION), where=no_embedding).load_state_dict(saved)
    del saved["routes"]  # both programs keep a slot of the same name and shape
    ProgramOptimizer(named(), orthogonal(LION)).load_state_dict(saved)
    other = ProgramOptimizer(named(), orthogonal(ADAMW)).state_dict()
    assert other["routes"] == BY_SHAPE


def text(*lines: str) -> Program:
    return parse_program("\n".join(("optforge 1", *lines)))


SLOW = ("hyper beta = 0.9 unit", "slot m = 0 tensor", "x0 = lerp(g, m, beta)", "update x0", "next m = x0")
LION_HEAD = [line for line in str(LION).splitlines() if line.startswith(("hyper", "slot"))]
OTHERS = {  # what is loaded into an optimizer of LION, and what is said of it
    "torch": (
        lambda ps: torch.optim.SGD(ps, momentum=0.9),
        r"state of parameter 0 is momentum_buffer, but this one's m, step",
    ),
    "adamw": (lambda ps: torch.optim.AdamW(ps), "state of parameter 0 is exp_avg, exp_avg_sq, step, but this one's"),
    "program": (
        lambda ps: ProgramOptimizer(ps, ADAMW),
        r"another program, which has 'hyper eps' where this one has 'hyper weight_decay'",
    ),
    "alike": (
        lambda ps: ProgramOptimizer(ps, text(*LION_HEAD, "x0 = sub(m, g)", "update g", "next m = x0")),
        r"which has 'x0 = sub\(m, g\)' where this one has 'x0 = .*; if its state .* delete 'program'",
    ),
    "shorter": (
        lambda ps: ProgramOptimizer(ps, text(*SLOW)),
        "which has 'hyper beta' where this one has 'hyper beta1'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_checkpoint_of_another_program_is_refused_before_anything_changes(name: str, compiled: bool) -> None:
    make, said = OTHERS[name]
    other = make([nn.Parameter(torch.ones(2, 3))])
    step(other, 0)
    p = nn.Parameter(torch.ones(2, 3))
    optimizer = ProgramOptimizer([p], LION, 0.1, compile=compiled)
    step(optimizer, 0)
    before = copy.deepcopy((p.detach(), dict(optimizer.state[p])))
    with pytest.raises(ProgramError, match=said):
        optimizer.load_state_dict(through_file(other.state_dict()))
    assert_same((p.detach(), dict(optimizer.state[p])), before)
    assert optimizer.param_groups[0]["lr"] == 0.1
    step(optimizer, 1)


def test_what_a_checkpoint_without_program_lacks_is_named() -> None:
    """Distributed checkpoints hold state and groups only."""

    def saved(shape: tuple[int, ...] = (2, 3)) -> dict[str, Any]:
        optimizer = ProgramOptimizer([("w", nn.Parameter(torch.ones(shape)))], LION)
        step(optimizer, 0)
        return {k: v for k, v in optimizer.state_dict().items() if k in ("state", "param_groups")}

    optimizer = ProgramOptimizer([("w", nn.Parameter(torch.ones(2, 3)))], LION)
    optimizer.load_state_dict(saved())
    with pytest.raises(ProgramError, match=r"slot 'm' of parameter 0, 'w', has shape \(3, 2\), but \(2, 3\) is needed"):
        optimizer.load_state_dict(saved((3, 2)))
    lacking = saved()
    del lacking["param_groups"][0]["beta1"]
    with pytest.raises(ProgramError, match="a parameter group has no hyperparameter 'beta1'"):
        optimizer.load_state_dict(lacking)
    lacking = saved()
    del lacking["state"][0]["step"]
    with pytest.raises(ProgramError, match="its state of parameter 0, 'w', is m, but this one's m, step"):
        optimizer.load_state_dict(lacking)


def test_program_with_other_defaults_may_go_on() -> None:
    first, second = (ProgramOptimizer(named(), p) for p in (LION, LION.with_defaults(beta1=0.5)))
    step(first, 0)
    second.load_state_dict(first.state_dict())
    assert second.param_groups[0]["beta1"] == 0.9


def test_learned_and_plain_checkpoints_fit_each_other() -> None:
    plain, learned = ProgramOptimizer(named(), LION), LearnedOptimizer(named(), LION)
    for o in (plain, learned):
        step(o, 0)
    saved = plain.state_dict(), learned.state_dict()
    plain.load_state_dict(saved[1])
    learned.load_state_dict(saved[0])
    for o in (plain, learned):
        step(o, 1)
