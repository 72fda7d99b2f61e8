"""The tables of the README and of docs/ are those that the committed results give."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.common.results_file import RESULTS, weights
from benchmarks.documents import TABLES, refreshed
from benchmarks.speed.frontier import joined, point_of
from scoreopt_defense import pretrained
from scoreopt_defense.evaluation.plan.fingerprint import described
from scoreopt_defense.presets import preset

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "benchmarks/README.md", *sorted(ROOT.glob("docs/**/*.md"))]


def _place(document: Path) -> str:
    return str(document.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=_place)
def test_a_document_made_anew_from_the_results_is_as_it_is(document):
    assert refreshed(document.read_text()) == document.read_text()


def test_every_table_is_in_a_document():
    texts = [document.read_text() for document in DOCUMENTS]
    assert all(any(f"<!-- {name} -->" in text for text in texts) for name in TABLES)


RECORDS = "docs/results"
#: Documents whose words are held to tables, and whose tables those are.
WORDS = {
    f"{RECORDS}/paper.md": [f"{RECORDS}/paper.md"],
    f"{RECORDS}/robustness.md": [
        f"{RECORDS}/{page}.md" for page in ("robustness", "attack-suite", "paper")
    ],
    f"{RECORDS}/attack-suite.md": [f"{RECORDS}/attack-suite.md"],
    f"{RECORDS}/gradients.md": [
        f"{RECORDS}/{page}.md" for page in ("gradients", "robustness", "weaker-attacks", "paper")
    ],
    f"{RECORDS}/weaker-attacks.md": [
        f"{RECORDS}/{page}.md" for page in ("weaker-attacks", "gradients", "paper")
    ],
}


@pytest.mark.parametrize("document", WORDS)
def test_a_figure_in_words_that_has_an_interval_is_one_of_a_table(document):
    """As "10 fewer (5 to 15)" is a table's "-10.3 (-15 to -5)"."""
    tables = "\n".join(_lines(path, table=True) for path in WORDS[document])
    figures = re.findall(r"([-+]?[\d.]+) \(([-+]?\d+) to ([-+]?\d+)\)", tables)
    measured = {(float(value), int(low), int(high)) for value, low, high in figures}
    measured |= {(-value, -high, -low) for value, low, high in measured}
    said = set(_figures(_lines(document, table=False)))
    assert said
    for value, *ends in said:
        assert any(abs(value - found) < 0.51 for found, *its in measured if its == ends), value


def _lines(document: str, *, table: bool) -> str:
    """Those of its tables, or the others."""
    lines = (ROOT / document).read_text().splitlines()
    return "\n".join(line for line in lines if line.startswith("|") is table)


def _figures(words: str) -> Iterator[tuple[float, int, int]]:
    """Of "17 more (8 to 25)" and of "(4, -2 to 9; 17, 8 to 25)"."""
    for before, within in re.findall(r"([^()]*)\(([^()]*)\)", words):
        for part in within.split(";"):
            found = re.search(r"(?:([-+]?[\d.]+)[^\d,]*,\s)?(-?\d+)\sto\s(-?\d+)$", part)
            if found:
                value = found[1] or re.findall(r"\d+(?:\.\d+)?", before)[-1]
                yield float(value), int(found[2]), int(found[3])


#: Pages that teach: short, and in short sentences. The others are records and references.
NO_GUIDE = "releasing"
GUIDES = [
    path
    for path in DOCUMENTS
    if path.name == "README.md"
    or (path.parent.name in ("tutorials", "how-to", "understand", "docs") and path.stem != NO_GUIDE)
]


@pytest.mark.parametrize("guide", GUIDES, ids=_place)
def test_a_guide_is_short(guide):
    text = guide.read_text()
    # tables that are made of results are looked up, not read
    words = re.sub(r"<!-- (\w+) -->.*?<!-- /\1 -->", "", text, flags=re.DOTALL).split()
    assert len(words) <= 900
    sentences = list(_sentences(_prose(guide)))
    mean = sum(len(sentence.split()) for sentence in sentences) / len(sentences)
    assert mean <= 25, f"{mean:.0f} words a sentence"


def _sentences(text: str) -> Iterator[str]:
    """Of paragraphs and of items; not of tables and headings."""
    kept = [line for line in text.splitlines() if not re.match(r"\s*(\||#|<|!\[)", line)]
    parts = re.split(r"\n\s*\n|\n\s*(?:[-*>]|\d+\.)\s", "\n".join(kept))
    for part in parts:
        yield from (said for said in re.split(r"(?<=[.!?:;])\**\s", part) if said.strip())


@pytest.mark.parametrize("guide", GUIDES, ids=_place)
def test_a_guide_begins_with_an_example(guide):
    """Code, a picture, a table or a term, in what stands before the second section's heading."""
    beginning = "\n## ".join(guide.read_text().split("\n## ")[:2])
    assert re.search(r"^(```|!\[|\||:   )", beginning, flags=re.MULTILINE)


