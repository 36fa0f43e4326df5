"""Mutations that rearrange what is there: splice a known block in, swap state slots, cross two parents."""

from __future__ import annotations

import inspect
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from optforge.primitives import SIGNALS, Builder, Const, Hyper, Kind, Program, Slot
from optforge.primitives.blocks import BLOCKS
from optforge.primitives.program import Arg
from optforge.search.space.draft import Draft, Space, draw, fresh_value

# On which scale a block's number is drawn.
_SCALES = {"decay": "unit", "eps": "log", "weight_decay": "log", "share": "unit", "weight": "log"}


@dataclass(frozen=True)
class Template:
    """A block as a program: its tensor arguments are slots, its numbers hyperparameters, its result the update."""

    program: Program
    inputs: tuple[str, ...]
    memory: tuple[str, ...]

    def fits(self, space: Space) -> bool:
        """Whether `space` has its ops and signals."""
        signals = {a for _, args in self.program.body for a in args if a in SIGNALS}
        return {op for op, _ in self.program.body} <= set(space.ops) and signals <= set(space.signals)


@cache
def templates(space: Space) -> tuple[Template, ...]:
    """The blocks that `space` allows."""
    found = []
    for block in map(BLOCKS.__getitem__, space.blocks):
        b, inputs, memory, given = Builder(), list[str](), list[str](), {}
        for name, parameter in list(inspect.signature(block).parameters.items())[1:]:
            if "float" in parameter.annotation:
                given[name] = b.hyper(f"the_{name}", 0.5, _SCALES[name])
                continue
            given[name] = slot = b.slot(f"the_{name}")  # `slot` itself is a word of the text form
            slot.next = slot
            (memory if "SlotExpr" in parameter.annotation else inputs).append(f"the_{name}")
        result = block(b, **given)
        if block.__name__ == "trust_ratio":  # a number: it does something where it multiplies
            result = result * given["direction"]
        found.append(Template(b.build(result), tuple(inputs), tuple(memory)))
    return tuple(t for t in found if t.fits(space))


def splice(program: Program, space: Space, rng: random.Random) -> Program | None:
    """Put a block of `primitives.blocks` on the way from a value to one of its uses.

    Its memory is a new slot, or an existing one if there are as many as may be; further inputs and numbers are drawn.
    """
    draft = Draft(program)
    place = rng.choice([place for place in draft.places() if draft.kind(draft.get(place)) is Kind.TENSOR])
    before = place[0] if place[0] >= 0 else len(draft.body)
    found = put_block(draft, draft.get(place), before, space, rng)
    if found is None:
        return None
    draft.put((place[0] + len(draft.body) - len(program.body), place[1]) if place[0] >= 0 else place, found)
    return draft.build()


def put_block(draft: Draft, value: Arg, before: int, space: Space, rng: random.Random) -> Arg | None:
    """Insert a random block's statements before position `before`, reading `value`; where its result is, if it fits."""
    known = templates(space)
    if not known:
        return None
    template = rng.choice(known)
    block = template.program
    if len(draft.body) + len(block.body) > space.max_statements:
        return None
    meaning: dict[Arg, Arg] = {}
    for position, name in enumerate(template.inputs):
        other = draw(draft, before, space, rng, Kind.TENSOR)
        meaning[name] = value if position == 0 or other is None else other
    for hyper in block.hypers:
        same = [h.name for h in draft.hypers if h.scale == hyper.scale]
        reads = same and rng.random() < 0.5
        meaning[hyper.name] = rng.choice(same) if reads else Const(fresh_value(hyper.scale, rng))
    for name in template.memory:
        tensors = [i for i, slot in enumerate(draft.state) if slot.kind is Kind.TENSOR]
        if len(draft.state) < space.max_slots:
            meaning[name] = draft.free_name()
            draft.state.append(Slot(str(meaning[name])))
            draft.outputs.append(meaning[name])
        elif tensors:
            meaning[name] = draft.state[rng.choice(tensors)].name
        else:
            return None
    for at, ((op, args), kind) in enumerate(zip(block.body, block.kinds, strict=True)):
        draft.insert(before + at, op, [meaning.get(a, a) for a in args], kind)
        meaning[at] = before + at
    following = dict(zip((s.name for s in block.state), block.next_state, strict=True))
    for name in template.memory:
        slots = [s.name for s in draft.state]
        draft.outputs[1 + slots.index(str(meaning[name]))] = meaning[following[name]]
    return meaning[block.update]


