"""The paper's tables and figures by ``scoreopt evaluate``'s runner, at the paper's scale or a CPU's.

    python benchmarks/paper_tables.py table01 --scale cpu path/to/cifar10/test/images
    python benchmarks/paper_tables.py table01 --scale cpu path/to/images --dry-run
    python benchmarks/paper_tables.py table01 --scale cpu --draw    # from the result file alone

``paper/<table>.toml`` has the table's rows with the paper's figures, and which defence and attack
gives ours. A cell is a run of one defence under one attack, ``runs/paper/<scale>/<cell>``: tables
that share a cell share its run. Stopped and started again, it goes on. Figures are written to
``results/paper_<table>_<scale>.json``, the drawing beside it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import paper_timing
from adaptive import NAME, ROWS, THREATS
from results_file import RESULTS

from scoreopt_defense import data, pretrained
from scoreopt_defense.attacks import ATTACKS, TABLE_5, paper_budget
from scoreopt_defense.evaluation.about import machine
from scoreopt_defense.evaluation.config import Config, tomllib
from scoreopt_defense.evaluation.estimate import estimate
from scoreopt_defense.evaluation.evaluate import evaluate_plan
from scoreopt_defense.evaluation.progress import duration, progress
from scoreopt_defense.evaluation.results import Result, difference
from scoreopt_defense.evaluation.statistics import Difference
from scoreopt_defense.evaluation.store import Store
from scoreopt_defense.presets import PRESETS

PAPER = Path(__file__).parent / "paper"
TABLES = sorted(path.stem for path in PAPER.glob("*[0-9].toml"))
WRN, EDM = "robustbench:Standard", "edm-cifar10-32x32-uncond-vp"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What a table is run with.

    Attributes:
        classifier, denoiser: of every defence that does not name others.
        defences: sections of a configuration, by name.
        budgets: settings of single attacks, where they are not the paper's.
        autocast: of the attacks that ask a purifier.
        images, trials: of attacks that ask no purifier; and of those that do.
        confirm: purifications of the vote that a break under BPDA is confirmed by.
    """

    classifier: str
    denoiser: str
    defences: Mapping[str, Mapping[str, Any]]
    budgets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    autocast: str | None = None
    images: tuple[int, int]
    trials: tuple[int, int]
    confirm: int = 150
    rest: Mapping[str, Any] = field(default_factory=dict)


def _of_the_paper(kind: str, **settings: Any) -> dict[str, Any]:
    return {"classifier": WRN, "purifier": kind, "denoiser": EDM, **settings}


