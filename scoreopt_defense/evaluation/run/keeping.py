"""Which adversarial images a record keeps, and until when."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence

from scoreopt_defense.evaluation.plan import Plan, Unit
from scoreopt_defense.evaluation.record.judged import Judged
from scoreopt_defense.evaluation.record.store import Store
from scoreopt_defense.evaluation.suite.carry_over import Harm, harms

__all__ = ["KEEP", "Keeping", "lacking"]

#: What may be kept: see :class:`Keeping`.
KEEP = ("all", "worst", "none")


class Keeping:
    """Lets images go as soon as no unit that is not recorded begins from them.

    Args:
        keep: ``"all"``; ``"worst"``: of each defence, image and trial that of the attack by itself
            that left least, each suite's worst, and the first clean ones; ``"none"``.
        view: the run's name. What other runs of the record ask for too is left to them.
        done: units that are recorded.
    """

    def __init__(
        self, keep: str, plan: Plan, store: Store, view: str, done: Collection[str]
    ) -> None:
        self.store, self.all = store, keep == "all"
        self.keys = list(dict.fromkeys(unit.key for unit in plan.units()))
        self.stays: set[str] = set()
        self.rivals: dict[str, list[str]] = {}
        self.waiting: Counter[str] = Counter()
        if self.all:
            return
        others = (store.plan(name) for name in store.views() if name != view)
        self.stays = {unit.key for other in others for unit in other.units()}
        together: defaultdict[tuple[str, int, int], list[str]] = defaultdict(list)
        left = {}
        for unit in plan.units():
            task = plan.tasks[unit.attack][unit.defence]
            if unit.key not in done:
                left[unit.key] = unit
            if keep == "worst" and task.stands and task.attacks:
                together[unit.defence, unit.trial, unit.images[0]].append(unit.key)
            elif keep == "worst" and task.stands:
                self.stays.add(unit.key)
        self.rivals = {key: keys for keys in together.values() for key in keys}
        self.waiting.update(key for unit in left.values() for key in unit.needs)

    def takes(self, unit: Unit) -> bool:
        """Whether a unit's images are to be recorded at all."""
        key = unit.key
        return self.all or key in self.stays or key in self.rivals or self.waiting[key] > 0

    def recorded(self, unit: Unit) -> None:
        """Let go what nobody waits for any more."""
        self.waiting.subtract(unit.needs)
        self._settle((unit.key, *unit.needs))

    def finished(self) -> None:
        """Let go what an earlier run kept, or one that was killed."""
        self._settle(self.keys)

    def _settle(self, keys: Sequence[str]) -> None:
        if self.all:
            return
        free = [key for key in keys if self._free(key)]
        for key in free:
            if key not in self.rivals:
                self.store.pixels.drop(key)
        for rivals in {id(of): of for key in free if (of := self.rivals.get(key))}.values():
            self._choose(rivals)

    def _choose(self, keys: Sequence[str]) -> None:
        """Of each image of a batch that of the attack alone that left least, so far."""
        there = {result.key: result for result in self.store.read(keys)}
        least: dict[int, tuple[Harm, str]] = {}
        for key in keys:
            judged = Judged.of([there[key]] if key in there else [])
            for image, harm in zip(judged.images.tolist(), harms(judged)):
                if image not in least or harm < least[image][0]:
                    least[image] = harm, key
        for key in filter(self._free, there):
            first = there[key].first
            self.store.pixels.drop(key, [i - first for i, (_, by) in least.items() if by != key])

    def _free(self, key: str) -> bool:
        return key not in self.stays and self.waiting[key] <= 0


def lacking(units: Sequence[Unit], done: Collection[str], store: Store) -> set[str]:
    """Recorded units that are to be done again, as others begin from images that were not kept."""
    by_key, held = {unit.key: unit for unit in units}, None
    found: set[str] = set()
    ahead = {key for unit in units if unit.key not in done for key in unit.needs} & set(done)
    while ahead:
        held = store.pixels.held() if held is None else held
        gone = {
            result.key
            for result in store.read(ahead)
            if result.adversarial and held.get(result.key, (0, 0))[0] < result.tried
        }
        found |= gone
        ahead = {key for of in gone for key in by_key[of].needs if key in done} - found
    return found
