"""Learned rates as a drop-in: compiled steps, buffers, other hyperparameters, hierarchy, spikes, the cap, all rules."""

from __future__ import annotations

import itertools
import math
import warnings

import pytest
import torch
from support.learned import PROGRAMS, Problem
from torch import nn

from optforge.baselines import BASELINES
from optforge.learned import learn
from optforge.learned.rules import CAP, MARGIN, MEMORY_OF_LARGE, RULES, TRUSTED, Seen, cap, on_scale, tower
from optforge.learned.spikes import counted, damping, follow, sampled
from optforge.learned.watch import watched
from optforge.primitives import Kind, ProgramError

EVERY = sorted(set(PROGRAMS) - {"prodigy"})


@pytest.mark.parametrize("name", EVERY)
def test_compiled_is_eager(name):
    ended = []
    for compiled in (False, True):
        problem = Problem()
        optimizer = learn(problem.groups(1e-4, 2.0), PROGRAMS[name], compile=compiled, per="tensor")
        for step in range(12):
            problem.step(optimizer, step)
        ended.append((problem.flat(), optimizer.learned_values()["lr"]))
    torch.testing.assert_close(ended[1][0], ended[0][0], rtol=1e-10, atol=1e-12)
    assert ended[1][1] == pytest.approx(ended[0][1], rel=1e-9) and ended[0][1] != 1e-4


@pytest.mark.parametrize(("name", "buffers"), [("adamw", 0), ("adam", 0), ("momentum", 0), ("lion", 1), ("sgd", 1)])
def test_buffers_of_a_learned_rate(name, buffers):
    """None where the state tells the last update; plain descent and Lion keep it."""
    watch = watched(BASELINES[name].program)
    extra = [s for s in watch.program.state if s.name in watch.extra and s.kind is Kind.TENSOR]
    assert len(extra) == buffers


@pytest.mark.parametrize(("name", "per_hyper"), [("beta1", 2), ("weight_decay", 1)])
def test_buffers_of_other_hyperparameters(name, per_hyper):
    """The last derivative of the update, and for a decay that of the average."""
    watch = watched(BASELINES["adamw"].program, ("lr", name))
    assert len([s for s in watch.program.state if s.name in watch.extra and s.kind is Kind.TENSOR]) == per_hyper


def test_other_hyperparameters_stay_in_range_and_move():
    problem = Problem()
    optimizer = learn(problem.model.parameters(), PROGRAMS["adamw"], 0.01, what=("lr", "beta1", "eps", "weight_decay"))
    for step in range(40):
        problem.step(optimizer, step)
    values = optimizer.learned_values()
    begin = {"beta1": 0.9, "eps": 1e-8, "weight_decay": 0.01}
    assert 0 < values["beta1"] < 1 and values["eps"] > 0 and values["weight_decay"] > 0
    assert all(values[name] != start for name, start in begin.items())


@pytest.mark.parametrize("compiled", [False, True])
def test_a_decay_comes_to_zero_and_leaves_it(compiled):
    """It moves as log(1 - β), by κ/10 a step at most, so that 0 is a value like others and the least of all."""
    p = nn.Parameter(torch.full((4, 3), 100.0, dtype=torch.float64))
    optimizer = learn([p], PROGRAMS["momentum"], 0.01, what="momentum", momentum=0.2, hyper_lr=0.5, compile=compiled)
    found = []
    for step in range(60):
        turned = step < 40 and step % 4 >= 2  # against the gradient two steps before, which momentum would repeat
        p.grad = torch.full_like(p, -1.0 if turned else 1.0)
        optimizer.step()
        found.append(-math.log1p(-optimizer.learned_values()["momentum"]))
    assert found[30:40] == [0.0] * 10
    assert found[42:] == pytest.approx([0.05 * k for k in range(1, 19)], rel=1e-9)  # the gradients agree entirely


@pytest.mark.parametrize("per", ["global", "group", "tensor"])
def test_deviations_from_the_parent(per):
    """Two parameters, of which one sees gradients that agree and the other gradients that turn around."""
    steady, turning = (nn.Parameter(torch.ones(3, 3)) for _ in range(2))
    groups = [{"params": [steady], "lr": 0.01}, {"params": [turning], "lr": 0.01}]
    optimizer = learn(groups, PROGRAMS["sgd"], rule="multiplicative", hyper_lr=0.1, per=per)
    for step in range(30):
        steady.grad, turning.grad = torch.ones(3, 3), (-1.0) ** step * torch.ones(3, 3)
        optimizer.step()
    logs = [float(g["learning"]["log"]) for g in optimizer.param_groups]
    if per == "global":
        assert logs[0] == logs[1]
    else:
        assert logs[0] > logs[1] + 0.1
    factor = watched(PROGRAMS["sgd"]).factor
    own = [optimizer.state[p][factor].item() for p in (steady, turning)]
    assert own == [1.0, 1.0] if per != "tensor" else own[0] > 1 > own[1]


