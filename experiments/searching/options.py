"""What is asked of a search: its options, what determines it, and that a resumed one goes on as it began."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optforge.experiments.compare.fingerprints import changes, fingerprint
from optforge.experiments.errors import UserError, unknown
from optforge.experiments.files import write_atomic
from optforge.experiments.programs import resolve_program
from optforge.experiments.searching.presets import DEFAULTS, PRESETS
from optforge.experiments.tasks import task_names
from optforge.primitives import print_program, subset
from optforge.primitives.text import parse_program

if TYPE_CHECKING:
    from optforge.search.evolution.evolution import Evolution

BUDGET = "budget.json"


@dataclass(frozen=True)
class SearchOptions:
    """What the command line asks for; None means the preset's, the resumed run's or the default value.

    Attributes:
        tasks: names of the tasks that programs are scored on, with commas; ``proxies`` stands for eight.
        start: PROGRAMs that evolution starts from, separated by commas.
        ops: subsets of ops, or single ones, that mutations draw from, with commas.
        signals: inputs that mutations may introduce, with commas.
        blocks: names in `primitives.blocks.BLOCKS` that mutations may splice in, with commas, or ``all`` or ``none``.
        mutations: further mutations, of other packages, as in ``name`` or ``name=frequency``, with commas.
        max_statements: most statements of a program.
        max_slots: most state slots of a program.
        strategy: a row of `search.evolution.strategies.STRATEGIES`.
        seed: of all randomness.
        programs: stop after so many trained programs in all.
        minutes: stop after so much time in this call.
        population: programs that may become parents.
        tournament: rivals for each parent.
        islands: lineages that do not mix.
        migrate_every: candidates of an island between two that descend from its neighbour; 0 for never.
        restart_every: candidates between restarts; 0 for never.
        repeats: programs evaluated again with each batch.
        descent: whether programs that do not go downhill on simulated quadratics are left untrained.
        precision: of forward and backward passes, one of `search.training.population.gradients.PRECISIONS`.
        batch: programs trained together.
        lag: batches in flight at once.
        steps: length of each training run; each task's own by default.
        workers: processes; 0 trains in this one. By default one for each core.
        ray: address of a Ray cluster to evaluate on; `workers` is then the number of its actors.
        run_dir: an existing, empty directory, or with `resume` that of a run.
        resume: go on with the run in `run_dir`.
        json: where to write the final table, if anywhere.
        preset: named settings, see `experiments.searching.presets`.
        funnel: whether the best programs are then trained on other tasks, see `experiments.searching.funnel_run`.
        tune: trials for the numbers in each finalist and reference, see `experiments.searching.constants`; 0 for none.
        ablate: whether each statement of the best program is left out once, and all that can go is.
        stop_overfitting: end the search where only its own task still improves, not meta-validation.
    """

    run_dir: Path
    tasks: str | None = None
    start: str | None = None
    ops: str | None = None
    signals: str | None = None
    blocks: str | None = None
    mutations: str | None = None
    max_statements: int | None = None
    max_slots: int | None = None
    strategy: str | None = None
    seed: int | None = None
    programs: int | None = None
    minutes: float | None = None
    population: int | None = None
    tournament: int | None = None
    islands: int | None = None
    migrate_every: int | None = None
    restart_every: int | None = None
    repeats: int | None = None
    descent: bool | None = None
    precision: str | None = None
    batch: int | None = None
    lag: int | None = None
    steps: int | None = None
    workers: int | None = None
    ray: str | None = None
    resume: bool = False
    json: Path | None = None
    preset: str | None = None
    funnel: bool | None = None
    tune: int | None = None
    ablate: bool | None = None
    stop_overfitting: bool | None = None


def with_preset(options: SearchOptions) -> SearchOptions:
    """The options with those of their preset, of the budget that a resumed run was begun with, or a budget at all."""
    if options.preset is not None:
        if options.preset not in PRESETS:
            raise unknown("preset", options.preset, PRESETS)
        preset = PRESETS[options.preset]
        options = replace(options, **{n: v for n, v in preset.items() if getattr(options, n) is None})
    stored = options.run_dir / BUDGET
    if options.resume and stored.is_file():
        told = options.programs is not None or options.minutes is not None  # one of them alone is a budget, too
        try:
            kept = dict(json.loads(stored.read_text()))
            kept = {n: v for n, v in kept.items() if not (told and n in ("programs", "minutes"))}
            options = replace(options, **{n: v for n, v in kept.items() if getattr(options, n) is None})
        except (ValueError, TypeError, AttributeError):
            if not told:
                raise UserError(f"{stored} is damaged; say how far to go with --programs or --minutes") from None
    if options.programs is None and options.minutes is None:
        options = replace(options, **PRESETS["minutes"])
    return options


def keep_budget(options: SearchOptions) -> None:
    """What `--resume` goes on to where it is not told otherwise."""
    budget = {n: getattr(options, n) for n in ("programs", "minutes", "funnel", "tune", "ablate", "stop_overfitting")}
    write_atomic(options.run_dir / BUDGET, json.dumps(budget) + "\n")


def configuration(options: SearchOptions) -> dict[str, Any]:
    """What determines a search; kept in its ledger."""
    from optforge.primitives.blocks import BLOCKS
    from optforge.search.fitness.suite import MARGINS, RELATIVE_RATES
    from optforge.search.training.population.gradients import PRECISIONS

    chosen = {name: getattr(options, name) for name in DEFAULTS}
    config = {name: DEFAULTS[name] if value is None else value for name, value in chosen.items()}
    config |= {"task": config["tasks"], "tasks": task_names(config["tasks"])}
    config |= {"ladder": RELATIVE_RATES, "margins": MARGINS}
    config |= {name: _names(config[name]) for name in ("ops", "signals", "blocks", "mutations")}
    if config["blocks"] == ["all"]:
        config["blocks"] = list(BLOCKS)
    if config["precision"] not in PRECISIONS:
        raise unknown("precision", config["precision"], PRECISIONS)
    programs = [resolve_program(name.strip())[1] for name in config["start"].split(",")]
    texts = {program.key: print_program(program) for program in programs}
    if len(programs) > config["batch"]:
        raise UserError(f"{len(programs)} programs to start from do not fit into one batch of {config['batch']}")
    config |= {"programs": list(texts.values())}
    try:
        space = evolution(config).space
    except ValueError as error:
        raise UserError(str(error)) from None
    for name, program in zip(config["start"].split(","), programs, strict=True):
        used = {program.body[i].op for i in program.live.instructions}
        if missing := sorted(used - set(space.ops)):
            raise UserError(
                f"the start program {name.strip()} uses {', '.join(missing)}, which --ops leaves out; add "
                f"{'them' if len(missing) > 1 else 'it'}, or start from another program"
            )
    config["fingerprints"] = {name: fingerprint(name) for name in config["tasks"]}
    return dict(json.loads(json.dumps(config)))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip() not in ("", "none")]


def agreed(options: SearchOptions, stored: dict[str, Any]) -> dict[str, Any]:
    """The resumed run's own configuration, if what was asked for agrees with it."""
    if options.tasks is None and any(name.endswith(".py") for name in stored["tasks"]):
        raise UserError(f"{options.run_dir} trains what the Python file {stored['task']} says; name it: --tasks FILE")
    for name, known in stored.get("fingerprints", {}).items():
        if changed := changes(known, fingerprint(name)):
            raise UserError(
                f"{name} is another task than {options.run_dir} was begun with: its {' and '.join(changed)} changed; "
                "undo that, or begin a new run"
            )
    try:
        evolution(stored)  # what it needs may no longer be installed
    except ValueError as error:
        raise UserError(f"{options.run_dir} cannot go on: {error}") from None
    for name in DEFAULTS:
        asked = getattr(options, name)
        was = stored["task"] if name == "tasks" else stored[name]
        was = ",".join(was) if isinstance(was, list) else was
        if asked is not None and asked != was and not (name == "blocks" and asked == "all"):
            raise UserError(
                f"{options.run_dir} was begun with {name} {was} and cannot go on with {asked}; "
                f"leave --{name.replace('_', '-')} out, or begin a new run"
            )
    return stored


def evolution(config: dict[str, Any]) -> Evolution:
    """The search that a configuration means; raises `ValueError` for settings that make no sense together."""
    from optforge.experiments.programs import known_ops
    from optforge.search.evolution.evolution import Evolution
    from optforge.search.space.draft import Space
    from optforge.search.space.plugins import with_mutations

    names = (
        "seed", "population", "tournament", "batch", "lag", "islands", "migrate_every", "restart_every", "repeats",
    )  # fmt: skip
    return Evolution(
        start=tuple(map(parse_program, config["programs"])),
        space=Space(
            ops := subset(*config["ops"]),
            config["max_statements"],
            config["max_slots"],
            tuple(config["signals"]),
            tuple(config["blocks"]),
            with_mutations(config["mutations"]),
            prior=tuple((name, 1 + count) for name, count in known_ops().items() if name in ops),
        ),
        strategy=config["strategy"],
        bounded=True,
        **{name: config[name] for name in names},
    )
