"""A run by file: what is wrong with one is named."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from configurations import BARE, IMAGES, WHOLE
from toys import smooth_classifier

from scoreopt_defense import DefendedModel, OneShot, ScoreOpt, cli, pretrained
from scoreopt_defense.evaluation.config import ConfigError, _attack, _suite, load
from scoreopt_defense.evaluation.named import classifier, purifier
from scoreopt_defense.evaluation.plan import Plan
from scoreopt_defense.evaluation.report.reload import reload
from scoreopt_defense.evaluation.run.progress import Lines
from scoreopt_defense.objectives import MSE


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path):
    """As Windows' editors write it."""
    plain, marked = tmp_path / "plain.toml", tmp_path / "marked.toml"
    plain.write_text(WHOLE, encoding="utf-8")
    marked.write_text(WHOLE, encoding="utf-8-sig")
    assert marked.read_bytes() == b"\xef\xbb\xbf" + plain.read_bytes()
    assert load(marked) == load(plain)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("device", "is no regular file"),
        ("pipe", "is no regular file"),
        ("folder", "is no regular file"),
        (b"#" * (2**20 + 1), "must have at most 1,048,576 bytes"),
        (b"a = " + b"[" * 100_000, "is no TOML: "),
        (WHOLE.encode("utf-16"), "is no TOML: "),
    ],
)
def test_what_is_no_such_file_is_said_at_once(content, said, tmp_path, capsys):
    path = tmp_path / "run.toml"
    if content == "device":
        path.symlink_to("/dev/zero")
    elif content == "pipe":
        os.mkfifo(path)
    elif content == "folder":
        path.mkdir()
    else:
        path.write_bytes(content)
    assert cli.main(["evaluate", str(path)]) == 1
    assert said in capsys.readouterr().err


def test_commands_to_a_terminal_in_a_key_are_escaped(written, capsys):
    assert cli.main(["evaluate", str(written(IMAGES + BARE + '[judging]\n"\\u001b]0;a" = 1'))]) == 1
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert r"judging.\x1b]0;a" in error


def test_commands_to_a_terminal_in_a_name_are_escaped_as_a_run_goes_on(capsys):
    Lines().note("1/2 units, \x1b[31m on bare complete")
    assert capsys.readouterr().err == "1/2 units, \\x1b[31m on bare complete\n"


def test_what_the_file_says_is_what_is_made(written):
    config = load(written(WHOLE))
    materials = config.materials()
    bare, one_shot, n = materials.defences.values()
    assert isinstance(one_shot, DefendedModel)
    assert isinstance(one_shot.purifier, OneShot)
    assert one_shot.purifier.sigma == (0.5, 0.5)
    assert isinstance(n.purifier, ScoreOpt)
    assert (n.purifier.steps, n.purifier.sigma, n.votes) == (1, (0.75, 0.75), 2)
    x, _ = materials.images.batch(0, 4)
    assert torch.equal(bare(x), pretrained.classifier("mnist-tiny")(x))
    attack = materials.tasks["transfer-pgd-linf"]["n"].attack
    assert (attack.eps, attack.steps) == (0.2, 2)
    plan = config.plan(materials)
    assert (plan.seed, plan.batch, plan.count, plan.judging["purifications"]) == (3, 2, 4, 2)
    assert plan.columns == list(plan.attacks)[:3] == ["clean", "transfer-pgd-linf", "weak"]
    assert plan.hash == config.plan(config.materials()).hash


