"""The report of searches: verdict, progress, controls, Pareto front, lineage of the best, and what it is."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from optforge.experiments.compare.comparison import Comparison
from optforge.experiments.compare.tables import Table, number
from optforge.experiments.errors import UserError
from optforge.experiments.report.blocks import Code, Figures, Fold, Formula, Items, Section, Text, facts
from optforge.experiments.report.comparison_sections import comparison_from_json, comparison_sections
from optforge.experiments.report.figures import controls_panel, duplicates_panel, fitness_panel, pareto_panel
from optforge.experiments.report.funnel_plot import panel
from optforge.experiments.report.lineage import ancestors, lineage, lineage_blocks
from optforge.experiments.report.runs import Row, SearchRun
from optforge.primitives import Program
from optforge.primitives.analysis.certificate import certificate
from optforge.primitives.export.pseudocode import pseudo_code
from optforge.search.duplicates.cache import Verdict

_FRONT = 15


def search_verdict(runs: Sequence[SearchRun]) -> list[str]:
    """What searches found, in sentences: the final comparison's if there is one, and how the controls did."""
    run = subject(runs)
    champion, rows = run.champion, run.rows
    if champion is None:
        return [f"None of {len(rows):,} programs could be trained on {run.config.get('task')}."]
    found = []
    if run.final.get("table"):
        found.append(_final(run).verdict)
    else:
        start = rows[0]
        change = "" if not math.isfinite(start.score) else f", against {start.score:.4g} of the program it started from"
        found.append(
            f"Of {len(rows):,} programs trained on {run.config.get('task')}, program {champion.number} is the best, "
            f"with a score of {champion.score:.4g}{change}. The runs that chose it flatter it: whether it is better, "
            "only fresh seeds can tell (optforge compare)."
        )
    if len(runs) > 1:
        found.append(_control_sentence(runs))
    return found


def subject(runs: Sequence[SearchRun]) -> SearchRun:
    """The search that is reported in full: the first that is no control, or else the first."""
    return next((r for r in runs if r.strategy == "evolution"), runs[0])


def search_sections(runs: Sequence[SearchRun]) -> list[Section]:
    """Everything after the verdict, of searches with the same protocol."""
    run = subject(runs)
    sections = []
    if len(runs) > 1:
        budget = min(len(r.rows) for r in runs)
        panel = controls_panel([(name, r) for name, r in zip(labels(runs), runs, strict=True)], budget)
        sections.append(Section("Controls", (Figures((panel,)), _control_table(runs), Text(_CONTROLS, "note"))))
    if run.champion is not None:
        line, front = ancestors(run.rows, run.champion), run.pareto()
        panels = [fitness_panel(run, line), pareto_panel(run, front)]
        panels += [duplicates_panel(run)] if run.batches else []
        sections.append(Section(f"Search: {labels([run])[0]}", (Figures(tuple(panels)), _counters(run))))
        sections.append(_champion_section(run, run.champion))
        steps = lineage(line)
        gains = sum(step.gain for step in steps)
        text = f"{len(steps) - 1} generations, {gains} of them better than all before (★); the largest gains are open."
        sections.append(Section("Lineage of the best program", (Text(text, "note"), *lineage_blocks(steps))))
        sections.append(Section("Pareto front", _front_blocks(front)))
    if run.funnel:
        sections.append(Section("The funnel: other tasks", _funnel_blocks(run)))
    if run.final.get("table"):
        sections += comparison_sections(_final(run), "Final comparison: ")
    sections += [Section("Provenance of the search", tuple(_provenance(r, n) for r, n in _named(runs)))]
    return sections


def _final(run: SearchRun) -> Comparison:
    return comparison_from_json(run.final["table"], run.folder / "search.json")


def program_blocks(program: Program) -> tuple[Any, ...]:
    """Formula, pseudo-code, certificate and text of a program."""
    checked = Items(tuple(certificate(program).sentences()))
    return (
        Formula(program),
        Code(pseudo_code(program), "pseudo-code"),
        Fold("Certificate: what can be said without training", (checked,), open=True),
        Fold("Program", (Code(str(program).strip(), "program"),)),
    )


def labels(runs: Sequence[SearchRun]) -> list[str]:
    """A name for each search: strategy and, where that is not unique, seed, then folder."""
    for form in ("{0}", "{0}, seed {1}", "{0}, {2}", "{0}, {3}"):
        names = [form.format(r.strategy, r.config.get("seed"), r.folder.name, r.folder) for r in runs]
        if len(set(names)) == len(names):
            break
    return names


def _named(runs: Sequence[SearchRun]) -> list[tuple[SearchRun, str]]:
    return list(zip(runs, labels(runs), strict=True))


def _control_sentence(runs: Sequence[SearchRun]) -> str:
    budget = min(len(r.rows) for r in runs)
    scores: dict[str, list[float]] = {}
    for run in runs:
        scores.setdefault(run.strategy, []).append(min((s for _, s in run.best_so_far(budget)), default=math.inf))
    each = runs[0].steps_each
    steps = f" ({budget * each:,} candidate-steps)" if each else ""
    told = [
        f"{name} {number(min(s))}" + (f" to {number(max(s))} ({len(s)} runs)" if len(s) > 1 else "")
        for name, s in sorted(scores.items(), key=lambda item: min(item[1]))
    ]
    single = all(len(s) == 1 for s in scores.values())
    evolved = min(scores.get("evolution", [-math.inf]))
    ahead = [name for name, s in scores.items() if name != "evolution" and min(s) <= evolved]
    return (
        f"At equal budgets of {budget:,} programs{steps}, the best scores are: {', '.join(told)}."
        + (f" Evolution is not ahead of {' and '.join(ahead)}: it has shown no discovery." if ahead else "")
        + " With one run of each, the order may be chance." * single
    )


