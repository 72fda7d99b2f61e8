"""What each attack was allowed, beside what the paper allows it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scoreopt_defense import attacks as library
from scoreopt_defense.evaluation.plan import Plan
from scoreopt_defense.evaluation.plan.plan import Planned

__all__ = ["Allowance", "allowances", "not_run"]

_SHOWN = {
    "classifier": "the classifier alone: it knows nothing of the defence",
    "surrogate": "one-shot denoising in the defence's place, forward and backward",
    "shortened": "the defence of fewer steps, differentiated exactly but for a smoothed optimiser",
    "none": "the defence's answers, no gradients",
    "as-it-is": "the defence, in the gradient mode that it has",
}
_MEASURED = "no attack: the defence itself is measured"


@dataclass(frozen=True)
class Allowance:
    """One attack.

    Attributes:
        settings: as the plan has them.
        shown: what it sees of a defence, in words.
        queries, paper_queries: evaluations of the model an image; None where none are stated.
        changed: settings that are not the paper's, each ``(name, used, the paper's)``; None where
            there is no configuration of the paper's to compare with.
        suite, label: that it is a stage or a probe of, if any, and what it is called there. The
            paper's queries beside a stage's are those of the paper's attack of its kind.
        is_probe: of a checklist alone.
    """

    attack: str
    kind: str
    settings: dict[str, str]
    shown: str
    threat: str
    queries: int | None = None
    paper_queries: int | None = None
    changed: tuple[tuple[str, str, str], ...] | None = None
    suite: str = ""
    label: str = ""
    is_probe: bool = False

    @property
    def is_cut(self) -> bool:
        """Whether it has fewer queries than in the paper."""
        return (self.queries or 0) < (self.paper_queries or 0)

    @property
    def further(self) -> dict[str, str]:
        """The settings that neither ``shown`` nor ``threat`` say, but for those that are unset."""
        said = ("norm", "eps", "gradient")
        return {k: v for k, v in self.settings.items() if k not in said and v != "null"}


def allowances(plan: Plan) -> list[Allowance]:
    """A row an attack, in the plan's order; no attack and a suite's sum are none."""
    rows = []
    for name, of in plan.tasks.items():
        task = next(iter(of.values()), None)
        if task is not None and task.attacks:
            rows.append(_allowance(name, task, is_random=_meets_random(plan, of)))
    return rows


def not_run(plan: Plan) -> list[str]:
    """The library's named attacks that the plan has no version of."""
    run = {values.get("preset") for values in plan.attacks.values()} | {*plan.tasks}
    for of in plan.tasks.values():
        run |= {_kin(t.attack, exactly=True) for t in of.values() if t.suite and t.kind == "attack"}
    return [name for name in library.ATTACKS if name not in run]


def _allowance(name: str, task: Planned, *, is_random: bool) -> Allowance:
    """One row.

    Args:
        is_random: whether it meets a purifier that draws noise.
    """
    values = dict(task.attack)
    is_stage = bool(task.suite) and task.kind == "attack"
    sides = _sides(values)
    used, paper = sides or ({}, None)
    queries = paper["queries"] if paper else None
    if is_stage and paper is None:
        queries = _queries_of_kin(values, is_random=is_random)
    changed = None
    if paper is not None:
        changed = tuple(
            (key, _text(value), _text(paper[key]))
            for key, value in used.items()
            if key in paper
            and value != paper[key]
            and key not in ("queries", "gradients", "threat")
        )
    measures = task.kind == "probe" and task.bound is None and sides is None
    return Allowance(
        name,
        str(values.get("kind")),
        {key: _text(value) for key, value in values.items() if key != "kind"},
        shown=_MEASURED if measures else _shown(values.get("gradient"), used),
        threat=str(used.get("threat") or _threat(values)),
        queries=used.get("queries"),
        paper_queries=queries,
        changed=changed,
        suite=task.suite,
        label=task.label or name,
        is_probe=task.kind == "probe",
    )


def _sides(values: dict[str, Any]) -> tuple[Any, Any] | None:
    """The budget used and the paper's, of an attack of this library's."""
    try:
        attack = library.from_dict(values)
    except (ValueError, TypeError, KeyError, ImportError):
        return None  # a user's own
    if json.loads(json.dumps(attack.as_dict())) != values:
        return None  # a user's own, of the same name
    both = library.budgets(attack)
    return both["used"], both["paper"]


def _kin(values: Mapping[str, Any], *, exactly: bool = False) -> str | None:
    """The paper's configuration of the same method and norm, and of the same gradient if it can be.

    Args:
        exactly: of the same gradient alone.
    """
    kind = library.KINDS.get(str(values.get("kind")))
    if kind is None or kind is library.Boundary:
        return None
    ascent = library.ProjectedGradientAttack
    family = ascent if issubclass(kind, ascent) else kind
    kin = {
        name: attack.as_dict()["gradient"]
        for name, attack in library.ATTACKS.items()
        if isinstance(attack, family) and attack.as_dict().get("norm") == values.get("norm")
    }
    same = [name for name, gradient in kin.items() if gradient == values.get("gradient")]
    usual = [name for name, gradient in kin.items() if gradient == {"name": "one-shot"}]
    return next(iter(same or ([] if exactly else usual)), None)


def _queries_of_kin(values: Mapping[str, Any], *, is_random: bool) -> int | None:
    """What the paper allows an attack of this kind; one sample of EOT where more are the same."""
    if (kin := _kin(values)) is None:
        return None
    budget = library.paper_budget(kin)
    alone = values.get("eot") == 1 and not is_random
    return int(budget["queries"]) // (budget["eot"] if alone else 1)


def _meets_random(plan: Plan, of: Mapping[str, Planned]) -> bool:
    """Whether a task meets a purifier that draws noise."""
    purifiers = (plan.defences[defence].about.get("purifier") for defence in of)
    return any(about is not None and not about.get("deterministic") for about in purifiers)


def _shown(gradient: Any, used: Mapping[str, Any]) -> str:
    if used.get("queries") == 0:
        return "nothing"
    name = gradient.get("name") if isinstance(gradient, Mapping) else gradient
    if name is None:
        return "not stated"
    return _SHOWN.get(str(name), f"the defence; its gradient by {name}")


def _threat(values: Mapping[str, Any]) -> str:
    if values.get("eps") is None:
        return "not stated"
    return f"{values.get('norm', 'norm not stated')}, at most {_text(values['eps'])}"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping) and list(value) == ["name"]:
        value = value["name"]
    return value if isinstance(value, str) else json.dumps(value)
