"""What a run found, put together: no figure without what speaks against it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scoreopt_defense._checks import check_choice
from scoreopt_defense._optional import optional
from scoreopt_defense.evaluation.plan.tasks import CLEAN
from scoreopt_defense.evaluation.record.figures import Cell, Figures
from scoreopt_defense.evaluation.record.judged import over_images
from scoreopt_defense.evaluation.record.packing import digest_of, pack
from scoreopt_defense.evaluation.record.statistics import Proportion, weakest
from scoreopt_defense.evaluation.record.store import RECORD, Store
from scoreopt_defense.evaluation.suite.checklist import checklist
from scoreopt_defense.evaluation.suite.overall import Overall, html_table, near_chance, table
from scoreopt_defense.evaluation.suite.verdict import verdict
from scoreopt_defense.evaluation.suite.worst_case import WorstCase, worst_case

__all__ = ["Result"]


class Result(Figures):
    """A run's figures, complete or not; see :class:`~..figures.Figures` for those of single cells.

    Args:
        store: of the record; stays open, for :meth:`adversarial`.
        plan: whose figures these are; by default the one that was put to it last.
        resubmissions: how many to report survival of.
    """

    def weakest(self, defence: str) -> Proportion | None:
        """Accuracy if each image meets whichever attack harms it most, or none if that does.

        Of the attacks that stand by themselves and the suites' sums: of several threat models, the
        worst an image. One suite alone has its :meth:`worst_case`. An attack is chosen on other
        purifications than it is judged on, and the figure is never above that of the lowest single
        one: see
        :func:`~scoreopt_defense.evaluation.record.statistics.weakest`, which says how far it is
        off. Under the criterion ``any-step`` it is the share of images that no attack broke. Of the
        images alone that some attack has a figure of.

        None without such an image, and where an image has but one purification: there is none to
        choose on and another to judge on. :meth:`overall` says why, what the figure lacks, and
        whether it can be believed.
        """
        cells = [self.judged(defence, name) for name in [CLEAN, *self.competing]]
        places = [cell.images * self.plan.trials + cell.trials for cell in cells]
        order = np.unique(np.concatenate([np.zeros(0, dtype=int), *places[1:]]))
        if not len(order):
            return None
        shape = (len(cells), len(order), self.plan.judging["purifications"])
        right, lead = np.zeros(shape, dtype=bool), np.full(shape, np.nan)
        whole = np.ones(shape[:2])
        for index, (cell, place) in enumerate(zip(cells, places)):
            there = np.isin(place, order)
            at = np.searchsorted(order, place[there])
            right[index, at], lead[index, at] = cell.right[there], cell.lead[there]
            if cell.whole is not None:
                whole[index, at] = cell.whole[there]
        images = order // self.plan.trials
        if any(cell.whole is not None for cell in cells):
            return over_images(images, whole.min(0))
        return over_images(images, weakest(right, lead)) if shape[2] > 1 else None

    def curve(
        self, defence: str, attack: str, eps: Sequence[float] | None = None
    ) -> dict[float, Proportion]:
        """Accuracy at each radius, of one run of an attack that seeks the nearest wrong image.

        An image whose nearest one is within the radius counts by how often that was right, judged
        by purifications that did not find it. Any other counts as it does without an attack, so
        that one of which nothing was found stands at every radius.

        Args:
            eps: the radii; by default 0 and every distance at which something was found.

        Raises:
            ValueError: if no distances are recorded: of an attack that seeks none, such as PGD.

        Reference:
            As Pintor et al., NeurIPS 2021, draw it, but judged again.
        """
        self._check_run(defence, attack)
        measured = [result.measured for _, result in self._units[defence, attack]]
        if not any(found and "distance" in found for found in measured):
            raise ValueError(f"{attack} on {defence} has no distances: MinimumNorm records them")
        distances = np.concatenate([found["distance"] for found in measured if found])
        judged, clean = self.judged(defence, attack), self.shares(defence)
        found = judged.right.mean(1) if judged.whole is None else judged.whole
        unattacked = np.array([clean[image] for image in judged.images.tolist()])
        radii = sorted({0.0, *distances.tolist()}) if eps is None else eps
        shares = {at: np.where(distances <= at, found, unattacked) for at in radii}
        figures = {at: over_images(judged.images, share) for at, share in shares.items()}
        return {at: figure for at, figure in figures.items() if figure is not None}

    def overall(self, defence: str) -> Overall:
        """:meth:`weakest`, with what it lacks and what the checks say of it."""
        check_choice("defence", defence, self.plan.defences)
        weakest = self.weakest(defence)
        tried = [self.cell(defence, n) for n in self.competing if self.was_run(defence, n)]
        absent = ""
        if not self.competing:
            absent = "not attacked"
        elif not tried:
            absent = "not attacked yet"
        elif not any(cell.accuracy for cell in tried):
            absent = "attack failed"
        elif weakest is None:
            absent = "nothing to choose on: one purification"
        near = near_chance(self, defence)
        return Overall(
            defence=defence,
            weakest=weakest,
            absent=absent,
            lacking={cell.attack: cell.failed for cell in tried if cell.failed},
            checks=checklist(self, defence),
            warnings=(near,) if near else (),
        )

    def worst_case(self, defence: str, suite: str) -> WorstCase:
        """A suite's figure of one defence, and which attack found it."""
        return worst_case(self, defence, suite)

    def __str__(self) -> str:
        """A table: the criterion's figure of each cell, in per cent, with its 95 % interval.

        Below it what failed and why, and what the checks say: no figure is to be read without them.
        """
        return table(self, [self.overall(defence) for defence in self.plan.defences])

    def __repr__(self) -> str:
        """The verdict, a sentence a defence."""
        return "\n".join(verdict(self, defence) for defence in self.plan.defences)

    def _repr_html_(self) -> str:
        """What a notebook shows: the verdict, and the table of :meth:`__str__`."""
        said = "".join(f"<p>{html.escape(line)}</p>" for line in repr(self).splitlines())
        return said + html_table(self, [self.overall(name) for name in self.plan.defences])

    def __getitem__(self, names: tuple[str, str]) -> Cell:
        """``result["defence", "attack"]``: as :meth:`cell`."""
        if not isinstance(names, tuple) or len(names) != 2:
            raise TypeError(f'a cell is result["defence", "attack"], got {names!r}')
        return self.cell(*names)

    def to_pandas(self) -> Any:
        """A ``DataFrame``, a row a cell: its figure from 0 to 1 (of the criterion), what it cost.

        Raises:
            ImportError: without pandas.
        """
        return optional("pandas").DataFrame(
            {
                "defence": cell.defence,
                "attack": cell.attack,
                "accuracy": getattr(cell.robust, "value", None),
                "low": getattr(cell.robust, "low", None),
                "high": getattr(cell.robust, "high", None),
                "images": getattr(cell.robust, "n", 0),
                "majority": getattr(cell.majority, "value", None),
                "failed": cell.failed,
                "denoiser_calls": cell.denoiser_calls,
                "classifier_calls": cell.classifier_calls,
                "seconds": cell.seconds,
            }
            for cell in self.cells
        )

    def plot(self, axes: Any = None) -> Any:
        """Draw what is right of each defence under each attack, with 95 % intervals, worst first.

        Args:
            axes: matplotlib's, to draw on; those of a new figure by default.

        Returns:
            The axes.

        Raises:
            ImportError: without matplotlib.
        """
        from scoreopt_defense.evaluation.report.chart import chart
        from scoreopt_defense.evaluation.report.tables import standings

        return chart(standings(self), axes)

    def report(self, path: str | Path) -> Path:
        """Write the run's page, one HTML file; returns its path."""
        from scoreopt_defense.evaluation.report import run_page, write

        return write(run_page(self.store, view=self.view.name if self.view else None), path)

    def save(self, folder: str | Path) -> Path:
        """Write a record that was kept in memory to a folder, as ``out=`` would have.

        Raises:
            ValueError: if it is in a folder already.
            FileExistsError: if there is a record in that one.
        """
        folder = Path(folder)
        if self.store.folder is not None:
            raise ValueError(f"the record is in {self.store.folder} already: copy that folder")
        if (folder / RECORD).exists():
            raise FileExistsError(f"there is a record in {folder} already")
        with Store(folder, writing=True) as written:
            written.adopt(self.plan, self.view.name if self.view else "evaluation")
            for _, result in self.units():
                images = self.store.adversarial(result).items()
                packed = {place: (digest_of(image), pack(image)) for place, image in images}
                written.add(result, packed, more=True)
        return folder
