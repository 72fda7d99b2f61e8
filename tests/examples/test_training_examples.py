"""The training scripts: a run that was stopped and resumed is the run that was not."""

from __future__ import annotations

import itertools
import json
import math
import runpy
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tolerances import depth_of, rounding

from scoreopt_defense import Langevin, MENet, ScoreOpt, data, pretrained
from scoreopt_defense.pretrained.networks import TinyEnergy, TinyResNet, TinyUNet

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = {
    "train_denoiser": ["--widths", "4", "6", "--blocks", "1"],
    "train_ebm": ["--widths", "4", "6"],
    "train_pixelcnn": ["--width", "4", "--layers", "1"],
    "train_disco": [
        *("--classifier", "cifar10-tiny", "--attack-steps", "1"),
        *("--width", "4", "--blocks", "1", "--hidden", "6"),
    ],
    "train_classifier": ["--widths", "6", "8", "--stem", "4", "--blocks", "2", "--cutout", "3"],
}
every_script = pytest.mark.parametrize("script", SCRIPTS)
ADVERSARIAL, MENET = ["--adversarial", "8/255"], ["--menet", "0.8", "1"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Forty 8x8 colour images in two classes."""
    path = tmp_path_factory.mktemp("pictures") / "pictures.zip"
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as file:
        for i in range(40):
            encoded = BytesIO()
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(encoded, format="png")
            file.writestr(f"{'ab'[i % 2]}/{i}.png", encoded.getvalue())
    return path


def run(monkeypatch, script, source, out, *options):
    """Seven steps of eight images, so that a batch spans two epochs."""
    arguments = [
        str(source), "--out", str(out), "--images", "56", "--batch", "8", "--holdout", "6",
        "--shift", "1", "--device", "cpu", *SCRIPTS[script], *options,
    ]  # fmt: skip
    if "--adversarial" in options or script == "train_disco":
        pytest.importorskip("torchattacks")
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(EXAMPLES / f"{script}.py"), run_name="__main__")


def weights(out):
    (file,) = out.glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118


@pytest.mark.parametrize(
    ("script", "options"),
    [
        *((name, []) for name in SCRIPTS),
        *(("train_classifier", options) for options in (ADVERSARIAL, MENET)),
    ],
)
@pytest.mark.parametrize("stops", [(3,), (1, 2, 6)], ids=str)
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(
    script, options, stops, archive, tmp_path, monkeypatch
):
    run(monkeypatch, script, archive, tmp_path / "whole", *options)
    for stop in stops:
        torch.manual_seed(stop)  # a new process has another state
        run(monkeypatch, script, archive, tmp_path / "parts", "--stop-after", str(stop), *options)
        assert not list((tmp_path / "parts").glob("*.safetensors"))
    run(monkeypatch, script, archive, tmp_path / "parts", *options)

    whole, parts = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)
        for name in ("whole", "parts")
    )
    assert whole["step"] == parts["step"] == 7
    assert whole["losses"] == parts["losses"]
    for network in ("model", "averaged"):
        for name, value in whole[network].items():
            assert torch.equal(value, parts[network][name]), f"{network}.{name}"
    exported, metadata = weights(tmp_path / "whole")
    again, metadata_again = weights(tmp_path / "parts")
    assert metadata == metadata_again
    assert all(torch.equal(exported[name], again[name]) for name in exported)


@every_script
def test_training_moves_the_weights_and_another_seed_ends_elsewhere(
    script, archive, tmp_path, monkeypatch
):
    run(monkeypatch, script, archive, tmp_path / "first", "--stop-after", "1")
    run(monkeypatch, script, archive, tmp_path / "second", "--seed", "1")
    run(monkeypatch, script, archive, tmp_path / "third")
    first, second, third = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["model"]
        for name in ("first", "second", "third")
    )
    assert any(not torch.equal(first[name], third[name]) for name in first)
    assert any(not torch.equal(second[name], third[name]) for name in second)


OTHER_SETTINGS = [
    ("train_denoiser", ["--lr", "0.01"]),
    ("train_denoiser", ["--seed", "1"]),
    ("train_denoiser", ["--batch", "4"]),
    ("train_denoiser", ["--images", "64"]),
    ("train_denoiser", ["--no-flip"]),
    ("train_denoiser", ["--holdout", "5"]),
    ("train_denoiser", ["--sigma", "0.1", "2.0"]),
    ("train_denoiser", ["--widths", "4", "8"]),
    ("train_classifier", ["--weight-decay", "0.5"]),
    ("train_classifier", ["--label-smoothing", "0.3"]),
    ("train_classifier", ADVERSARIAL),
    ("train_classifier", MENET),
    ("train_ebm", ["--noise", "0.1", "1"]),
    ("train_disco", ["--eps", "0.1"]),
]


@pytest.mark.parametrize(("script", "options"), OTHER_SETTINGS, ids=lambda v: str(v))
def test_a_run_under_other_settings_refuses_the_checkpoint(
    script, options, archive, tmp_path, monkeypatch
):
    run(monkeypatch, script, archive, tmp_path, "--stop-after", "1")
    with pytest.raises(SystemExit, match=r"checkpoint.pt was made with other settings"):
        run(monkeypatch, script, archive, tmp_path, *options)


@every_script
def test_what_the_result_does_not_depend_on_may_change(script, archive, tmp_path, monkeypatch):
    run(monkeypatch, script, archive, tmp_path, "--stop-after", "1")
    run(monkeypatch, script, archive, tmp_path, "--checkpoint-minutes", "1")
    assert weights(tmp_path)[0]


@every_script
def test_nothing_need_be_held_out(script, archive, tmp_path, monkeypatch):
    run(monkeypatch, script, archive, tmp_path, "--holdout", "0")
    assert weights(tmp_path)[0]


@every_script
def test_only_training_images_are_read(script, archive, tmp_path, monkeypatch):
    splits = []
    load = data.load

    def recorded(source, *, split="test", **options):
        splits.append(split)
        return load(archive, split=split, **options)

    monkeypatch.setattr(data, "load", recorded)
    for name in ("mnist", "cifar", "cifar10_c", "image_folder"):
        monkeypatch.setattr(data, name, None)
    run(monkeypatch, script, "mnist", tmp_path, "--stop-after", "1")
    assert splits == ["train"]


def test_an_exported_denoiser_carries_its_card(archive, tmp_path, monkeypatch):
    run(monkeypatch, "train_denoiser", archive, tmp_path, "--sigma", "0.1", "2.0")
    tensors, metadata = weights(tmp_path)
    card = json.loads(metadata["card"])
    assert card["sigma_range"] == [0.1, 2.0]
    assert card["config"]["widths"] == [4, 6]
    TinyUNet(**card["config"]).load_state_dict(tensors)  # strict: every weight has its place
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


def test_a_denoiser_of_labels_is_told_one_or_none(archive, tmp_path, monkeypatch):
    run(monkeypatch, "train_denoiser", archive, tmp_path, "--labels")
    denoiser = pretrained.denoiser(f"file:{tmp_path / 'denoiser.safetensors'}")
    assert denoiser.label_dim == 2
    x_t = torch.rand(2, 3, 8, 8)
    told = [denoiser.with_class_label(label)(x_t, 0.5) for label in (None, 0, 1)]
    assert torch.equal(told[0], denoiser(x_t, 0.5))
    assert not any(torch.equal(told[i - 1], told[i]) for i in range(3))
    both = denoiser.with_class_label(torch.tensor([0, 1]))(x_t, 0.5)
    torch.testing.assert_close(both, torch.stack([told[1][0], told[2][1]]))


@pytest.mark.parametrize("script", ["train_denoiser", "train_ebm", "train_classifier"])
def test_an_exported_network_loads_by_its_place(script, archive, tmp_path, monkeypatch):
    run(monkeypatch, script, archive, tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    kind = "classifier" if script == "train_classifier" else "denoiser"
    loaded = getattr(pretrained, kind)(f"file:{file}")
    tensors, metadata = weights(tmp_path)
    network = {"denoiser": TinyUNet, "energy": TinyEnergy, "classifier": TinyResNet}[file.stem]
    expected = network(**json.loads(metadata["card"])["config"]).eval()
    expected.load_state_dict(tensors)
    x = torch.rand(2, 3, 8, 8)
    if file.stem == "energy":
        assert (loaded.sigma_range, loaded.channels) == ((0.0, 0.05), 3)
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(expected(leaf).sum(), leaf)
        got, want = loaded(x, 0.05), x - 0.05**2 * slope
        assert Langevin(loaded, level=0.05, steps=1)(x).shape == x.shape
    elif kind == "denoiser":
        assert (loaded.sigma_range, loaded.channels) == ((0.05, 1.0), 3)
        got, want = loaded(x, 0.3), expected(x, torch.full((2,), 0.3))
        assert ScoreOpt(loaded, steps=1, seed=0)(x).shape == x.shape
    else:
        got, want = loaded(x), expected(x)
    # not bit for bit: weights that lie otherwise in memory are summed otherwise
    tolerance = rounding(torch.float32, 16 + depth_of(expected), max(1.0, want.abs().max()))
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance)


def test_somebody_elses_classifier_is_defended_by_ones_own_denoiser(archive, tmp_path, monkeypatch):
    pytest.importorskip("torchattacks")
    pytest.importorskip("art")
    pytest.importorskip("recoloradv")
    import cifar10_third_party as script

    run(monkeypatch, "train_denoiser", archive, tmp_path)
    torch.save({"state_dict": script.CIFARResNet(8).state_dict()}, tmp_path / "resnet8.th")
    called = {}

    def record(defences, images, attacks, **options):
        called.update(defences, images=images, attacks=attacks)

    monkeypatch.setattr(script, "evaluate", record)
    monkeypatch.setattr(sys, "argv", [
        "cifar10_third_party", "--classifier", str(tmp_path / "resnet8.th"), "--images",
        str(archive), "--denoiser", f"file:{tmp_path}/denoiser.safetensors", "-n", "2",
        "--device", "cpu",
    ])  # fmt: skip
    script.main()
    x, y = called["images"]
    assert called["ScoreOpt-O"](x).shape == called["undefended"](x).shape == (2, 10)
    attacked = called["attacks"]["PGD+EOT"].replace(steps=1).run(called["ScoreOpt-N"], x, y)
    assert (attacked - x).abs().max() > 0


def test_adversarial_training_says_what_pgd_leaves_and_another_radius_ends_elsewhere(
    archive, tmp_path, monkeypatch
):
    runs = {"plain": [], "at": ADVERSARIAL, "wider": ["--adversarial", "0.1"]}
    for name, options in runs.items():
        run(monkeypatch, "train_classifier", archive, tmp_path / name, *options)
    plain, at, wider = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in runs
    )
    assert plain["log"][-1].keys() == {"step", "accuracy"}
    assert at["log"][-1].keys() == {"step", "accuracy", "PGD accuracy"}
    heads = [state["model"]["head.weight"] for state in (plain, at, wider)]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(heads, 2))
    cards = [json.loads(weights(tmp_path / name)[1]["card"]) for name in runs]
    assert [card.get("adversarial") for card in cards] == [None, 8 / 255, 0.1]


def test_only_adversarial_training_needs_torchattacks(archive, tmp_path, monkeypatch):
    pytest.importorskip("torchattacks")
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    run(monkeypatch, "train_classifier", archive, tmp_path / "plain", "--stop-after", "1")
    monkeypatch.setattr(pytest, "importorskip", lambda name: None)
    with pytest.raises(ImportError, match=r"needs torchattacks.*'scoreopt-defense\[attacks\]'"):
        run(monkeypatch, "train_classifier", archive, tmp_path / "at", *ADVERSARIAL)


@pytest.mark.parametrize("radius", ["8", "0", "-1/255", "1/0", "nan", "inf", "small"])
def test_a_radius_that_is_none_is_refused(radius, archive, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "train_classifier", archive, tmp_path, f"--adversarial={radius}")
    said = capsys.readouterr().err
    assert "argument --adversarial: must be above 0 and at most 1, such as 8/255" in said
    assert f"got {radius!r}" in said


def test_images_to_train_on_are_attacked_inside_the_ball_and_change_nothing_else():
    pytest.importorskip("torchattacks")
    from train_classifier import attacked

    rng = torch.Generator().manual_seed(0)
    x, y = torch.rand(6, 3, 8, 8, generator=rng), torch.arange(6)
    torch.manual_seed(0)
    model = TinyResNet(stem=4, widths=(6, 8)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()

    first, again, other = (
        attacked(model, x, y, eps=0.1, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert (first - x).abs().max() <= 0.1 + rounding(torch.float32, 2)
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name  # batch statistics too
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_the_attack_inside_is_that_of_fast_adversarial_training():
    """Of a linear model the sign s of the gradient is known: the change is eps s, or less.

    From a start d, uniform in [-eps, eps], a step of 1.25 eps along s leads past the ball unless
    d s < -eps / 4, which 3/8 of the starts are; these end between eps / 4 and eps.
    """
    pytest.importorskip("torchattacks")
    from train_classifier import attacked

    eps = 0.1
    sign = torch.where(torch.arange(192) % 2 == 0, 1.0, -1.0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2, bias=False))
    model[1].weight.data = torch.stack([-sign, sign])
    x, y = torch.full((50, 3, 8, 8), 0.5), torch.zeros(50, dtype=torch.long)
    moved = attacked(model, x, y, eps=eps, generator=torch.Generator().manual_seed(0)) - x
    along = moved.flatten(1) * sign / eps
    tolerance = rounding(torch.float32, 3) / eps
    assert along.min() >= 0.25 - tolerance
    assert along.max() <= 1 + tolerance
    spread = 4 * (3 / 8 * 5 / 8 / along.numel()) ** 0.5
    assert (along < 1 - tolerance).float().mean() == pytest.approx(3 / 8, abs=spread)


def test_noise_levels_of_training_reach_from_low_to_high():
    from train_denoiser import draw_sigma

    sigma = draw_sigma(20_000, 0.05, 1.0, torch.Generator().manual_seed(0))
    inside = ((sigma >= 0.05) & (sigma <= 1.0)).float().mean().item()
    # Four standard deviations of 20,000 draws: of a share, and of the median of a normal ln(sigma)
    # whose own deviation is ln(20) / 4. The range is that of two deviations.
    share = 4 * (0.9545 * 0.0455 / 20_000) ** 0.5
    middle = 4 * (math.pi / 2 / 20_000) ** 0.5 * math.log(20) / 4
    assert inside == pytest.approx(0.9545, abs=share)
    assert sigma.median().item() == pytest.approx((0.05 * 1.0) ** 0.5, rel=middle)


def test_augmentation_keeps_the_images_pixels():
    from training import Settings, _augment

    settings = {"source": "", "init": None, "holdout": 0, "images": 1, "batch": 1, "lr": 1.0,
                "ema": 0.9, "weight_decay": 0.0, "precision": "float32", "cutout": 0,
                "seed": 0}  # fmt: skip
    x = torch.rand(50, 2, 6, 6)
    same = _augment(x, Settings(**settings, flip=False, shift=0), torch.Generator())
    assert torch.equal(same, x)
    flipped = _augment(x, Settings(**settings, flip=True, shift=0), torch.Generator())
    is_flipped = [torch.equal(a, b.flip(2)) for a, b in zip(flipped, x)]
    is_same = [torch.equal(a, b) for a, b in zip(flipped, x)]
    assert all(a != b for a, b in zip(is_flipped, is_same))
    assert 10 < sum(is_flipped) < 40

    shifted = _augment(x, Settings(**settings, flip=False, shift=2), torch.Generator())
    padded = torch.nn.functional.pad(x, (2,) * 4, mode="reflect")
    seen = set()
    for image, around in zip(shifted, padded):
        places = [
            (dy, dx)
            for dy in range(5)
            for dx in range(5)
            if torch.equal(image, around[:, dy : dy + 6, dx : dx + 6])
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) > 15


@pytest.mark.parametrize("side", [3, 4])
def test_cutout_blanks_one_square_about_any_pixel(side):
    from training import _cut_out

    x = torch.zeros(400, 2, 9, 7)
    cut = _cut_out(x, side, torch.Generator().manual_seed(0)) == 0.5
    assert torch.equal(cut[:, 0], cut[:, 1])
    rows, columns = cut[:, 0].any(2), cut[:, 0].any(1)
    assert torch.equal(cut[:, 0], rows[:, :, None] & columns[:, None, :])
    for span, size in ((rows.sum(1), 9), (columns.sum(1), 7)):
        assert span.max() == side
        assert span.min() == side - side // 2  # about a pixel of the first row or column
        # four standard deviations of 400 draws
        share = (size - side + 1) / size
        spread = 4 * (share * (1 - share) / 400) ** 0.5
        assert (span == side).float().mean() == pytest.approx(share, abs=spread)
    assert cut[:, 0].any(0).all()
    assert not x.any()


def test_the_multiscale_loss_is_the_error_in_units_of_the_noise():
    """No slope: all of the noise is left. That of a Gaussian's energy, all noised alike: Wiener's.

    Of images of variance v, noised by sigma, E[x | x_t] leaves v / (v + sigma^2) of the noise's.
    """
    from train_ebm import multiscale_loss

    class Energy(torch.nn.Module):
        sigma = 0.3

        def __init__(self, curvature):
            super().__init__()
            self.curvature = curvature

        def forward(self, x):
            return self.curvature * x.square().sum((1, 2, 3)) / 2

    rng = torch.Generator().manual_seed(0)
    variance = 0.25
    x = (variance**0.5 * torch.randn(400, 1, 8, 8, generator=rng) + 1) / 2
    sigma = torch.full((400,), Energy.sigma)
    spread = 4 * (2 / x.numel()) ** 0.5
    best = 1 / (variance + Energy.sigma**2)
    for curvature, want in ((0.0, 1.0), (best, variance * best)):
        found = multiscale_loss(Energy(curvature), x, sigma, rng)
        assert found.item() == pytest.approx(want, abs=spread)


def test_what_menets_network_is_trained_on_is_completed_by_menet():
    from train_classifier import completed

    x = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    first, again, other = (
        completed(x, keep, torch.Generator().manual_seed(1))
        for keep in ((0.7, 0.7), (0.7, 0.7), (0.9, 0.9))
    )
    draws = torch.Generator().manual_seed(1)
    torch.rand((), generator=draws)
    seed = int(torch.randint(2**31, (), generator=draws))
    assert torch.equal(first, MENet(keep=0.7)(x, seed=seed))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_pixel_is_told_of_those_before_it_alone():
    from train_pixelcnn import PixelCNN

    torch.manual_seed(0)
    x = torch.rand(1, 3, 8, 8, requires_grad=True)
    logits = PixelCNN(channels=3, width=4, layers=2)(x)
    assert logits.shape == (1, 256, 3, 8, 8)
    (slope,) = torch.autograd.grad(logits[0, :, :, 4, 3].sum(), x)
    before = torch.arange(64).reshape(8, 8) < 4 * 8 + 3
    assert (slope[0, :, ~before] == 0).all()
    assert (slope[0, :, 3, 2:5] != 0).all()
    assert (slope[0, :, 4, 2] != 0).all()


@pytest.mark.parametrize("eps", [0, 16])
def test_pixel_defend_takes_the_likeliest_value_within_eps(eps, archive, tmp_path, monkeypatch):
    pytest.importorskip("art")
    from train_pixelcnn import pixel_defend

    run(monkeypatch, "train_pixelcnn", archive, tmp_path)
    purifier = pixel_defend(tmp_path / "pixelcnn.safetensors", eps=eps)
    assert purifier.modes == ("bpda",)
    levels = torch.randint(256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    levels[0, :, 0, :2] = torch.tensor([0, 255])  # where a ball ends at the scale's
    net = purifier.purification.net
    every = torch.arange(256).reshape(1, -1, 1, 1, 1)
    outside = (every - levels[:, None]).abs() > eps
    want = net(levels / 255).masked_fill(outside, -math.inf).argmax(1)
    found = purifier(levels / 255)
    assert torch.equal((255 * found).round().long(), want)
    with torch.autocast("cpu", torch.bfloat16):  # as attacks ask, of what NumPy has no type for
        moved = purifier(levels / 255) * 255 - levels
    assert moved.abs().max() <= eps + 1e-3


def test_disco_is_a_purifier_that_autograd_goes_through(archive, tmp_path, monkeypatch):
    from train_disco import Disco, disco

    run(monkeypatch, "train_disco", archive, tmp_path)
    purifier = disco(tmp_path / "disco.safetensors")
    assert purifier.modes == ("bpda", "exact", "smoothed")
    tensors, metadata = weights(tmp_path)
    net = Disco(**json.loads(metadata["card"])["config"])
    net.load_state_dict(tensors)
    x = torch.rand(2, 3, 8, 8)
    # from [0, 1] to [-1, 1] and back, before and after
    tolerance = rounding(torch.float32, 4 + depth_of(net))
    torch.testing.assert_close(purifier(x), net(x), rtol=0, atol=tolerance)