SCALES = {
    "paper": Scale(
        classifier=WRN,
        denoiser=EDM,
        defences={
            "undefended": {"classifier": WRN},
            "one-shot": _of_the_paper("OneShot", overrides={"sigma": 0.25}),
            "scoreopt-o": _of_the_paper("ScoreOpt", preset="{preset}/O"),
            "scoreopt-n": _of_the_paper("ScoreOpt", preset="{preset}/N"),
            "diffpure": _of_the_paper("DiffPure"),
            "gdmp": _of_the_paper("GDMP"),
            "adp": _of_the_paper("ADP"),
            "menet": {"classifier": WRN, "purifier": "MENet"},
        },
        images=(512, 512),
        trials=(5, 5),
        rest={"batch": 64, "device": "cuda"},
    ),
    "cpu": Scale(
        classifier=NAME,
        denoiser=NAME,
        defences=ROWS | {"menet": {"classifier": NAME, "purifier": "MENet"}},
        budgets={"stadv": {"eot": 10}},  # at 20 its row takes over half an hour
        autocast="bfloat16",
        images=(128, 64),
        trials=(3, 1),
        confirm=50,
        rest={"batch": 32},
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One defence under one attack: a run.

    Attributes:
        defence, attack: their labels, which say all that is not the scale's default.
        section: the defence's, of a configuration.
        attacks: sections by label; more than one where they share a run.
        worst: name of the adaptive benchmark's row about the same defence and threat, if any.
    """

    defence: str
    attack: str
    section: Mapping[str, Any]
    attacks: Mapping[str, Mapping[str, Any]]
    images: int
    trials: int
    judging: Mapping[str, Any]
    rest: Mapping[str, Any]
    worst: str | None = None

    @property
    def run(self) -> str:
        """The folder's name."""
        attack = next(iter(self.attacks)) if len(self.attacks) == 1 else "corruptions"
        name = f"{self.defence} under {attack}, {self.images} images, {self.trials} trials"
        return "".join(c if c.isalnum() or c in " -.,=+" else "_" for c in name)

    def config(self, source: str) -> Config:
        """The configuration of its run."""
        return Config.model_validate(
            {
                "images": {"source": source, "n": self.images},
                "defences": {self.defence: self.section},
                "attacks": self.attacks,
                "judging": self.judging,
                "trials": self.trials,
                **self.rest,
            }
        )


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table, or a point of a figure's curve.

    Attributes:
        group: what it stands under.
        curve, at: of a figure: its curve's name, and its place on the x axis.
        published: the paper's figures, as printed, by column.
        cells: by column; empty where the row is not run at this scale.
    """

    group: str
    name: str
    published: Mapping[str, str]
    cells: Mapping[str, Cell]
    curve: str = ""
    at: float | None = None


@cache
def specification(table: str) -> dict[str, Any]:
    """What ``paper/<table>.toml`` says."""
    return tomllib.loads((PAPER / f"{table}.toml").read_text(encoding="utf-8"))


def rows(
    table: str, scale: str, *, classifier: str | None = None, denoiser: str | None = None
) -> list[Row]:
    """The rows of a table at a scale.

    Args:
        classifier, denoiser: in place of the scale's own, for what this project can't name.
    """
    made = _Maker(table, scale, classifier, denoiser)
    return [row for values in specification(table).get("rows", ()) for row in made.rows(values)]


class _Maker:
    """Makes the rows of one table at one scale."""

    def __init__(
        self, table: str, scale: str, classifier: str | None, denoiser: str | None
    ) -> None:
        self.spec, self.name, self.scale = specification(table), scale, SCALES[scale]
        self.classifier, self.denoiser = classifier, denoiser

    def rows(self, values: dict[str, Any]) -> Iterator[Row]:
        """One, or one for each of the values that it varies."""
        vary = values.get("vary")
        points = self._here(values, "values") if vary else [None]
        for at in points:
            changed, curve = dict(values), values["name"]
            if at is not None:
                where = "attack" if vary == "eot" else "settings"
                given = dict(values.get(where, {}))
                varied = {vary: at}
                if vary == "weight":
                    varied = {"loss": {"name": given["loss"], "weight": at}}
                changed[where] = given | varied
                changed["name"] = f"{curve}, {WORDS.get(vary, vary)} {at:g}"
            yield Row(
                group=values.get("group", ""), name=changed["name"],
                published=_published(values, at), cells=self._cells(changed),
                curve=curve, at=at,
            )  # fmt: skip

    def _here(self, values: Mapping[str, Any], key: str) -> Any:
        """A value; where it is a table of the scales' names, this one's."""
        found = values.get(key)
        by_scale = isinstance(found, dict) and found.keys() <= SCALES.keys() and found
        return found.get(self.name) if by_scale else found

    def _cells(self, values: dict[str, Any]) -> dict[str, Cell]:
        name = self._here(values, "defence")
        if name is None or self.name not in self.spec.get("scales", SCALES):
            return {}
        defence = self._defence(name, values)
        columns = self.spec["columns"] | values.get("columns", {})
        return {
            column: self._cell(*defence, name, told, values)
            for column, told in columns.items()
            if told not in ("mean", "")
        }

    def _defence(self, name: str, values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Its label and section."""
        threat = values.get("threat", "")
        section = json.loads(json.dumps(self.scale.defences.get(name, {"classifier": name})))
        settings = dict(values.get("settings", {})) | dict(values.get(f"settings_{self.name}", {}))
        named = ""
        if "{preset}" in section.get("preset", ""):
            preset = values.get("preset", self.spec.get("preset", "")).format(threat=threat)
            section["preset"] = section["preset"].format(preset=preset)
            named = f", {preset}"
        known = PRESETS.get(section.get("preset", ""), {}) | section.get("overrides", {})
        settings = _changed(settings, known)
        label = _labelled(name.rpartition("/")[2], settings) + named
        networks = {"classifier": self.classifier, "denoiser": self.denoiser}
        for part, given in networks.items():
            own = self._here(values, part) or self._here(self.spec, part)
            default = section.get(part) == getattr(self.scale, part)
            if default and (chosen := given or own):
                section[part] = chosen
                label += f", {part} {chosen.rpartition('/')[2]}"
        if "purifier" in section:
            most = {"max_batch": 256} if self.name == "paper" else {}
            section["overrides"] = section.get("overrides", {}) | most | settings
        return label, section

    def _cell(
        self, label: str, section: dict[str, Any], defence: str, told: Any, values: dict[str, Any]
    ) -> Cell:
        """Of one column, which is an attack's name, or that with settings under ``attack``."""
        threat = values.get("threat", "")
        given = {"attack": told} if isinstance(told, str) else dict(told)
        base = given.pop("attack").format(threat=threat)
        if base == "clean":  # judged in every run: in that of the column "robust"
            columns = self.spec["columns"] | values.get("columns", {})
            first = next(c for c in columns.values() if c not in ("clean", "mean", ""))
            met = self._cell(label, section, defence, first, values)
            return replace(met, attack="clean", worst=None)
        if base.startswith("corruptions/"):
            corruptions = {c: {"attack": "corruptions", "corruption": c} for c in TABLE_5}
            return self._made(label, section, base.partition("/")[2], corruptions, 0)
        budget = dict(self.scale.budgets.get(base, {}))
        budget |= self.spec.get(f"budget_{self.name}", {}) | values.get("attack", {})
        budget |= values.get(f"attack_{self.name}", {}) | given
        if "purifier" not in section and "eot" in paper_budget(base):
            budget["eot"] = 1  # it answers in one way only
        budget = _changed(budget, paper_budget(base))
        asks = not base.startswith("transfer")
        name, sections = _labelled(base, budget), {"attack": base, **budget}
        if asks and self.scale.autocast:
            sections["autocast"] = self.scale.autocast
        norm = ATTACKS[base].as_dict().get("norm")
        is_a_row = self.name == "cpu" and label == defence and defence in ROWS
        in_its_ball = norm in THREATS and "eps" not in budget
        worst = f"{defence}_{norm}" if is_a_row and in_its_ball else None
        return self._made(label, section, name, {name: sections}, int(asks), worst)

    def _made(
        self, defence: str, section: dict[str, Any], name: str, attacks: dict[str, Any],
        asks: int, worst: str | None = None,
    ) -> Cell:  # fmt: skip
        judging: dict[str, Any] = {"purifications": 8}
        if name.startswith("bpda"):
            judging |= {"criterion": "any-step", "confirm": self.scale.confirm}
        judging |= self.spec.get(f"judging_{self.name}", {})
        trials = self.spec.get(f"trials_{self.name}", self.scale.trials[asks])
        return Cell(
            defence=defence, attack=name, section=section, attacks=attacks, judging=judging,
            images=self.spec.get(f"images_{self.name}", self.scale.images[asks]), trials=trials,
            rest=self.scale.rest, worst=worst,
        )  # fmt: skip


WORDS = {"weight": "lambda", "eot": "replicates"}


def _published(values: dict[str, Any], at: float | None) -> dict[str, str]:
    """The paper's figures; of a curve, those at this place."""
    found = values.get("published", {})
    return found if at is None else found.get(f"{at:g}", {})


def _changed(settings: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not what they would be anyway: equal cells then have equal labels."""
    as_json = json.loads(json.dumps(known))
    return {name: value for name, value in settings.items() if as_json.get(name) != value}


def _labelled(name: str, settings: Mapping[str, Any]) -> str:
    """A name that says its settings: one of the same name is the same."""

    def said(value: Any) -> str:
        if isinstance(value, dict):
            return " ".join(map(str, value.values()))
        return "-".join(map(str, value)) if isinstance(value, list) else str(value)

    return ", ".join([name, *(f"{key} {said(value)}" for key, value in settings.items())])


def cells(
    table: str, scale: str, *, images: int | None = None, **networks: str | None
) -> list[Cell]:
    """The cells of a table, each once; of so many images, if that is said."""
    every = (c for row in rows(table, scale, **networks) for c in row.cells.values())
    chosen = (c if images is None else replace(c, images=images) for c in every)
    return list({(c.run, c.attack): c for c in chosen}.values())


def run(table: str, args: argparse.Namespace) -> None:
    """Carry out what is not recorded yet, or say what it will take."""
    seconds = 0.0
    for cell in {c.run: c for c in cells(table, args.scale, **_chosen(args))}.values():
        config = cell.config(args.source)
        materials = config.materials()
        plan = config.plan(materials)
        if args.dry_run:
            foretold = estimate(plan, materials)
            seconds += sum(e.seconds for e in foretold)
            said = next((e.error for e in foretold if e.error), None)
            print(f"{cell.run}: {said or duration(sum(e.seconds for e in foretold))}", flush=True)
            continue
        folder = args.runs / args.scale / cell.run
        with _alone(folder):
            print(cell.run, flush=True)
            done = evaluate_plan(
                plan, materials, out=folder, workers=args.workers, progress=progress()
            )
            with done.store:
                print(done, flush=True)
    if args.dry_run:
        print(f"{table}: about {duration(seconds)} of one worker, what is recorded included")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Tables that share a cell wait for each other."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def export(table: str, args: argparse.Namespace) -> Path:
    """Write what is recorded of a table's cells, and the adaptive benchmark's figures beside."""
    described: dict[str, Any] = {"defences": {}, "others": {}, "attacks": {}}
    found, worst = [], {}
    for cell in cells(table, args.scale, **_chosen(args)):
        folder = args.runs / args.scale / cell.run
        if not (folder / "run.sqlite").exists():
            continue
        with Store(folder) as store:
            result = Result(store)
            if len(result.rows(cell.defence, cell.attack)) < cell.images * cell.trials:
                continue  # of a run that was stopped
            found.append(_figures(cell, result))
            described["defences" if _ships(cell) else "others"] |= result.plan.defences
            described["attacks"] |= {cell.attack: result.plan.attacks[cell.attack]}
            if cell.worst:
                beside = _worst(cell, result, args)
                worst |= {cell.worst + "|" + cell.attack: beside} if beside else {}
    about = {"machine": machine(), "table": table, "scale": args.scale, "plan": described,
             "cells": found, "worst": worst}  # fmt: skip
    return write(f"paper_{table}_{args.scale}", about)


def _ships(cell: Cell) -> bool:
    """Whether a defence is of networks that ship with the package alone."""
    parts = ("classifier", "denoiser") if "purifier" in cell.section else ("classifier",)
    return all(cell.section.get(part) in pretrained.names(part) for part in parts)


def write(name: str, about: dict[str, Any]) -> Path:
    """A result file, whole or not at all."""
    path = RESULTS / f"{name}.json"
    temporary = path.with_suffix(".json.part")
    temporary.write_text(json.dumps(about, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def _figures(cell: Cell, result: Result) -> dict[str, Any]:
    """Of one cell; ``right`` is each image's count of right judgements, of ``of``."""
    of = result.cell(cell.defence, cell.attack)
    any_step = of.unbroken is not None
    times = cell.trials * (1 if any_step else cell.judging["purifications"])
    shares = result.shares(cell.defence, cell.attack)
    return {
        "run": cell.run, "defence": cell.defence, "attack": cell.attack,
        "images": cell.images, "trials": cell.trials, "criterion": dict(cell.judging),
        "accuracy": None if of.robust is None else of.robust.as_dict(),
        "of the last image": None if of.accuracy is None else of.accuracy.as_dict(),
        "majority": None if of.majority is None else of.majority.as_dict(),
        "deviation": None if of.deviation is None else round(of.deviation, 4),
        "failed": of.failed, "denoiser calls": of.denoiser_calls,
        "classifier calls": of.classifier_calls, "seconds": round(of.seconds, 1),
        "of": times, "right": " ".join(str(round(times * shares[i])) for i in sorted(shares)),
    }  # fmt: skip


def _worst(cell: Cell, result: Result, args: argparse.Namespace) -> dict[str, Any] | None:
    """The adaptive benchmark's figure of the same defence, and ours less it.

    Over the same images where its record is at hand; else of means over those that each had.
    """
    row, _, norm = str(cell.worst).rpartition("_")
    file = RESULTS / f"adaptive_{cell.worst}.json"
    if not file.exists():
        return None
    suite = json.loads(file.read_text())["suites"]["adaptive"][row]
    about = {"accuracy": suite["accuracy"], "checks": suite["checks"]}
    folder = args.adaptive / f"{row}-{norm}"
    if args.source and (folder / "run.sqlite").exists():
        with Store(folder) as store:
            found = Result(store)
            shares = _on(found, row, args.source, cell.images)
            times = found.plan.trials * found.plan.judging["purifications"]
        ours = result.shares(cell.defence, cell.attack)
        if len(shares) == len(ours):
            about["of"] = times
            about["right"] = " ".join(str(round(times * shares[i])) for i in sorted(shares))
            about["difference"] = _rounded(difference(ours, shares))
    return about


def _on(found: Result, row: str, source: str, images: int) -> dict[int, float]:
    """The worst case of the images that are a run's of so many, by their places there."""
    shares = found.shares(row, "adaptive")
    theirs = data.load(source, n=found.plan.count).x
    places = {image.numpy().tobytes(): i for i, image in enumerate(theirs)}
    ours = (places.get(image.numpy().tobytes()) for image in data.load(source, n=images).x)
    return {i: shares[place] for i, place in enumerate(ours) if place in shares}


def _rounded(found: Difference) -> dict[str, float]:
    return {name: round(value, 4) for name, value in asdict(found).items()}


def shares(cell: Mapping[str, Any]) -> dict[int, float]:
    """Of an exported cell: how far each image is right, by its place."""
    return {i: int(count) / cell["of"] for i, count in enumerate(cell["right"].split())}


def less(a: Mapping[str, Any], b: Mapping[str, Any]) -> Difference:
    """One exported cell less another, over the same images."""
    return difference(shares(a), shares(b))


def _chosen(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("classifier", "denoiser", "images")}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("source", nargs="?", help="test images; without them, --draw alone")
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--classifier", help="in place of the scale's own")
    parser.add_argument("--denoiser", help="likewise")
    parser.add_argument("--images", type=int, help="fewer, to try it; nothing is exported")
    parser.add_argument("--dry-run", action="store_true", help="say what would run, how long")
    parser.add_argument("--draw", action="store_true", help="from the result file alone")
    parser.add_argument("--export", action="store_true", help="what is recorded, and draw it")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/paper"))
    parser.add_argument("--adaptive", type=Path, default=Path("runs/adaptive"))
    args = parser.parse_args(arguments)
    if not args.draw and args.source is None and not args.export:
        parser.error("name the images, or say --draw or --export")
    if specification(args.table).get("kind") == "timing":
        if not args.draw:
            paper_timing.run(args.table, args.scale, specification(args.table), SCALES[args.scale])
    elif not args.draw:
        if not args.export:
            run(args.table, args)
        if not (args.dry_run or args.images):
            print(export(args.table, args))
    if not (args.dry_run or args.images):
        import paper_drawing  # which imports this module

        paper_drawing.draw(args.table, args.scale)


if __name__ == "__main__":
    main()
