"""The report of searches: verdict, the best program, progress, controls, unseen tasks, lineage and Pareto front."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from optforge.experiments.compare.contest import Contest
from optforge.experiments.errors import UserError
from optforge.experiments.report.ablation_table import effects_table
from optforge.experiments.report.comparison_json import contest_from_json
from optforge.experiments.report.comparison_report import comparison_sections, program_blocks
from optforge.experiments.report.controls_report import control_section, control_sentence, labels
from optforge.experiments.report.document import (
    Block,
    Bullets,
    Code,
    Figures,
    Fold,
    Paragraph,
    Section,
    Table,
    facts,
    number,
)
from optforge.experiments.report.lineage import ancestors, lineage, lineage_blocks
from optforge.experiments.report.runs import SearchRun, bytes_of_state, read_program
from optforge.experiments.report.search_figures import (
    duplicates_figure,
    pareto_figure,
    scores_figure,
    unseen_tasks_figure,
)
from optforge.primitives.analysis.certificate import certificate
from optforge.primitives.export.pseudocode import pseudo_code
from optforge.search.duplicates.cache import Verdict
from optforge.search.ledger import Summary

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
        found.append(control_sentence(runs))
    return found


def subject(runs: Sequence[SearchRun]) -> SearchRun:
    """The search that is reported in full: the first that is no control, or else the first."""
    return next((r for r in runs if r.strategy == "evolution"), runs[0])


def search_sections(runs: Sequence[SearchRun]) -> list[Section]:
    """Everything after the verdict, of searches with the same protocol."""
    run, sections = subject(runs), list[Section]()
    sources = [Fold(name, (_provenance(r),)) for name, r in zip(labels(runs), runs, strict=True)]
    champion = run.champion
    if champion is not None:
        sections.append(Section("The best program", _champion_blocks(run, champion)))
    if len(runs) > 1:
        sections.append(control_section(runs))
    if champion is not None:
        line = ancestors(run.rows, champion)
        figures = [scores_figure(run, line), pareto_figure(run, run.front)]
        figures += [duplicates_figure(run)] if run.batches else []
        sections.append(Section(f"Search: {labels([run])[0]}", (Figures(tuple(figures)), _counters(run))))
    if run.funnel:
        sections.append(Section("The funnel: other tasks", _funnel_blocks(run)))
    if run.final.get("table"):
        *compared, source = comparison_sections(_final(run), "Final comparison: ", champion=False)
        sections += compared
        sources += [Fold("Final comparison", source.blocks)]
    if champion is not None:
        generations = lineage(line)
        gains = sum(one.gain for one in generations)
        text = f"{len(generations) - 1} generations, {gains} of them better than all before (★); "
        text += "the largest gains are open."
        sections.append(Section("Lineage of the best program", (Paragraph(text, "note"), *lineage_blocks(generations))))
        sections.append(Section("Pareto front", _front_blocks(run.front)))
    return [*sections, Section("Configuration and provenance", tuple(sources))]


def _final(run: SearchRun) -> Contest:
    return contest_from_json(run.final["table"], run.folder / "search.json")


def _champion_blocks(run: SearchRun, champion: Summary) -> tuple[Block, ...]:
    about = f"Program {champion.number}: score {champion.score:.4g} at learning rate {champion.lr:.3g}, "
    about += f"{champion.live} statements, {bytes_of_state(champion):.4g} bytes of state per parameter."
    best = next(iter(run.hall), {})
    tuned = best.get("program") if best.get("number") == champion.number else None
    program = champion.program if tuned is None else read_program(tuned, run.folder / "hall_of_fame.json")
    checked = Bullets(tuple(certificate(program).sentences()))
    return (
        Paragraph(about),
        *program_blocks(program),
        Fold("Certificate: what can be said without training", (checked,)),
        *_ablation(best),
        *_hall_table(run),
    )


def _ablation(best: Mapping[str, Any]) -> tuple[Block, ...]:
    """What each statement of the best program is worth, where the search has measured it."""
    if not best.get("ablation"):
        return ()
    title = "mean over three seeds and all tasks of the search, with 95 % intervals"
    return (
        Fold("Ablation: what each statement is worth", (effects_table(title, best["ablation"], "loss over AdamW's"),)),
    )


def _hall_table(run: SearchRun) -> tuple[Table, ...]:
    columns = {"score": "search score", "own tasks": "fresh seeds", "unseen tasks": "unseen tasks",
               "valid": "tuning loss", "lr": "lr"}  # fmt: skip
    shown = [key for key in columns if any(key in entry for entry in run.hall)]
    rows = [(f"#{e.get('rank')}", str(e.get("number")), *(_cell(e.get(key)) for key in shown)) for e in run.hall]
    header = ("rank", "program", *(columns[key] for key in shown))
    return (Table("the best programs, by rank", header, tuple(rows), numeric=2),) if rows else ()


def _cell(value: Any) -> str:
    value = value.get("mean") if isinstance(value, dict) else value
    return number(value) if isinstance(value, int | float) else "–" if value is None else str(value)


def _front_blocks(front: Sequence[Summary]) -> tuple[Block, ...]:
    header = ("program", "score", "state B/param", "statements", "lr")
    rows = [
        (str(r.number), number(r.score), f"{bytes_of_state(r):.4g}", str(r.live), f"{r.lr:.3g}") for r in front[:_FRONT]
    ]
    more = [Paragraph(f"{len(front) - _FRONT} more are not shown.", "note")] if len(front) > _FRONT else []
    codes = [Fold(f"program {r.number}", (Code(pseudo_code(r.program), "pseudo-code"),)) for r in front[:_FRONT]]
    return (Table("", header, tuple(rows)), *more, *codes)


def _funnel_blocks(run: SearchRun) -> tuple[Block, ...]:
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
        pictures = [Figures((unseen_tasks_figure(found),))] if found["curve"] else []
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{run.folder / 'funnel.json'} is not what a search writes there ({error!r})") from None
    header = ("stage", "tasks × seeds", "entered", "passed", "best", "better than AdamW")
    title = "scores are log ratios to tuned AdamW's loss; negative is better"
    return (*pictures, Table(title, header, tuple(rows), 2), Bullets(tuple(told)))


def _counters(run: SearchRun) -> Table:
    total: Counter[Verdict] = Counter()
    for _, by in run.batches:
        total += by
    generated = max(1, total.total())
    rows = [(v.value.replace("_", " "), f"{total[v]:,}", f"{total[v] / generated:.1%}") for v in Verdict if total[v]]
    ended = Counter(r.status for r in run.rows)
    trained = max(1, len(run.rows))
    rows += [(f"of the trained: {name}", f"{n:,}", f"{n / trained:.1%}") for name, n in sorted(ended.items())]
    title = "what became of the programs"
    return Table(title, ("outcome", "programs", "share"), tuple(rows))


def _provenance(run: SearchRun) -> Table:
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
    return facts("", json.loads(json.dumps(found)))
