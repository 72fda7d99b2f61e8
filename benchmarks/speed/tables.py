"""The tables of docs/results/speed.md, and that of what gradients cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.common.table_text import markdown, percent, results
from benchmarks.common.timing import slope
from benchmarks.speed.frontier import joined

Row = dict[str, Any]
FREED = "freed memory"


def speed_overhead() -> str:
    """Whole calls over the bare network's passes."""
    rows = [row for row in _of_both("overhead") if "loss" in row]
    ways = _ways(rows)
    return markdown(
        ["images", "steps", "ScoreOpt", FREED, "bare network, ms an image and step", *ways],
        [
            [*_texts(row, "batch", "steps"), f"{row['variant']}, {row['loss']}", row[FREED],
             _ms(row["seconds"]["bare network"], row["batch"] * row["steps"]),
             *(_spread(row["ratios"].get(way)) for way in ways)]
            for row in rows
        ],
    )  # fmt: skip


def speed_doors() -> str:
    """What the defended model and ART's classifier add."""
    rows = [row for row in results("speed_overhead")["rows"] if "doors" in row]
    ways = _ways(rows)
    return markdown(
        ["images", "steps", *ways],
        [
            [*_texts(row, "batch", "steps"), *(_spread(row["ratios"][way]) for way in ways)]
            for row in rows
        ],
    )


def speed_parts() -> str:
    """Shares of a step."""
    rows = [row for row in results("speed_overhead")["rows"] if "parts" in row]
    ways = _ways(rows)
    return markdown(
        ["images", "a step, ms an image", *ways],
        [
            [str(row["batch"]), _ms(row["seconds"]["a step"], row["batch"]),
             *(_spread(row["ratios"][way]) for way in ways)]
            for row in rows
        ],
    )  # fmt: skip


def speed_authors() -> str:
    """Our calls over the authors' loops, and how far apart the results are."""
    rows = _of_both("authors")
    ways = _ways(rows)
    differences = [f"largest difference, {way}" for way in ways]
    return markdown(
        ["images", "steps", "ScoreOpt", FREED, *ways, *differences, "in float64, up to 8 images"],
        [
            [*_texts(row, "batch", "steps", "variant", FREED),
             *(_spread(row["ratios"].get(way)) for way in ways),
             *(f"{row['largest difference'][way]:.0e}" for way in ways),
             f"{row['in float64, of 8 images']:.0e}"]
            for row in rows
        ],
    )  # fmt: skip


def costs() -> str:
    """Memory of each gradient mode, and its time over naive autograd's."""
    held = {
        (row["variant"], row["steps"], row["how"]): row["megabytes"]
        for row in results("memory_gradients")["rows"]
    }
    rows = sorted(results("speed_gradients")["rows"], key=lambda r: (r["variant"], r["steps"]))
    ways, hows = _ways(rows), list(dict.fromkeys(how for *_, how in held))

    def megabytes(row: Row, how: str) -> str:
        found = held.get((row["variant"], row["steps"], how))
        return "-" if found is None else f"{found:,}"

    return markdown(
        ["ScoreOpt", "steps", *(f"{how}, MB" for how in hows), *(f"{way} / naive" for way in ways)],
        [
            [*_texts(row, "variant", "steps"), *(megabytes(row, how) for how in hows),
             *(_spread(row["ratios"].get(way)) for way in ways)]
            for row in rows
        ],
    )  # fmt: skip


def speed_sequential() -> str:
    """Milliseconds an image by steps, and of a step more."""
    found = results("speed_sequential")["rows"]
    rows = [row for row in found if "steps" in row]
    names = list(rows[0]["seconds"])
    lines = {row["milliseconds an image"]: row["slope"] for row in found if "slope" in row}
    more = [_spread(lines[name]) for name in names]
    return markdown(
        ["steps", *(f"{name}, ms an image" for name in names)],
        [[str(row["steps"]), *(_ms(row["seconds"][name], row["batch"]) for name in names)]
         for row in rows] + [["each step more", *more]],
    )  # fmt: skip


def speed_many_steps() -> str:
    """ScoreOpt-N at few steps over DiffPure at many."""
    rows = [row for row in results("speed_sequential")["rows"] if "steps of DiffPure" in row]
    return markdown(
        ["steps of ScoreOpt-N", "steps of DiffPure", "DiffPure / ScoreOpt-N", "the paper's"],
        [
            [*_texts(row, "steps of ScoreOpt-N", "steps of DiffPure"),
             f"{1 / row['ratios']['ScoreOpt-N']['value']:.1f}", "9.2"]
            for row in rows
        ],
    )  # fmt: skip