#: Names that a reader of Python knows, or that are a library's.
KNOWN = (
    "API|AVX|CC|BY|CPUs?|CUDA|GPUs?|HTML|JPEG|JSON|LeCun|MIT|MiB|NaN|PNG|PyTorch|RGB|RobustBench|"
    "SIGTERM|TOML"
)


def test_the_glossary_has_every_abbreviation_of_a_guide():
    glossary = (ROOT / "docs/understand/glossary.md").read_text()
    assert glossary.index("**ScoreOpt-O**") < glossary.index("**ScoreOpt-N**") < 300
    for guide in GUIDES:
        words = re.sub(r"`[^`]*`|\]\([^)]*\)|[A-Z]+\.\w+", "", _prose(guide))
        found = set(re.findall(r"\b[A-Za-z]*[A-Z][A-Za-z]*[A-Z][A-Za-z]*\b", words))
        unsaid = [name for name in found if name not in glossary]
        assert not [name for name in unsaid if not re.fullmatch(KNOWN, name)], guide


PLACES = [*DOCUMENTS, ROOT / "Makefile", ROOT / "CONTRIBUTING.md", *ROOT.glob("benchmarks/**/*.py")]
COMMANDS = sorted(
    {name for path in PLACES for name in re.findall(r"-m (benchmarks(?:\.\w+)+)", path.read_text())}
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_benchmark_that_is_named_can_be_called(command, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [command, "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(command).main()
    assert ended.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_a_configuration_that_is_named_is_there():
    configs = ROOT.glob("benchmarks/configs/*.toml")
    texts = [path.read_text() for path in (*PLACES, *configs)]
    named = {name for text in texts for name in re.findall(r"benchmarks/[\w/]+\.toml", text)}
    assert len(named) > 3
    assert all((ROOT / name).exists() for name in named)


@pytest.mark.parametrize("document", DOCUMENTS, ids=_place)
def test_a_link_leads_somewhere(document):
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", _prose(document)):
        path, _, heading = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not heading or heading in _headings(target), link


def _headings(document: Path) -> set[str]:
    """What a link names them by: GitHub's rule."""
    lines = re.findall(r"^#+ (.*)$", _prose(document), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def _prose(document: Path) -> str:
    """All of it but its code."""
    return re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)


def test_the_tuned_presets_are_the_best_of_the_grid_that_was_measured():
    best = json.loads((RESULTS / "tune_presets_cifar10-tiny.json").read_text())["best"]
    for variant in ("O", "N"):
        sigma = best[variant]["sigma"]
        low, high = sigma if isinstance(sigma, list) else (sigma, sigma)
        assert preset(f"cifar10-tiny/{variant}") == best[variant] | {"sigma": (low, high)}


def test_the_fast_preset_is_the_cheapest_point_of_the_frontier():
    times = [row["ms"]["value"] for row in joined() if row["purifier"] == "ScoreOpt"]
    assert point_of("fast")["ms"]["value"] == min(times)


every_result = pytest.mark.parametrize(
    "path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem
)


def _refuse(constant):
    raise ValueError(f"{constant} is no JSON")


@every_result
def test_a_result_file_is_json(path):
    assert json.loads(path.read_text(), parse_constant=_refuse)  # of Python's own: NaN, Infinity


@every_result
def test_figures_about_shipped_weights_are_about_those_that_ship_now(path):
    found = json.loads(path.read_text())
    kinds = ("classifier", "denoiser")
    shipped = [weights(name) for kind in kinds for name in pretrained.names(kind)]
    assert found.get("weights") in [None, *shipped]
    if "plan" in found and path.stem not in OF_OTHERS:  # a run that was exported
        measured = set(_digests(found["plan"]["defences"]))
        alone = {section.get("module") for section in found["plan"]["defences"].values()}
        assert measured or found["plan"].get("others") or alone <= set(NOT_OURS)
        assert measured <= {
            described(getattr(pretrained, kind)(name))["weights"]
            for kind in ("classifier", "denoiser")
            for name in pretrained.names(kind)
        }


#: Another's classifier, what stands where a purifier has no network, and what scripts train here.
NOT_OURS = (
    "CIFARResNet", "NoDenoiser", "EnergyDenoiser", "PixelDefence", "Disco", "DiffusionClassifier"
)  # fmt: skip
#: Of networks that nothing was tuned to.
OF_OTHERS = ("second_pair",)


def _digests(part: object) -> Iterator[str]:
    if isinstance(part, dict):
        if "weights" in part and part["module"] not in NOT_OURS:
            yield part["weights"]
        for inner in part.values():
            yield from _digests(inner)