@pytest.mark.parametrize("name", ["adamw", "normed"])
def test_a_rate_far_too_large_is_bounded_before_the_first_step(name):
    """The probe sees what the step sees, the norm of all gradients included."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 4))
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = learn(model.parameters(), PROGRAMS[name], 1e9)
    (1e6 * model(torch.randn(16, 64)).square().mean()).backward()
    optimizer.step()
    moved = [(p - b).norm() / math.sqrt(p.shape[0]) for p, b in zip(model.parameters(), before, strict=True)]
    assert min(moved[0], moved[2]) <= CAP * 1.01 and max(moved[0], moved[2]) < 10 * CAP


def test_a_rate_below_the_cap_is_left_alone_at_first():
    problem = Problem()
    optimizer = learn(problem.model.parameters(), PROGRAMS["adamw"], 1e-5)
    problem.step(optimizer, 0)
    assert optimizer.learned_values() == {"lr": pytest.approx(1e-5)}


def test_spikes_by_hand():
    """Norms of 5, 20 and 500 beside a usual one of 5; what the sample does not show is left alone on CPUs."""
    usual, gradients = number(5.0), [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    some = sampled(gradients)
    assert some == 5.0 and damping(gradients, usual, some, some) == (1, None)
    larger, large = [4 * g for g in gradients], [100 * g for g in gradients]
    assert damping(larger, usual, sampled(larger), some) == (1, 20.0)
    assert damping(large, usual, sampled(large), some) == (pytest.approx(0.01), 500.0)
    assert damping(large, usual, some, some) == (1, None)
    assert damping(large, number(0.0), sampled(large), number(0.0))[0] == 1
    assert follow(usual, number(6.0)).item() == pytest.approx(5.1)
    assert follow(usual, number(500.0)).item() == pytest.approx(9.5)
    assert follow(usual, number(math.nan)) == usual and follow(number(0.0), usual) == usual
    assert follow(usual, number(0.0)) == follow(usual, number(math.inf)) == usual
    infinite = [torch.tensor([math.inf, 1.0])]
    assert damping(infinite, usual, number(math.inf), some) == (1, math.inf)
    assert counted(number(0.0), usual, number(math.inf)) == 0
    assert damping(large, usual, sampled(large), some, number(8.0))[0] == 1
    assert counted(number(2.0), usual, number(500.0)).item() == pytest.approx(2.998)
    for usual_one in (number(20.0), number(0.0)):
        assert counted(number(2.0), usual_one, number(20.0)).item() == pytest.approx(1.998)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_sample_of_a_large_gradient(dtype):
    g = torch.arange(100_000.0, dtype=torch.float64).to(dtype)
    norm = sampled([g])
    assert norm == pytest.approx(math.sqrt(124 / 3) * 1e5, rel=0.01)  # of 124 that are spread evenly
    across = g.view(100, 1000).T.clone().T  # strided
    assert sampled([across]) == pytest.approx(norm, rel=1e-9)
    many = [g if i % 3 == 0 else 1e9 * g for i in range(93)]  # of these, every third is looked at
    assert sampled(many) == pytest.approx(sampled(31 * [g]))


def test_norms_of_half_precision_do_not_overflow():
    """A million elements of 200 have a norm of 2e5, which float16 cannot hold."""
    gradients = [torch.full((1000, 1000), 200.0, dtype=torch.float16)]
    some = sampled(gradients)
    found = pytest.approx(2e5, rel=1e-3)  # float32 sums a million of them
    assert damping(gradients, number(5e4), some, some / 4) == (1, found)
    assert damping(gradients, number(1e4), some, some / 20) == (pytest.approx(0.05, rel=1e-3), found)


@pytest.mark.parametrize("shape", [(64, 64), (100, 64), (128, 784), (32, 3, 32, 32), (784, 128)])
@pytest.mark.parametrize("part", ["first", "last"])
def test_a_sample_is_spread_over_rows_and_columns(shape, part):
    """Inputs that are always 0, as the edges of pictures are, and units that are off leave 0 in half of a gradient."""
    for dim in (0, len(shape) - 1):
        g = torch.ones(shape)
        half = shape[dim] // 2
        g.narrow(dim, 0 if part == "first" else half, half).zero_()
        for dtype in (torch.float32, torch.bfloat16):
            assert sampled([g.to(dtype)] * 4) ** 2 == pytest.approx(62, rel=0.3)


def number(x):
    return torch.tensor(x, dtype=torch.float64)


def test_cap_by_hand():
    """It remembers the largest update, allows the rate that was given, and stops once that is ever too large."""
    bound, large, given = cap(number(0.0), number(0.004), number(10.0))
    assert (bound.exp().item(), large.item(), given.item()) == (pytest.approx(0.004), 10.0, 0.004)
    bound, large, given = cap(large, given, number(1.0))
    assert large.item() == pytest.approx(10 * MEMORY_OF_LARGE) and bound.exp().item() == pytest.approx(0.004)
    bound, large, given = cap(large, given, number(1.01 * TRUSTED / 0.004))
    assert given.item() == 0 and bound.exp().item() == pytest.approx(CAP / large.item())
    for _ in range(3000):
        bound, large, given = cap(large, given, number(1.0))
    assert large.item() == 1.0 and bound.exp().item() == pytest.approx(CAP)


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_small_cosine_moves_nothing(sign):
    """Unlike that of the rule without the other side, which creeps."""
    for c, moves in ((0.9 * MARGIN, False), (1.1 * MARGIN, True)):
        seen = Seen(number(sign * c), number(1.0), number(1.0), number(0.01))
        change, _ = RULES["two-sided"].step(RULES["two-sided"].init(), seen, 0.3)
        assert change.item() == pytest.approx(0.3 * sign * c if moves else 0.0)
        assert RULES["traced"].step(RULES["traced"].init(), seen, 0.3)[0].item() == pytest.approx(0.3 * sign * c)


def test_a_given_rate_between_both_caps_is_kept():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 4))
    rates = {}
    for lr in (1e-3, 3e-3, 1e-1):  # the first matrix has 64 inputs: Adam's first step is 8 of its sizes
        optimizer = learn(model.parameters(), PROGRAMS["adamw"], lr)
        model.zero_grad()
        model(torch.randn(16, 64)).square().mean().backward()
        optimizer.step()
        rates[lr] = optimizer.learned_values()["lr"]
    assert rates[1e-3] == pytest.approx(1e-3) and rates[3e-3] == pytest.approx(3e-3)
    assert rates[1e-1] < 2 * CAP / 5


@pytest.mark.parametrize("lr", [1e-4, 1e-2, 10.0])
def test_one_spike_leaves_the_run_unaffected(lr):
    """One gradient 10⁴ times too large, in the middle of a run: the end is within 10 % of that without."""
    ends = []
    for spike in (False, True):
        problem = Problem()
        optimizer = learn(problem.model.parameters(), PROGRAMS["adamw"], lr)
        for step in range(80):
            optimizer.zero_grad()
            problem.loss(step % 40).backward()
            if spike and step == 20:
                for p in problem.model.parameters():
                    p.grad *= 1e4
            optimizer.step()
        ends.append(sum(problem.loss(s).item() for s in range(40)) / 40)
    assert ends[1] == pytest.approx(ends[0], rel=0.1)


@pytest.mark.filterwarnings("ignore:.*not finite. nothing is learned")
@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_never_enters(rule, bad):
    p = nn.Parameter(torch.ones(3, 3))
    optimizer = learn([p], PROGRAMS["adamw"], 0.01, what=("lr", "weight_decay"), rule=rule, per="tensor")
    for step in range(12):
        p.grad = torch.full((3, 3), bad) if step in (0, 5) else torch.ones(3, 3)
        optimizer.step(lambda step=step: bad if step in (1, 6) else 9.0)
        values = optimizer.learned_values()
        assert all(0 < v < math.inf for v in values.values())


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"polyak"}))
@pytest.mark.parametrize("told", [False, True])
def test_losses_and_gradients_that_are_not_finite_get_a_sentence_once(rule, told):
    p = nn.Parameter(torch.ones(3, 3))
    optimizer = learn([p], PROGRAMS["adamw"], 0.01, rule=rule)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for step in range(6):
            p.grad = torch.full((3, 3), math.nan) if step > 2 else torch.ones(3, 3)
            optimizer.step((lambda step=step: math.nan if step > 2 else 1.0) if told else None)
            assert len(found) == (step > 2)
    cause = "the loss is" if told else "gradients, as of a loss of nan, are"
    assert str(found[0].message).startswith(f"{cause} not finite: nothing is learned from such steps")
    assert issubclass(found[0].category, RuntimeWarning)


def test_tower_by_hand():
    """Two levels: κ itself follows the product of neighbouring cosines."""
    rule, k = tower(2), 0.1
    memory, log_rate, last = rule.init(), 0.0, 0.0
    for c in (0.5, -0.2, 0.9, 0.4):
        seen = Seen(*(torch.tensor(x, dtype=torch.float64) for x in (c, 1.0, 1.0, 0.01)))
        change, memory = rule.step(memory, seen, k)
        log_rate, last = log_rate + k * c * last, c
        assert change.item() == pytest.approx(k * math.exp(log_rate) * c)
    with pytest.raises(ProgramError, match="from 1 to 100 levels, got 0"):
        tower(0)


def test_a_tower_of_three_levels_by_hand_and_each_level_counts():
    """The rate of κ follows products of neighbouring products of neighbouring cosines."""
    cosines, k = (0.5, -0.2, 0.9, 0.4, -0.7, -0.6), 0.1
    rule, log1, log2, c_last, h_last = tower(3), 0.0, 0.0, 0.0, 0.0
    memory = rule.init()
    for c in cosines:
        change, memory = rule.step(memory, Seen(c, 1.0, 1.0, 0.01), k)
        h = c * c_last
        log2 += k * h * h_last
        log1 += k * math.exp(log2) * h
        c_last, h_last = c, h
        assert change == pytest.approx(k * math.exp(log1) * c)
    sums = []
    for depth in (1, 2, 3, 5):
        rule, total = tower(depth), 0.0
        memory = rule.init()
        for c in cosines:
            change, memory = rule.step(memory, Seen(c, 1.0, 1.0, 0.01), 1.0)
            total += change
        sums.append(float(total))
    assert len(set(sums)) == 4


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"additive"}))
def test_every_rule_lifts_a_small_rate(rule):
    p = nn.Parameter(torch.ones(4, 4, dtype=torch.float64))
    optimizer = learn([p], PROGRAMS["sgd"], 1e-4, rule=rule)
    for _ in range(10):
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        optimizer.step(loss.detach)
    assert optimizer.learned_values()["lr"] > 1.05e-4


def test_rules_do_not_depend_on_the_unit_of_the_loss():
    """Adam's updates do not, either; all but the additive rule."""
    rates = []
    for unit in (1.0, 1e4):
        problem = Problem()
        optimizer = learn(problem.model.parameters(), PROGRAMS["adamw"], 1e-3, eps=1e-30)
        for step in range(20):
            optimizer.zero_grad()
            (unit * problem.loss(step)).backward()
            optimizer.step()
        rates.append(optimizer.learned_values()["lr"])
    assert rates[0] == pytest.approx(rates[1], rel=1e-9)


