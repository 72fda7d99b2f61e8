"""The core works without the optional libraries, and says which extra brings one."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from missing_libraries import BLOCK

from scoreopt_defense._optional import optional


def run_without(blocked, code):
    script = BLOCK.format(blocked=set(blocked)) + textwrap.dedent(code)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


OPTIONAL = ["art", "torchattacks", "pyautoattack", "diffusers", "mlxtend", "PIL", "torchvision",
            "matplotlib", "foolbox", "hypothesis", "scipy", "recoloradv", "imagecorruptions",
            "typer", "rich", "pydantic", "distributed", "azula", "jinja2",
            "datasets", "fastapi", "uvicorn"]  # fmt: skip


def test_the_core_needs_none_of_them_and_each_missing_one_names_its_extra():
    out = run_without(
        OPTIONAL,
        """
        import torch
        import scoreopt_defense as so
        from scoreopt_defense import attacks, data

        denoiser, classifier = (
            load("mnist-tiny") for load in (so.pretrained.denoiser, so.pretrained.classifier)
        )
        purifier = so.ScoreOpt.from_preset("mnist-tiny/N", denoiser, steps=1)
        model, x, y = so.DefendedModel(classifier, purifier), torch.rand(2, 1, 32, 32), [0, 0]
        print(tuple(model(x[..., :28, :28]).shape))
        for purify in (so.DiffPure(denoiser, steps=2), so.GDMP(denoiser, steps=2), so.BitDepth()):
            assert purify(x).shape == x.shape
        for attempt in (
            lambda: so.PurifierPreprocessor(purifier),
            lambda: so.JPEG()(x),
            lambda: data.mnist(),
            lambda: data.cifar("."),
            lambda: data.image_folder("."),
            lambda: data.source("hf:nothing"),
            *(
                lambda how=how: how.run(model, x, torch.tensor(y))
                for how in (
                    attacks.attack("pgd-eot-linf"), attacks.attack("stadv"), attacks.ARTPGD(),
                    attacks.FoolboxPGD(), attacks.attack("corruptions"), attacks.AutoPGD(),
                )
            ),
        ):
            try:
                attempt()
            except ImportError as error:
                print(error)
        """,
    ).splitlines()
    assert out[0] == "(2, 10)"
    wanted = [
        *[
            ("art", "art"),
            ("PIL", "data"),
            ("mlxtend", "data"),
            ("torchvision", "data"),
            ("PIL", "data"),
            ("datasets", "huggingface"),
        ],
        *[("torchattacks", "attacks"), ("recoloradv", "attacks"), ("art", "art")],
        *[("foolbox", "attacks"), ("imagecorruptions", "corruptions")],
        ("pyautoattack", "autoattack"),
    ]
    for line, (package, extra) in zip(out[1:], wanted, strict=True):
        assert line.startswith(f"this needs {package}, which could not be imported")
        assert line.endswith(f"pip install 'scoreopt-defense[{extra}]'")


def test_importing_the_package_loads_no_optional_library():
    out = run_without(
        [],
        f"""
        import sys
        import scoreopt_defense.attacks, scoreopt_defense.data, scoreopt_defense.denoisers
        print(sorted(set({OPTIONAL!r}) & set(sys.modules)))
        """,
    )
    assert out.strip() == "[]"


@pytest.mark.parametrize("asked", ["--version", "--help", "evaluate --help", "purify --help"])
def test_the_command_line_says_what_it_is_without_loading_torch(asked):
    pytest.importorskip("typer")
    out = run_without(
        ["torch"],
        f"""
        from scoreopt_defense.cli import main
        sys.exit(main({asked.split()!r}))
        """,
    )
    assert "scoreopt" in out


def test_optional_gives_the_module_or_says_what_to_install():
    assert optional("json.decoder", extra="x").JSONDecoder
    with pytest.raises(ImportError, match=r"needs nothing_here.*scoreopt-defense\[some\]"):
        optional("nothing_here.inside", extra="some")


def test_an_unknown_attribute_of_the_package_is_an_attribute_error():
    import scoreopt_defense

    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        scoreopt_defense.Nothing  # noqa: B018
    assert all(hasattr(scoreopt_defense, name) for name in scoreopt_defense.__all__)
    assert set(scoreopt_defense.__all__) <= set(dir(scoreopt_defense))


def test_a_part_of_the_package_is_there_without_an_import_of_its_own():
    out = run_without([], "import scoreopt_defense as so\nprint(so.gradients.BPDA, so.ScoreOpt)")
    assert "scoreopt_defense.gradients.BPDA" in out
    assert "scoreopt_defense.purifiers.scoreopt.ScoreOpt" in out