def speed_attacks() -> str:
    """An EOT gradient in one pass over torchattacks' loop."""
    rows = [row for row in results("speed_attacks")["rows"] if "replicates" in row]
    return markdown(
        ["images", "steps", "replicates", "EOTPGD, s", "one pass / EOTPGD", "passes of an image"],
        [
            [*_texts(row, "batch", "steps", "replicates"),
             f"{row['seconds']['EOTPGD']['value']:.2f}", _spread(row["ratios"]["one pass"]),
             " and ".join(str(count) for count in row["passes of an image"].values())]
            for row in rows
        ],
    )  # fmt: skip


def speed_evaluate() -> str:
    """Throughput of an evaluation, and its time over that of its networks' passes."""
    rows = [row for row in results("speed_attacks")["rows"] if "evaluation" in row]

    def rate(row: Row, way: str) -> str:
        return f"{row['purifications'] / row['seconds'][way]['value']:.1f}"

    return markdown(
        ["images", "purifications", "a second", "bare networks, a second", "time over theirs"],
        [
            [*_texts(row, "batch", "purifications"), rate(row, "evaluate"),
             rate(row, "bare networks"), _spread(row["ratios"]["evaluate"])]
            for row in rows
        ],
    )  # fmt: skip


def speed_scaling() -> str:
    """Exponents of the power laws that fit."""
    rows = [row for row in results("speed_scaling")["rows"] if "exponent of" in row]
    return markdown(
        ["ScoreOpt", "against", "exponent", "of the bare network"],
        [
            [*_texts(row, "variant", "exponent of"), _spread(row["ScoreOpt"]),
             _spread(row["bare network"])]
            for row in rows
        ],
    )  # fmt: skip


def paper_networks() -> str:
    """Operations of the paper's networks."""
    rows = [row for row in results("speed_paper")["rows"] if "network" in row]
    return markdown(
        ["network", "pixels", "forward, GFLOP", "with input gradient, GFLOP"],
        [
            [row["network"], " x ".join(map(str, row["shape"][1:])), f"{row['forward'] / 1e9:,.1f}",
             f"{(row['forward'] + row['input gradient']) / 1e9:,.1f}"]
            for row in rows
        ],
    )  # fmt: skip


def paper_hours() -> str:
    """What Table 1's rows of ScoreOpt would cost."""
    rows = [row for row in results("speed_paper")["rows"] if row.get("table") == 1]
    return markdown(
        ["ScoreOpt", "steps", "GFLOP a purification", "overhead", "attack, h", "votes, h"],
        [
            [*_texts(row, "variant", "steps"),
             f"{sum(row['FLOPs of a purification'].values()) / 1e9:.0f}",
             f"{row['measured overhead']:.2f}", f"{row['hours']['attack']:.1f}",
             f"{row['hours']['votes']:.1f}"]
            for row in rows
        ],
    )  # fmt: skip


def memory_authors() -> str:
    """The most that a call holds, ours and the authors'."""
    rows = results("memory_authors")["rows"]
    hows = list(dict.fromkeys(row["how"] for row in rows))
    return _megabytes(rows, ["variant", "batch", "steps"], "how", hows)


def memory_max_batch() -> str:
    """The most that a call holds, by ``max_batch``, and what each image of it adds."""
    rows = results("memory_max_batch")["rows"]
    chunks = sorted({row["max_batch"] for row in rows})
    of = {"eager": "no gradient", "exact": "exact gradient"}
    keys = dict.fromkeys((row["variant"], row["how"]) for row in rows)
    lines = []
    for variant, how in keys:
        held = {r["max_batch"]: r["megabytes"] for r in rows
                if (r["variant"], r["how"]) == (variant, how)}  # fmt: skip
        line = slope(chunks, [held[chunk] for chunk in chunks])["slope"]
        lines.append([variant, of[how], *(f"{held[chunk]:,}" for chunk in chunks), _spread(line)])
    return markdown(["ScoreOpt", "", *map(str, chunks), "MB an image"], lines)


