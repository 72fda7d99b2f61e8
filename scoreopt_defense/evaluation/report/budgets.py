"""What each attack was allowed, beside what the paper allows it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scoreopt_defense.evaluation.plan import CLEAN, Plan

__all__ = ["Budget", "budgets", "not_run"]

_SHOWN = {
    "classifier": "the classifier alone: it knows nothing of the defence",
    "surrogate": "one-shot denoising in the defence's place, forward and backward",
    "none": "the defence's answers, no gradients",
    "as-it-is": "the defence, in the gradient mode that it has",
}


@dataclass(frozen=True)
class Budget:
    """One attack.

    Attributes:
        settings: as the plan has them.
        shown: what it sees of a defence, in words.
        queries, paper_queries: evaluations of the model an image; None where none are stated.
        changed: settings that are not the paper's, each ``(name, used, the paper's)``; None where
            there is no configuration of the paper's to compare with.
    """

    attack: str
    kind: str
    settings: dict[str, str]
    shown: str
    threat: str
    queries: int | None = None
    paper_queries: int | None = None
    changed: tuple[tuple[str, str, str], ...] | None = None

    @property
    def is_cut(self) -> bool:
        """Whether it has fewer queries than in the paper."""
        return (self.queries or 0) < (self.paper_queries or 0)


def budgets(plan: Plan) -> list[Budget]:
    """A row an attack, in the plan's order."""
    return [_budget(name, values) for name, values in plan.attacks.items() if name != CLEAN]


def not_run(plan: Plan) -> list[str]:
    """The library's named attacks that the plan has no version of."""
    library = _library()
    if library is None:
        return []
    run = {values.get("preset") for values in plan.attacks.values()} | {*plan.attacks}
    return [name for name in library.ATTACKS if name not in run]


def _budget(name: str, values: Mapping[str, Any]) -> Budget:
    values = dict(values)
    kind = str(values.get("kind"))
    sides = _sides(values)
    used, paper = sides or ({}, None)
    changed = None
    if paper is not None:
        changed = tuple(
            (key, _text(value), _text(paper[key]))
            for key, value in used.items()
            if key in paper
            and value != paper[key]
            and key not in ("queries", "gradients", "threat")
        )
    return Budget(
        name,
        kind,
        {key: _text(value) for key, value in values.items() if key != "kind"},
        shown=_shown(values.get("gradient")),
        threat=str(used.get("threat") or _threat(values)),
        queries=used.get("queries"),
        paper_queries=paper.get("queries") if paper else None,
        changed=changed,
    )


def _sides(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None] | None:
    """The budget used and the paper's, of an attack of this library's."""
    library = _library()
    if library is None:
        return None
    try:
        attack = library.from_dict(values)
    except (ValueError, TypeError, KeyError, ImportError):
        return None  # a user's own
    if json.loads(json.dumps(attack.as_dict())) != values:
        return None  # a user's own, of the same name
    both = library.budgets(attack)
    return both["used"], both["paper"]


def _library() -> Any:
    try:
        return importlib.import_module("scoreopt_defense.attacks")
    except ImportError:
        return None


def _shown(gradient: Any) -> str:
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
