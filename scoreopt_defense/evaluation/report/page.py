"""The pages themselves: what is found is handed to templates that escape it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from scoreopt_defense._files import replacing
from scoreopt_defense._optional import optional
from scoreopt_defense.evaluation.config import Config, load
from scoreopt_defense.evaluation.judging.threat_model import level
from scoreopt_defense.evaluation.plan import CLEAN, Plan
from scoreopt_defense.evaluation.record.allowances import allowances, not_run
from scoreopt_defense.evaluation.record.results import Result
from scoreopt_defense.evaluation.record.rows import View
from scoreopt_defense.evaluation.record.statistics import Proportion
from scoreopt_defense.evaluation.record.store import Store
from scoreopt_defense.evaluation.report.caveats import caveats
from scoreopt_defense.evaluation.report.curves import resubmissions, sweeps
from scoreopt_defense.evaluation.report.figures import drawing
from scoreopt_defense.evaluation.report.gallery import broken, gallery
from scoreopt_defense.evaluation.report.reload import reload
from scoreopt_defense.evaluation.report.tables import (
    across_runs,
    differences,
    standings,
    times_sent,
    within_run,
)
from scoreopt_defense.evaluation.report.words import Words, explained
from scoreopt_defense.evaluation.suite.controls import CHECKS, PROBED
from scoreopt_defense.evaluation.suite.summary import summaries
from scoreopt_defense.evaluation.suite.verdict import judge

__all__ = ["comparison_page", "run_page", "write"]

_TEMPLATES = Path(__file__).parent / "templates"


def run_page(
    store: Store,
    *,
    view: str | None = None,
    config: Config | None = None,
    images: int = 8,
    seed: int = 0,
) -> str:
    """The page of one run, complete or not.

    Args:
        store: of the record.
        view: the run's name there; by default the one that was evaluated last.
        config: what the run was made from, to load its defences by for the gallery. Without it,
            those of networks that ship are recognised by their weights' digests.
        images: how many the gallery shows, at most.
        seed: of their draw and of the gallery's purifications.

    Raises:
        ImportError: without jinja2 or scipy; the error names the extra that brings them.
        ValueError: if there is no such view.
    """
    plan = store.plan(view)
    result = Result(store, plan, resubmissions=times_sent(plan))
    loaded = reload(plan, config)
    shown = gallery(result, loaded, count=images, seed=seed)
    suites, rows = summaries(result), standings(result)
    checked = {key: found.verdict for key, found in suites.items()}
    curves = [*sweeps(result), resubmissions(result, checked)]
    spent = allowances(plan)
    found = {row.defence: [row.overall, *(suites[row.defence, s] for s in plan.suites)]
             for row in rows}  # fmt: skip
    verdicts = [judge(result, d, checks=of_it, budgets=spent) for d, of_it in found.items()]
    worst = [verdict.worst for verdict in verdicts if verdict.worst]
    return _render(
        "run.html.jinja",
        plots=[(curve, drawing(curve)) for curve in curves if curve.lines],
        verdicts=verdicts, checks_of=found,
        broken={} if shown.absent else broken(result, loaded, worst, seed=seed),
        dataset=_dataset(store, result.view, config), allowed={b.attack: b for b in spent},
        result=result, plan=plan, summary=plan.summary(), view=result.view,
        started=_started(result.view), others=_others(store, plan),
        units=(sum(1 for _ in result.units()), sum(1 for _ in plan.units())),
        standings=rows, compared=within_run(result), budgets=spent, gallery=shown,
        stages={s: len({n for d in plan.defences
                        for n, task in plan.of_suite(s, d, "attack").items() if task.attacks})
                for s in plan.suites},
        probed=min(PROBED, plan.count), checks=CHECKS,
        plan_text=json.dumps(plan.summary(), indent=2, ensure_ascii=False), loaded=loaded,
        caveats=caveats(result, spent, loaded, suites, rows), not_run=not_run(plan),
        suites=suites,
    )  # fmt: skip


def _dataset(store: Store, view: View | None, config: Config | None) -> str:
    """The images' name as the configuration has it that is kept beside the record, if one is."""
    if config is None and store.folder is not None and view is not None:
        with suppress(ValueError, OSError):
            config = load(Path(store.folder) / f"{Path(view.name).name}.toml")
    name = config.images.source if config else ""
    return "MNIST" if name == "mnist" else Path(name).stem


def _others(store: Store, plan: Plan) -> list[str]:
    """What else the record has of defences that go by the same names, and what is another."""
    found = []
    for name, view in store.views().items():
        if view.plan == plan.as_json():
            continue
        for label, other in Plan.from_json(view.plan).defences.items():
            mine = plan.defences.get(label)
            if mine is not None and mine.id != other.id:
                found.append(f"{label} of {name} is another defence: {other.id[:12]}")
    return found


def comparison_page(a: Store, b: Store) -> str:
    """The page of two runs on the same images.

    Raises:
        ValueError: if their images differ, or they have no defence and attack in common.
    """
    results = tuple(Result(s, resubmissions=times_sent(s.plan())) for s in (a, b))
    return _render(
        "comparison.html.jinja",
        compared=across_runs(*results), suites=summaries(results[0]),
        suites_b=summaries(results[1]),
        overall=[[result.overall(name) for name in result.plan.defences] for result in results],
        differ=differences(*(result.plan for result in results)),
        runs=[(_name(r.store), r.plan, _started(r.view)) for r in results],
    )  # fmt: skip


def write(html: str, path: str | Path) -> Path:
    """Write a page whole or not at all; returns its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(html, encoding="utf-8", errors="backslashreplace")  # names of any bytes
    return path


def _render(template: str, **values: Any) -> str:
    jinja = optional("jinja2", extra="evaluate")
    environment = jinja.Environment(
        loader=jinja.FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja.StrictUndefined,
    )  # fmt: skip
    words = Words()
    environment.filters |= {
        "percent": _percent, "interval": _interval, "signed": _signed, "bound": _bound,
        "abbr": words, "explained": explained,
    }  # fmt: skip
    own = {name: (_TEMPLATES / name).read_text("utf-8") for name in ("page.css", "page.js")}
    return environment.get_template(template).render(
        css=own["page.css"], script=own["page.js"], CLEAN=CLEAN, words=words, **values
    )


def _bound(attack: Mapping[str, Any]) -> str:
    """What an attack may change, from its settings: ``L∞, ε = 8/255``."""
    norm, eps = attack.get("norm"), attack.get("eps")
    said = {"linf": "L∞", "l2": "L2", "l1": "L1"}.get(str(norm), str(norm or "no norm stated"))
    if not isinstance(eps, (int, float)):
        return said
    return f"{said}, ε = {level(eps)}"


def _started(view: View | None) -> str:
    if view is None:
        return "at a time that is not known"
    moment = datetime.fromtimestamp(view.started, timezone.utc)
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def _name(store: Store) -> str:
    return "in memory" if store.folder is None else str(store.folder)


def _percent(share: Proportion | float) -> str:
    value = share.value if isinstance(share, Proportion) else share
    return f"{100 * value:.1f}"


def _interval(share: Any) -> str:
    return f"{100 * share.low:.1f} to {100 * share.high:.1f}"


def _signed(value: float) -> str:
    rounded = round(100 * value, 1)
    return f"{rounded:+.1f}".replace("-", "\N{MINUS SIGN}") if rounded else "0.0"