def test_a_purifier_of_another_size_than_the_classifiers(written):
    """Attacked at 32 pixels, purified at 24 and classified at 28."""
    purified = 'purifier = "OneShot"\ndenoiser = "mnist-tiny"\noverrides = { size = 24 }\n'
    text = f"{IMAGES}resize = 32\n{BARE}crop = 28\n{purified}"
    materials = load(written(text)).materials()
    (model,), (x, _) = materials.defences.values(), materials.images.batch(0, 4)
    assert (x.shape[-1], model.purifier.size) == (32, 24)
    want = pretrained.classifier("mnist-tiny")(model.purifier(x, seed=1)[..., 2:30, 2:30])
    assert torch.equal(model(x, seed=1), want)
    plan = Plan.of(materials, batch=4)
    (defence,) = plan.defences.values()
    assert len(defence.behaviour["denoised image at sigma 0.25"]["of"]) == 2 * 8
    (again,) = reload(Plan.from_json(plan.as_json())).models.values()
    assert torch.equal(again(x, seed=1), want)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (IMAGES, "defences is missing"),
        (BARE, "images is missing"),
        (
            f"sead = 1\n{IMAGES}{BARE}",
            r"no key sead: did you mean seed\?; there are \['attacks', 'batch'",
        ),
        (
            f"{IMAGES}spl = 1\n{BARE}",
            r"no key images.spl: did you mean split\?; there are \['columns', 'crop', 'n'",
        ),
        (f"{IMAGES}{BARE}x = 1", r"there is no key defences.bare.x; there are \['classifier'"),
        (
            f"{IMAGES}{BARE}suite = 'quick'",
            "no key defences.bare.suite: if it is meant for the whole",
        ),
        (f"batch = 0\n{IMAGES}{BARE}", "batch should be greater than or equal to 1, got 0"),
        (f"batch = 1.5\n{IMAGES}{BARE}", "batch should be a valid integer, got 1.5"),
        (f'seed = "1"\n{IMAGES}{BARE}', "seed should be a valid integer, got '1'"),
        (f'{IMAGES}{BARE}[judging]\ncriterion = "best"', "'final' or 'any-step', got 'best'"),
        (f"{IMAGES}[defences.a]", "defences.a.classifier is missing"),
        (f"{IMAGES}{BARE}[attacks.spsa]\neps = -1", "attacks.spsa.eps should be greater than 0"),
        (f'{IMAGES}{BARE}[attacks.spsa]\neps = "8/0"', "attacks.spsa.eps should be a valid number"),
        ("seed = ", "is no TOML"),
        (
            "[attacks.spsa]\neps = 8/255",
            r'is no TOML: .*; write a fraction in quotes: eps = "8/255"',
        ),
        (f"{IMAGES}[defenses.a]", "there is no key defenses: did you mean defences"),
        (f"{IMAGES}Order = 1\n{BARE}", r"no key images\.Order: did you mean order\?; there are"),
        ("seed = " + "9" * 5000, "is no TOML: Exceeds the limit"),
        ("seed = " + "[" * 10**5, "is no TOML"),
        (f"threads = 100000\n{IMAGES}{BARE}", "threads should be less than or equal to 1024, got"),
        *(
            (f'{IMAGES}{BARE}[attacks.spsa]\neps = "{eps}"', f"eps should be {said}")
            for eps, said in {
                "1e999999999": "a finite number",
                "1/1e-999999999": "a valid number",
                "1e-999999999": "greater than 0",
                "inf": "a finite number",
                "nan": "greater than 0",
            }.items()
        ),
    ],
)
def test_a_wrong_file_names_the_key_the_value_and_what_is_allowed(text, said, written):
    with pytest.raises(ConfigError, match=said):
        load(written(text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            f'[images]\nsource = "nowhere"\n{BARE}',
            "images: there is nothing at nowhere: expected 'mnist', ",
        ),
        (f"{IMAGES}{BARE}[suites.quick]\neps = 8", "suites.quick.eps must be .* at most 1"),
        (f'{IMAGES}[defences.a]\nclassifier = "x"', r"classifier = 'x': .*must be one of \['cifar"),
        (
            f'{IMAGES}[defences.a]\nclassifier = "file:no.safetensors"',
            "defences.a.classifier = 'file:no.safetensors': no file at no.safetensors",
        ),
        (
            f'{IMAGES}[defences.a]\nclassifier = "python:toys:nothing"',
            "toys has no function 'nothing'",
        ),
        (f'{IMAGES}{BARE}purifier = "Best"', r"purifier must be one of \['none', 'ADP', 'B.*'Sco"),
        (
            f'{IMAGES}{BARE}purifier = "JPEG"\ndenoiser = "mnist-tiny"',
            "JPEG has no network and takes no denoiser, got 'mnist-tiny'",
        ),
        (
            f'{IMAGES}{BARE}purifier = "JPEG"\noverrides = {{ gradient = "exact" }}',
            r"gradient='exact' needs .* the modes \['bpda'\]",
        ),
        (f'{IMAGES}{BARE}purifier = "GDMP"', "GDMP needs denoiser"),
        (f'{IMAGES}{BARE}purifier = "OneShot"', "OneShot needs denoiser"),
        (f'{IMAGES}{BARE}denoiser = "mnist-tiny"', "purifier 'none' takes no denoiser"),
        (
            f'{IMAGES}{BARE}purifier = "ScoreOpt"\ndenoiser = "mnist-tiny"\npreset = "x"',
            r"defences\.bare\.preset must be one of .*, got 'x'",
        ),
        (
            f'{IMAGES}{BARE}purifier = "OneShot"\ndenoiser = "mnist-tiny"\n'
            "overrides = { sigma = 9.0 }",
            r"sigma must be within \[0.1, 2\]",
        ),
        (
            f'{IMAGES}{BARE}purifier = "OneShot"\ndenoiser = "mnist-tiny"\noverrides = {{ x = 1 }}',
            "there is no setting 'x'",
        ),
        (f"{IMAGES}{BARE}[attacks.best]", r"attacks\.best\.attack must be one of .*, got 'best'"),
        (
            f"{IMAGES}{BARE}[attacks.spsa]\nx = 1",
            r"attacks\.spsa: there is no setting 'x'; there are \['preset', 'norm'",
        ),
        (f"{IMAGES}{BARE}[attacks.spsa]\neps = 8", r"attacks\.spsa\.eps must be .*8"),
        (
            f"{IMAGES.replace('4', '9999')}{BARE}",
            r"images\.n must be between 1 and the 1000 .* 9999",
        ),
        (f'suite = "x"\n{IMAGES}{BARE}', r"^suite must be one of \['quick', 'adaptive'\], got 'x'"),
        (f'device = "gpu"\n{IMAGES}{BARE}', 'device must be "cpu", "cuda", .*, got \'gpu\': '),
        (
            f"""{IMAGES}[defences.a]\nclassifier = "python:test_config:broken" """,
            r"ZeroDivisionError: .* \(.*test_config\.py, line \d+, in broken: return 1 / 0\)$",
        ),
    ],
)
def test_what_cannot_be_had_names_its_key(text, said, written):
    config = load(written(text))
    with pytest.raises(ConfigError, match=said):
        config.materials()


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ('suite = "Quick"', ["quick"]),
        ('suite = "Quick"\nsuites.quick.steps = 2', ["quick"]),
        ('suite = "quick"\nsuites.Quick.steps = 2', ["Quick"]),
    ],
)
def test_a_suite_in_any_case_is_one_suite(said, names, written):
    materials = load(written(f"{said}\n{IMAGES}{BARE}")).materials()
    assert list(materials.suites) == names
    attack = materials.tasks[f"{names[0]}/momentum PGD, as-it-is"]["bare"].attack
    assert attack.steps == (2 if "steps" in said else 80)