def memory_jacobian() -> str:
    """The most that a call holds with the denoiser's Jacobian, and without."""
    rows = [
        row | {"of": of}
        for of, part in {"the process": "jacobian", "its tensors": "tensors"}.items()
        for row in results(f"memory_{part}")["rows"]
    ]
    keys = ["variant", "batch", "steps", "of"]
    return _megabytes(rows, keys, "how", ["eager", "without the Jacobian"])


def frontier_points() -> str:
    """The grid by time: what no other point beats is bold."""
    rows = sorted(joined(), key=lambda row: row["ms"]["value"])
    return markdown(
        ["purifier", "settings", "ms an image", "clean, %", "lowest, %", "transfer", "surrogate",
         "smoothed"],
        [
            [f"**{row['kind']}**" if row["undominated"] else row["kind"],
             ", ".join(f"{name} {value}" for name, value in row["settings"].items()
                       if name not in ("variant", "jacobian")),
             f"{row['ms']['value']:.1f}",
             *(percent(row["accuracy"][column], 0)
               for column in ("clean", "lowest", "transfer PGD", "surrogate", "smoothed"))]
            for row in rows
        ],
    )  # fmt: skip


def frontier_stopping() -> str:
    """Network calls of ScoreOpt-N stopped early, and accuracy less the full one's, in points."""

    def points(found: Row) -> str:
        less = found["less full"]
        return f"{100 * less['value']:+.1f} ({100 * less['low']:+.1f} to {100 * less['high']:+.1f})"

    rows = results("frontier_stopping")["rows"]
    return markdown(
        ["steps", "tol", "network calls", *(f"{column}, points" for column in rows[0]["accuracy"])],
        [
            [*_texts(row, "steps", "tol"), f"{100 * row['calls']:.0f} %",
             *(points(found) for found in row["accuracy"].values())]
            for row in rows
        ],
    )  # fmt: skip


def _megabytes(rows: list[Row], keys: list[str], by: str, columns: list[Any]) -> str:
    found = {(*(row[key] for key in keys), row[by]): row["megabytes"] for row in rows}
    return markdown(
        [
            *("ScoreOpt" if key == "variant" else key for key in keys),
            *(f"{c}, MB" for c in columns),
        ],
        [
            [*map(str, cell), *(f"{found[(*cell, column)]:,}" for column in columns)]
            for cell in dict.fromkeys(tuple(row[key] for key in keys) for row in rows)
        ],
    )


def _of_both(part: str) -> list[Row]:
    """Rows measured with freed memory given back to the system, as usual, and with it kept."""
    found = {"given back": f"speed_{part}", "kept": f"speed_{part}_kept"}
    rows = [{**row, FREED: said} for said, name in found.items() for row in results(name)["rows"]]
    return sorted(rows, key=lambda row: -row["batch"])


def _ways(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(way for row in rows for way in row["ratios"]))


def _texts(row: Row, *names: str) -> list[str]:
    return [str(row[name]) for name in names]


def _ms(seconds: dict[str, float], over: int) -> str:
    return f"{1000 * seconds['value'] / over:.2f}"


def _spread(figure: dict[str, float] | None) -> str:
    """A figure with its quartiles or its interval."""
    if figure is None:
        return "-"
    return f"{figure['value']:.2f} ({figure['low']:.2f} to {figure['high']:.2f})"


def stored_images() -> str:
    """Bits a number of attacked images, and how long an image takes."""
    rows = results("stored_images")["rows"]
    return markdown(
        ["bits a number (milliseconds an image)",
         *(f"{row['attack']}, {row['side']}²" for row in rows)],
        [
            [way, *(f"{of['bits a number']:.1f} ({of['milliseconds an image']:.1f})"
                    for of in (row["ways"][way] for row in rows))]
            for way in rows[0]["ways"]
        ]
        + [["images that 16 bits hold exactly, %",
            *(f"{100 * row['exact as 16 bits, share of images']:.0f}" for row in rows)]],
    )  # fmt: skip


SPEED_TABLES: dict[str, Callable[[], str]] = {
    table.__name__: table
    for table in (
        speed_overhead, speed_doors, speed_parts, speed_authors, costs, speed_sequential,
        speed_many_steps, speed_attacks, speed_evaluate, speed_scaling, paper_networks, paper_hours,
        memory_authors, memory_max_batch, memory_jacobian, frontier_points, frontier_stopping,
        stored_images,
    )
}  # fmt: skip
