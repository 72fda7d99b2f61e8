"""How far a run is, in a notebook: a bar of tqdm's."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence

from scoreopt_defense._optional import optional
from scoreopt_defense._text import printable
from scoreopt_defense.evaluation.plan import Unit
from scoreopt_defense.evaluation.run.progress import Progress
from scoreopt_defense.evaluation.run.unit import Outcome

__all__ = ["NotebookBar"]


class NotebookBar(Progress):
    """``tqdm.auto``'s of all units, with the attack and defence that was recorded last.

    Raises:
        ImportError: without tqdm.
    """

    def __init__(self) -> None:
        self.library = optional("tqdm.auto", extra="data")

    def start(self, units: Sequence[Unit], done: Collection[str]) -> None:
        before = sum(unit.key in done for unit in units)
        self.bar = self.library.tqdm(
            total=len(units), initial=before, unit="unit", dynamic_ncols=True
        )

    def advance(self, outcome: Outcome) -> None:
        unit = outcome.unit
        self.bar.set_postfix_str(printable(f"{unit.attack} on {unit.defence}"), refresh=False)
        self.bar.update()

    def note(self, text: str) -> None:
        self.library.tqdm.write(printable(text), file=sys.stderr)

    def stop(self) -> None:
        self.bar.close()