def swap_slots(program: Program, space: Space, rng: random.Random) -> Program | None:
    """Exchange two slots of one kind: what they become (1 in 2), or which of them one statement reads."""
    draft = Draft(program)
    pairs = [(i, j) for j, b in enumerate(draft.state) for i, a in enumerate(draft.state[:j]) if a.kind is b.kind]
    if not pairs:
        return None
    i, j = rng.choice(pairs)
    if rng.random() < 0.5:
        draft.outputs[1 + i], draft.outputs[1 + j] = draft.outputs[1 + j], draft.outputs[1 + i]
        return draft.build()
    other: dict[Arg, str] = {draft.state[i].name: draft.state[j].name, draft.state[j].name: draft.state[i].name}
    readers = [k for k, (_, args) in enumerate(draft.body) if any(a in other for a in args)]
    if not readers:
        return None
    op, args = draft.body[at := rng.choice(readers)]
    draft.body[at] = (op, [other.get(a, a) for a in args])
    return draft.build()


def crossover(program: Program, mate: Program, space: Space, rng: random.Random) -> Program | None:
    """The first statements of `program`, then the last of `mate`, which also decides the update.

    What the second part reads of the mate's first part is taken from the same place in the program if the kind agrees,
    else from any place of that kind; likewise slots and hyperparameters, by name. Slots of the mate without a
    counterpart are added as long as there is room.
    """
    cut = rng.randint(0, len(program.body))
    start = min(cut, len(mate.body)) if rng.random() < 0.5 else rng.randint(0, len(mate.body))
    if cut + len(mate.body) - start > space.max_statements:
        return None
    draft = Draft(program)
    draft.body, draft.kinds = draft.body[:cut], draft.kinds[:cut]
    meaning: dict[Arg, Arg] = {}
    for slot in mate.state:
        own = _counterpart(slot, draft, space, rng)
        if own is None:
            return None
        meaning[slot.name] = own
    for hyper in mate.hypers:
        meaning[hyper.name] = _nearest_hyper(hyper, draft.hypers, rng)

    def translated(arg: Arg) -> Arg | None:
        if type(arg) is int and arg not in meaning:
            kind = mate.kinds[arg]
            same = arg < cut and draft.kinds[arg] is kind
            found = arg if same else draw(draft, cut, space, rng, kind)
            if found is None:
                return None
            meaning[arg] = found
        return meaning.get(arg, arg)

    for at in range(start, len(mate.body)):
        op, given = mate.body[at]
        args = [translated(a) for a in given]
        if None in args:
            return None
        meaning[at] = len(draft.body)
        draft.body.append((op, args))  # type: ignore[arg-type]
        draft.kinds.append(mate.kinds[at])
    outputs = _outputs(program, cut, draft, space, rng)
    outputs[0] = translated(mate.update)
    names = [s.name for s in draft.state]
    for slot, following in zip(mate.state, mate.next_state, strict=True):
        if (own := meaning[slot.name]) in names:
            outputs[1 + names.index(str(own))] = translated(following)
    if any(arg is None for arg in outputs):
        return None
    draft.outputs = outputs  # type: ignore[assignment]
    return draft.build()


def _counterpart(slot: Slot, draft: Draft, space: Space, rng: random.Random) -> Arg | None:
    """The draft's value of the same kind that stands for a mate's slot: by name, a new slot, or any that there is."""
    if any(s.name == slot.name and s.kind is slot.kind for s in draft.state):
        return slot.name
    if len(draft.state) >= space.max_slots:
        return draw(draft, 0, space, rng, slot.kind)
    taken = {s.name for s in draft.state} | {h.name for h in draft.hypers}
    name = draft.free_name() if slot.name in taken else slot.name
    draft.state.append(Slot(name, slot.kind, slot.init))
    return name


def _nearest_hyper(hyper: Hyper, own: Sequence[Hyper], rng: random.Random) -> Arg:
    same = [h.name for h in own if h.scale == hyper.scale]
    if hyper.name in same:
        return hyper.name
    return rng.choice(same) if same and rng.random() < 0.5 else Const(hyper.default)


def _outputs(program: Program, cut: int, draft: Draft, space: Space, rng: random.Random) -> list[Arg | None]:
    """What is left of the program's own outputs after `cut`, others drawn; new slots keep their value."""
    outputs: list[Arg | None] = []
    wanted = [Kind.TENSOR, *(s.kind for s in program.state)]
    for arg, kind in zip((program.update, *program.next_state), wanted, strict=True):
        lost = type(arg) is int and arg >= cut
        outputs.append(draw(draft, len(draft.body), space, rng, kind) if lost else arg)
    return outputs + [slot.name for slot in draft.state[len(program.state) :]]
