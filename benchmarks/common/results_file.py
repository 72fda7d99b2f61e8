"""Result files of the benchmarks that are no run of ``scoreopt evaluate``.

Each says how it was made, and is written whole or not at all.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from scoreopt_defense import pretrained
from scoreopt_defense._files import replacing
from scoreopt_defense.evaluation.plan.environment import machine
from scoreopt_defense.evaluation.record.differences import Difference

RESULTS = Path(__file__).parents[1] / "results"


def weights(name: str) -> dict[str, str]:
    """SHA-256 of the shipped networks of that name: figures about others are told apart by it."""
    return {
        kind: digests[name] for kind, digests in pretrained.CHECKSUMS.items() if name in digests
    }


def mean(values: Tensor) -> dict[str, float]:
    """Mean with the normal limit's 95 % interval."""
    half = 1.96 * values.std().item() / len(values) ** 0.5
    value = values.mean().item()
    return {"value": round(value, 4), "low": round(value - half, 4), "high": round(value + half, 4)}


def rounded(found: Difference) -> dict[str, float]:
    """A difference as it is written."""
    return {name: round(value, 4) for name, value in asdict(found).items()}


def write(name: str, **contents: Any) -> Path:
    """Write ``results/<name>.json``, with the machine, whole or not at all.

    Raises:
        ValueError: if a figure is not finite, which is no JSON.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    about = {"machine": machine(), **contents}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(about, indent=2, allow_nan=False) + "\n")
    print(f"wrote {path}")
    return path


def earlier(name: str, network: str) -> dict[str, Any]:
    """``results/<name>.json``, if it is there and about that network's weights now; else empty."""
    path = RESULTS / f"{name}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return found if found.get("weights") == weights(network) else {}


class resumed:
    """Rows of a result file, written after each, kept from a run that was stopped.

    Args:
        name: of the file, ``results/<name>.json``.
        **about: the inputs that its rows depend on.

    Raises:
        ValueError: if there is such a file and its rows are about other inputs, or it cannot be
            read: it is left as it is.
    """

    def __init__(self, name: str, **about: Any) -> None:
        self.name = name
        self.about = _as_json(about)
        self.rows = _rows(RESULTS / f"{name}.json", self.about)

    def has(self, key: dict[str, Any]) -> bool:
        return any(_as_json(key).items() <= row.items() for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(_as_json(row))
        write(self.name, **self.about, rows=self.rows)


def _rows(path: Path, about: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a file, if there is one, that is about the same inputs."""
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text())
        rows = found.pop("rows")
        found.pop("machine", None)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no result file that could go on ({error!r}): move it elsewhere, or delete "
            "it if nothing in it is worth keeping"
        ) from error
    other = [
        f"{name} was {found.get(name)} and is {about.get(name)}"
        for name in {**about, **found}
        if found.get(name) != about.get(name)
    ]
    if other:
        raise ValueError(
            f"{path} has rows about other inputs: {'; '.join(other)}. Run with the same, or move "
            "the file elsewhere to start a new one"
        )
    return rows


def _as_json(value: Any) -> Any:
    """What comes back when it is written and read: lists for tuples."""
    return json.loads(json.dumps(value))