def test_an_override_may_be_an_object_with_settings():
    given = {"loss": {"name": "mse", "weight": 0.25}}
    made = purifier("ScoreOpt", "mnist-tiny", "mnist-tiny/O", given)
    assert made is not None
    assert made.settings.loss == MSE(weight=0.25)
    with pytest.raises(ValueError, match="loss must be one of"):
        purifier("ScoreOpt", "mnist-tiny", "mnist-tiny/O", {"loss": {"name": "l1"}})


BASELINES = ["ADP", "BitDepth", "DiffPure", "GDMP", "JPEG", "MENet", "PurSAMERE"]


@pytest.mark.parametrize("kind", BASELINES)
def test_every_baseline_can_be_named(kind, written):
    network = "" if kind in ("BitDepth", "JPEG", "MENet") else 'denoiser = "mnist-tiny"\n'
    text = f'{IMAGES}{BARE}purifier = "{kind}"\n{network}overrides = {{ max_batch = 7, seed = 3 }}'
    materials = load(written(text)).materials()
    (model,) = materials.defences.values()
    assert type(model.purifier).__name__ == kind
    assert (model.purifier.max_batch, model.purifier.seed) == (7, 3)
    plan = Plan.of(materials, trials=1, batch=8, seed=0, threads=1)
    again = reload(Plan.from_json(plan.as_json()))
    assert not again.missing
    (loaded,) = again.models.values()
    assert loaded.purifier.settings == model.purifier.settings


def broken():
    return 1 / 0


def toy_classifier():
    return smooth_classifier(torch.float32, channels=1, size=28, classes=10).train()


def test_a_classifier_of_ones_own():
    found = classifier("python:test_config:toy_classifier")
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(found(x), toy_classifier()(x))
    assert not found.training


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"this needs timm.*pip install timm"):
        classifier("timm:resnet18")


def test_a_fraction_is_the_number_that_its_parts_divide_to(written):
    config = load(written(f'{IMAGES}{BARE}[attacks.spsa]\neps = " 8 / 255 "'))
    assert config.attacks["spsa"].eps == 8 / 255


ROOT = Path(__file__).parents[2]


TOMLS = [*ROOT.glob("examples/*.toml"), *ROOT.glob("benchmarks/**/*.toml")]
SHIPPED = [path for path in TOMLS if "[images]" in path.read_text()]  # others: the paper's tables


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_configuration_that_ships_names_what_there_is(path):
    """Their data and networks may not be here; their attacks, suites and settings are."""
    config = load(path)
    attacks = {name: _attack(name, section, 3072) for name, section in config.attacks.items()}
    assert all(callable(attack.run) for attack in attacks.values())
    for name, section in config.suites.items():
        assert _suite(name, section).norm in ("linf", "l2")
    for section in config.defences.values():
        if section.denoiser in (None, *pretrained.names("denoiser")):
            arguments = section.purifier, section.denoiser, section.preset, section.overrides
            assert (purifier(*arguments) is None) == (section.purifier == "none")