HARD = (0.0, 1.0, -2.5, 1e-200, 1e200, math.inf, math.nan)


@pytest.mark.parametrize("rule", RULES)
def test_rules_compute_with_floats_as_with_tensors(rule: str) -> None:
    memory = {name: x.item() + 0.3 for name, x in RULES[rule].init().items()}
    for dot, g2, u2 in itertools.product(HARD, (abs(x) for x in HARD), (0.0, 4.0)):
        seen = (dot, g2, u2, 0.01)
        change, after = RULES[rule].step(memory, Seen(*seen), 0.1)
        tensors = RULES[rule].step({k: number(x) for k, x in memory.items()}, Seen(*map(number, seen)), 0.1)
        found = torch.tensor([change, *after.values()], dtype=torch.float64)
        torch.testing.assert_close(found, torch.stack([tensors[0], *tensors[1].values()]), equal_nan=True)


@pytest.mark.parametrize("scale", ["log", "unit", "linear"])
def test_other_numbers_move_with_floats_as_with_tensors(scale: str) -> None:
    for value, change in itertools.product((1e-300, 0.3, 0.9, 1.0), (-0.1, 0.0, 5.0)):
        moved = on_scale(scale, number(value), 0.5, number(change))
        assert on_scale(scale, value, 0.5, change) == pytest.approx(moved.item(), rel=1e-12)


