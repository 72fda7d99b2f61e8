"""The pages themselves: what is found is handed to templates that escape it."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoreopt_defense._files import replacing
from scoreopt_defense._optional import optional
from scoreopt_defense.evaluation.config import Config
from scoreopt_defense.evaluation.plan import CLEAN, differences
from scoreopt_defense.evaluation.report.budgets import budgets, not_run
from scoreopt_defense.evaluation.report.caveats import caveats
from scoreopt_defense.evaluation.report.curves import resubmissions, sweeps
from scoreopt_defense.evaluation.report.figures import figure
from scoreopt_defense.evaluation.report.gallery import gallery
from scoreopt_defense.evaluation.report.reload import reload
from scoreopt_defense.evaluation.report.tables import (
    across_runs,
    standings,
    times_sent,
    within_run,
)
from scoreopt_defense.evaluation.results import Result
from scoreopt_defense.evaluation.statistics import Proportion
from scoreopt_defense.evaluation.store import Store
from scoreopt_defense.evaluation.summary import part_of, summaries

__all__ = ["comparison_page", "run_page", "write"]

_TEMPLATES = Path(__file__).parent / "templates"


def run_page(store: Store, *, config: Config | None = None, images: int = 8, seed: int = 0) -> str:
    """The page of one run, complete or not.

    Args:
        store: of the run.
        config: what the run was made from, to load its defences by for the gallery. Without it,
            those of networks that ship are recognised by their weights' digests.
        images: how many the gallery shows, at most.
        seed: of their draw and of the gallery's purifications.

    Raises:
        ImportError: without jinja2, plotly or scipy; the error names the extra that brings them.
    """
    result = Result(store, resubmissions=times_sent(store.plan))
    loaded = reload(store.plan, config, _first_images(store))
    shown = gallery(result, loaded, count=images, seed=seed)
    suites, rows = summaries(result), standings(result)
    verdicts = {key: found.verdict for key, found in suites.items()}
    curves = [*sweeps(result), resubmissions(result, verdicts)]
    spent = budgets(store.plan)
    return _render(
        "run.html.jinja",
        plots=[(curve, figure(curve)) for curve in curves if curve.lines],
        result=result, plan=store.plan, about=store.about(), started=_started(store),
        units=(len(store.done()), sum(1 for _ in store.plan.units())),
        standings=rows, compared=within_run(result), budgets=spent, gallery=shown,
        plan_text=json.dumps(asdict(store.plan), indent=2, ensure_ascii=False), loaded=loaded,
        caveats=caveats(result, spent, loaded, suites, rows), not_run=not_run(store.plan),
        suites=suites,
    )  # fmt: skip


def comparison_page(a: Store, b: Store) -> str:
    """The page of two runs on the same images.

    Raises:
        ValueError: if their images differ, or they have no defence and attack in common.
    """
    results = tuple(Result(store, resubmissions=times_sent(store.plan)) for store in (a, b))
    abouts = a.about(), b.about()
    was, is_now = (
        {"plan": asdict(s.plan), "versions": about["versions"], "machine": about["machine"]}
        for s, about in zip((a, b), abouts)
    )
    return _render(
        "comparison.html.jinja",
        compared=across_runs(*results), suites=summaries(results[0]),
        suites_b=summaries(results[1]),
        overall=[[result.overall(name) for name in result.plan.defences] for result in results],
        differ=differences(was, is_now), plots=[],
        runs=[(_name(s), s.plan, about, _started(s)) for s, about in zip((a, b), abouts)],
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
    environment.filters |= {
        "percent": _percent,
        "interval": _interval,
        "signed": _signed,
        "part_of": part_of,
    }
    plotly = optional("plotly.offline", extra="evaluate").get_plotlyjs() if values["plots"] else ""
    own = {name: (_TEMPLATES / name).read_text("utf-8") for name in ("page.css", "page.js")}
    return environment.get_template(template).render(
        css=own["page.css"], script=own["page.js"], plotly=plotly, CLEAN=CLEAN, **values
    )


def _first_images(store: Store) -> Tensor | None:
    """What the defences were asked about when the run began, if it can be read."""
    first = next(store.plan.units())
    try:
        done = first.attack == CLEAN and first.index in store.done()
        return torch.from_numpy(store.adversarial(first.index)[:2]) if done else None
    except (OSError, LookupError):
        return None


def _started(store: Store) -> str:
    moment = datetime.fromtimestamp(store.about()["started"], timezone.utc)
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
