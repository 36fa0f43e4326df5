"""Certificates of rules whose properties are known, each property once true and once false."""

from __future__ import annotations

import json
import math
import time

import pytest
from hypothesis import given, settings
from support import strategies as S

from optforge.baselines import BASELINES, NAMED
from optforge.primitives import Builder, Kind
from optforge.primitives.analysis.certificate import certificate


def rule(update, *slots):
    """A program from a function of the builder and its slots; each slot is (name, next value, kind)."""
    b = Builder()
    made = [b.slot(name, kind) for name, _, kind in slots]
    for slot, (_, following, _) in zip(made, slots, strict=True):
        slot.next = following(b, slot)
    return b.build(update(b, *made))


MOMENTUM = ("m", lambda b, m: m * 0.9 + b.g, Kind.TENSOR)
RULES = {
    "square": rule(lambda b: b.square(b.g) * b.sign(b.g)),
    "root": rule(lambda b: b.sqrt_abs(b.g) * b.sign(b.g)),
    "inverse": rule(lambda b: b.reciprocal(b.g)),
    "logarithm": rule(lambda b: b.log_abs(b.g)),
    "walk": rule(lambda b, s: b.g + 0 * s.next, ("s", lambda b, s: s + b.step * b.norm(b.g), Kind.SCALAR)),
    "small": rule(  # the slot that grows is hidden behind one that is a million times larger
        lambda b, s, big: b.g + 0 * s + 0 * big,
        ("s", lambda b, s: s + 1e-9 * b.g * b.g, Kind.TENSOR),
        ("big", lambda b, big: 0.5 * big + 1e6 * b.g, Kind.TENSOR),
    ),
    "explosion": rule(lambda b, s: b.g + s, ("s", lambda b, s: 3 * s + b.g, Kind.TENSOR)),
    "ascent": rule(lambda b: -b.g),
    "decay": rule(lambda b: b.p * 0.1),
    "cancelled": rule(lambda b: (b.g - b.g) + b.p),
    "not a number": rule(lambda b: b.sqrt(b.g)),
    "divides by zero": rule(lambda b: b.g / b.abs(b.g)),
    "largest": rule(lambda b: b.g / b.global_norm),
    "trust": rule(lambda b: b.g * (b.norm(b.p) / b.norm(b.g))),
    "orthogonal": rule(lambda b, m: b.orthogonalise(m.next), MOMENTUM),
    "timed": rule(lambda b: b.sign(b.g) * (1 - b.progress)),
}  # fmt: skip
LINEAR = {"gradient-descent", "sgd", "momentum", "nesterov"}
ALL = RULES | {name: row.program for name, row in (BASELINES | NAMED).items()}


@pytest.fixture(scope="module")
def found():
    return {name: certificate(program) for name, program in ALL.items()}


def those(found, test):
    return {name for name, c in found.items() if test(c)}


def test_dependence_on_the_gradient(found):
    assert those(found, lambda c: not c.depends_on_gradient) == {"decay", "cancelled"}


def test_scaling(found):
    assert those(found, lambda c: c.scaling == "linear") == LINEAR | {"walk", "ascent", "explosion", "small"}
    others = {"square", "root", "inverse", "logarithm", "not a number", "lion-raw", "mars", "yogi"}
    assert those(found, lambda c: c.scaling == "other") == others
    assert those(found, lambda c: c.scaling == "invariant") >= {
        "adamw",
        "lion",
        "lion-raw-ablated",
        "trust",
        "orthogonal",
    }
    exponents = {"square": 2, "root": 0.5, "inverse": -1, "sgd": 1, "lion": 0, "trust": 0}
    for name, exponent in exponents.items():
        assert found[name].exponent == pytest.approx(exponent, abs=0.01)


def test_bounded_updates(found):
    unbounded = LINEAR | {"square", "root", "inverse", "logarithm", "walk", "small", "explosion", "ascent",
                          "not a number"}  # fmt: skip
    assert those(found, lambda c: not c.bounded_update) == unbounded
    assert found["lion"].largest_update == 1 and found["sgd"].largest_update > 1e6
    assert math.isnan(found["not a number"].largest_update)


def test_bounded_state(found):
    assert those(found, lambda c: not c.bounded_state) == {
        "adagrad",
        "walk",
        "small",
        "explosion",
        "schedule-free-adamw",
        "ademamix",  # whose slow average still grows when the look ends
    }
    assert found["adagrad"].state_growth == pytest.approx(2, abs=0.05) and found["explosion"].state_growth == math.inf
    assert found["sgd"].state_growth == 1


def test_finite(found):
    assert those(found, lambda c: not c.finite) >= {"inverse", "not a number", "divides by zero", "lion-raw"}
    assert those(found, lambda c: c.finite) >= {"sgd", "adamw", "lion", "momentum", "orthogonal", "logarithm"}


def test_descent(found):
    for name in ("sgd", "momentum", "adamw", "lion", "orthogonal", "timed", "decay"):
        assert 0.2 < found[name].descent_cosine <= 1
    assert found["ascent"].descent_cosine < -0.5
    assert math.isnan(found["not a number"].descent_cosine)


def test_memory(found):
    assert found["adamw"].state_bytes == 8 and found["lion"].state_bytes == 4 and found["sgd"].state_bytes == 0


def test_every_property_has_a_sentence(found):
    for c in found.values():
        sentences = c.sentences()
        assert len(sentences) == 7 and all(s.endswith(".") and s[0].isupper() for s in sentences)
        json.dumps(c.as_dict(), allow_nan=False)
    assert "Other gradients do not change the update." in found["decay"].sentences()
    assert "It has no state." in found["sgd"].sentences()


def test_a_certificate_takes_little_time_and_is_the_same_every_time():
    start = time.perf_counter()
    first = certificate(RULES["orthogonal"])
    assert time.perf_counter() - start < 10  # a fraction of a second, on a machine with nothing else to do
    assert certificate(RULES["orthogonal"]) == first


@settings(max_examples=15)
@given(S.programs())
def test_any_program_can_be_certified(program):
    assert len(certificate(program).sentences()) == 7