def test_caps_compute_with_floats_as_with_tensors() -> None:
    for given in itertools.product((0.0, 0.3, math.inf), (0.0, 0.004), HARD):
        expected = torch.stack(cap(*map(number, given)))
        torch.testing.assert_close(torch.tensor(cap(*given), dtype=torch.float64), expected, equal_nan=True)


@pytest.mark.parametrize(("name", "lr"), [("sgd", 1e-6), ("sgd", 10.0), ("adamw", 1e-6)])
def test_one_spike_in_the_middle_leaves_the_learned_rate_alone(name, lr):
    """All gradients of one step of 200 are 10,000 times what they should be."""

    def run(spike):
        generator = torch.Generator().manual_seed(0)
        x, w = (torch.randn(s, generator=generator) for s in ((256, 8), (8, 3)))
        y = (x @ w).argmax(1)
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        optimizer = learn(net.parameters(), BASELINES[name].program, lr=lr)
        for t in range(200):
            i = torch.randint(256, (32,), generator=generator)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x[i]), y[i]).backward()
            for p in net.parameters() if t == spike else ():
                p.grad *= 1e4
            optimizer.step()
        with torch.no_grad():
            return optimizer.learned_values()["lr"], torch.nn.functional.cross_entropy(net(x), y).item()

    (rate, loss), (spiked, after) = run(None), run(120)
    assert 0.7 * rate < spiked < 1.5 * rate and after < 1.15 * loss