def _control_table(runs: Sequence[SearchRun]) -> Table:
    budget = min(len(r.rows) for r in runs)
    rows = []
    for run, label in _named(runs):
        best = min((s for _, s in run.best_so_far(budget)), default=math.inf)
        start = run.rows[0].score if run.rows else math.nan
        steps = run.steps_each
        rows.append((
            label, number(best), f"{best / start - 1:+.1%}" if math.isfinite(best / start) else "–",
            number(min((r.score for r in run.rows), default=math.inf)), f"{len(run.rows):,}",
            f"{len(run.rows) * steps:,}" if steps else "–",
        ))  # fmt: skip
    header = (
        "strategy", f"best of the first {budget:,}", "against its start", "best of all", "programs", "candidate-steps"
    )  # fmt: skip
    return Table("", header, tuple(rows))


def _champion_section(run: SearchRun, champion: Row) -> Section:
    about = f"Program {champion.number}: score {champion.score:.4g} at learning rate {champion.lr:.3g}, "
    about += f"{champion.live} statements, {champion.state_bytes():.4g} bytes of state for each parameter."
    ranks = [
        (f"#{e.get('rank')}", str(e.get("number")), *(_cell(e.get(k)) for k in ("score", "valid", "lr")))
        for e in run.hall
    ]
    header = ("rank", "program", "search score", "tuning loss", "lr")
    hall = [Table("hall of fame", header, tuple(ranks), numeric=2)] if ranks else []
    return Section("The best program", (Text(about), *program_blocks(champion.program), *hall))


def _cell(value: Any) -> str:
    return number(value) if isinstance(value, int | float) else "–" if value is None else str(value)


def _front_blocks(front: Sequence[Row]) -> tuple[Any, ...]:
    header = ("program", "score", "state B/param", "statements", "lr")
    rows = [
        (str(r.number), number(r.score), f"{r.state_bytes():.4g}", str(r.live), f"{r.lr:.3g}") for r in front[:_FRONT]
    ]
    more = [Text(f"{len(front) - _FRONT} more are not shown.", "note")] if len(front) > _FRONT else []
    codes = [Fold(f"program {r.number}", (Code(pseudo_code(r.program), "pseudo-code"),)) for r in front[:_FRONT]]
    return (Table("", header, tuple(rows)), *more, *codes)


def _funnel_blocks(run: SearchRun) -> tuple[Any, ...]:
    """Stages on other tasks, what the search's score said of them, and meta-validation; from ``funnel.json``."""
    found, rows = run.funnel, []
    try:
        for stage in found["stages"]:
            scores = [row["score"] for row in stage["scores"].values()]
            where = f"{', '.join(stage['tasks'])} × {len(stage['seeds'])}"
            better = f"{sum(s < 0 for s in scores)}/{len(scores)}"
            counts = (str(stage["entered"]), str(len(stage["passed"])) if stage["keep"] else "–")
            rows.append((str(stage["name"]), where, *counts, number(min(scores, default=None), 3), better))
        told = [
            f"Rank correlation of the search's score and {name}: {number(c['rho'], 2)} (p = {number(c['p'], 2)}, "
            f"{c['programs']} programs)."
            for name, c in found["correlations"].items()
        ]
        point = found["overfitting"]
        said = f"after program {point} only the search's own task still improved" if point else "none seen"
        told.append(f"Meta-overfitting: {said}.")
        pictures = [Figures((panel(found),))] if found["curve"] else []
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{run.folder / 'funnel.json'} is not what a search writes there ({error!r})") from None
    header = ("stage", "tasks × seeds", "entered", "passed", "best", "better than AdamW")
    title = "scores are log ratios to tuned AdamW's loss; negative is better"
    return (*pictures, Table(title, header, tuple(rows), 2), Items(tuple(told)))


def _counters(run: SearchRun) -> Table:
    total: Counter[Verdict] = Counter()
    for _, by in run.batches:
        total += by
    generated = max(1, total.total())
    rows = [(v.value.replace("_", " "), f"{total[v]:,}", f"{total[v] / generated:.1%}") for v in Verdict]
    ended = Counter(r.status for r in run.rows)
    trained = max(1, len(run.rows))
    rows += [(f"of the trained: {name}", f"{n:,}", f"{n / trained:.1%}") for name, n in sorted(ended.items())]
    title = "what became of the programs"
    return Table(title, ("outcome", "programs", "share"), tuple(rows))


def _provenance(run: SearchRun, label: str) -> Table:
    config = {k: v for k, v in run.config.items() if k not in ("programs", "fingerprints")}
    found: dict[str, Any] = {
        "run directory": run.folder.name,
        "programs trained": len(run.rows),
        "seconds from batch to result, summed": f"{run.seconds:,.1f}",
        "digest": run.digest,
        "config": config,
        "start programs": len(run.config.get("programs", ())),
    }
    source = run.final.get("table", {}).get("provenance", {})
    if isinstance(source, dict):
        found |= {k: source[k] for k in ("time", "commit", "versions", "hardware") if k in source}
    return facts(label, json.loads(json.dumps(found)))


_CONTROLS = (
    "random: programs of the start's size drawn at random; constants: only numbers are mutated; shuffled: evolution "
    "that is told the fitness of others. Only what evolution finds beyond these is owed to selection."
)