@pytest.mark.parametrize(
    ("hyper", "start"), [("beta1", 0.9), ("beta1", 0.98), ("beta1", 0.999), ("beta2", 0.999), ("beta2", 0.9999)]
)
@pytest.mark.parametrize(("dtype", "compiled"), [(torch.float32, False), (torch.float32, True), (torch.float64, False)])
def test_a_derivative_that_is_rounding_moves_nothing(hyper, start, dtype, compiled):
    """The first update of AdamW does not depend on its decays: its averages are corrected for their bias."""
    p = torch.nn.Parameter(torch.linspace(-1, 1, 12, dtype=dtype))
    optimizer = learn([p], BASELINES["adamw"].program, lr=1e-3, what=[hyper], compile=compiled, **{hyper: start})
    for step in range(2):
        p.grad = torch.linspace(1, 3, 12, dtype=dtype) * p.detach() * (1 + step)
        optimizer.step()
    assert optimizer.learned_values()[hyper] == start
    for step in range(2, 5):
        p.grad = torch.linspace(1, 3, 12, dtype=dtype) * p.detach() * (1 + step)
        optimizer.step()
    assert abs(optimizer.learned_values()[hyper] - start) > 1e-3 * (1 - start)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_factors_of_tensors_are_in_the_step_that_is_recovered(compiled):
    """AdamW's last step is recomputed from its averages and, for weight decay, from the rate of each tensor."""
    problem = Problem()
    params = list(problem.model.parameters())
    optimizer = learn(params, PROGRAMS["adamw"], 0.02, per="tensor", hyper_lr=0, weight_decay=3.0, compile=compiled)
    problem.step(optimizer, 0)
    for k, p in enumerate(params):
        optimizer.state[p][watched(PROGRAMS["adamw"]).factor].fill_(1.0 + k)
    before = problem.flat()
    problem.step(optimizer, 1)
    moved = problem.flat() - before
    problem.step(optimizer, 2)
    gradient = torch.cat([p.grad.reshape(-1) for p in params])
    assert optimizer.hypergradient.item() == pytest.approx((gradient @ moved).item() / 0.02, rel=1e-9)


@pytest.mark.parametrize("rules", list(itertools.permutations(["two-sided", "tower", "scaled"], 2)))
def test_a_checkpoint_of_another_rule_goes_on_with_memory_that_begins_anew(rules):
    p, q = (torch.nn.Parameter(torch.linspace(-1, 1, 12)) for _ in range(2))
    first, second = (
        learn([x], BASELINES["adamw"].program, lr=1e-3, rule=r) for x, r in zip((p, q), rules, strict=True)
    )

    def step(x, optimizer):
        x.grad = x.detach().clone()
        optimizer.step()

    for _ in range(4):
        step(p, first)
    second.load_state_dict(first.state_dict())
    assert second.learned_values() == first.learned_values()
    for _ in range(2):
        step(q, second)
    assert math.isfinite(second.learned_values()["lr"])
