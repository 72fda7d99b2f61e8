"""EDM snapshots: read right, never run, converted, and refused where they are damaged."""

from __future__ import annotations

import json
import math
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

pytest.importorskip("deepinv")

from edm_snapshots import (
    ADM,
    DDPMPP,
    NCSNPP,
    SMALL,
    Call,
    Persistent,
    deepinv_net,
    set_waves,
    snapshot,
    write,
)
from tolerances import depth_of, everything_in_float64, rounding

from scoreopt_defense import cli, pretrained
from scoreopt_defense.denoisers import deepinv_denoiser, match_edm_groups
from scoreopt_defense.pretrained import edm_network
from scoreopt_defense.pretrained.edm_pickle import read_snapshot

X = torch.sin(torch.arange(2 * 3 * 16 * 16, dtype=torch.float64) * 0.7).reshape(2, 3, 16, 16)
X = X.float()

# What NVlabs/edm (commit 008a4e5) computes on the CPU for these arguments, the weights of
# ``set_waves`` and the image X, at sigma 0.25 and 2: two pixels and the standard deviation.
NVIDIA = {
    "edm-ddpmpp": (
        {"precond": "EDMPrecond", "unet": "SongUNet"} | DDPMPP | SMALL,
        [[-0.444105, 0.702566, 0.564364], [-0.006459, 0.108732, 0.059066]],
    ),
    "edm-ncsnpp": (
        {"precond": "EDMPrecond", "unet": "SongUNet"} | NCSNPP | SMALL,
        [[-0.479029, 0.719641, 0.563445], [-0.071797, 0.133876, 0.075302]],
    ),
    "vp-ddpmpp": (
        {"precond": "VPPrecond", "unet": "SongUNet"} | DDPMPP | SMALL,
        [[-0.576785, 0.806193, 0.708405], [-0.672819, 0.598396, 0.731923]],
    ),
    "ve-ncsnpp": (
        {"precond": "VEPrecond", "unet": "SongUNet"} | NCSNPP | SMALL,
        [[-0.588704, 0.889063, 0.705532], [-0.769872, 1.221541, 0.738744]],
    ),
    "edm-ddpmpp-classes": (
        {"precond": "EDMPrecond", "unet": "SongUNet", "label_dim": 10} | DDPMPP | SMALL,
        [[-0.448009, 0.717706, 0.564894], [-0.0402, 0.115271, 0.060726]],
    ),
    "edm-adm-classes": (
        {"precond": "EDMPrecond", "unet": "DhariwalUNet", "label_dim": 10} | SMALL | ADM,
        [[-0.509733, 0.672798, 0.568047], [-0.118801, 0.062606, 0.072939]],
    ),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("edm") / "network-snapshot-000001.pkl"
    return write(path, snapshot(**DDPMPP, **SMALL))


@pytest.mark.parametrize("name", NVIDIA)
def test_snapshots_compute_what_nvidias_code_computes(name, tmp_path):
    """Ours in float64, the same on every CPU: what is left is the rounding of NVIDIA's numbers.

    That is a constant, of one float32 evaluation, whose layers' errors add in squares, and of the
    six decimals that are kept. A noise level that is off by a thousandth stands out from it.
    """
    arguments, expected = NVIDIA[name]
    path = write(tmp_path / "snapshot.pkl", snapshot(**arguments))
    denoiser = pretrained.denoiser(f"edm:{path}")
    if "label_dim" in arguments:
        denoiser = denoiser.with_class_label(3)
    denoiser.double()
    tolerance = rounding(torch.float32, math.sqrt(depth_of(denoiser))) + 0.5e-6

    def three(sigma):
        with everything_in_float64(), torch.no_grad():
            d = denoiser(X.double(), sigma)
        return [d[0, 0, 3, 5].item(), d[1, 2, 15, 0].item(), d.std().item()]

    for sigma, numbers in zip((0.25, 2.0), expected, strict=True):
        assert three(sigma) == pytest.approx(numbers, abs=tolerance)
        assert three(1.001 * sigma) != pytest.approx(numbers, abs=5 * tolerance)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_every_protocol_that_edm_ran_under_is_read(protocol, small, tmp_path):
    config, weights = read_snapshot(small)
    path = write(tmp_path / "other.pkl", snapshot(**DDPMPP, **SMALL), protocol=protocol)
    other_config, other = read_snapshot(path)
    assert other_config == config
    assert weights.keys() == other.keys()
    assert all(torch.equal(weights[name], other[name]) for name in weights)


def test_embedded_source_is_not_executed(tmp_path):
    mark = tmp_path / "executed"
    source = f"open({str(mark)!r}, 'w').close()"
    read_snapshot(write(tmp_path / "a.pkl", snapshot(source=source, **DDPMPP, **SMALL)))
    assert not mark.exists()


def test_reading_leaves_random_numbers_and_weights_alone(small):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    denoiser = pretrained.denoiser(f"edm:{small}")
    assert torch.equal(torch.rand(3), expected)
    assert not any(p.requires_grad for p in denoiser.parameters())
    assert not any(module.training for module in denoiser.modules())
    assert denoiser.sigma_range == (0.002, 80.0)
    assert denoiser.channels == 3


# --- the group normalisations -------------------------------------------------------------------


def test_narrow_deepinv_networks_are_refused_or_put_right():
    net = deepinv_net("SongUNet", {"img_resolution": 16} | DDPMPP | SMALL)
    set_waves(net.state_dict())
    net._was_trained_on_minus_one_one, net.pixel_std = True, 0.5
    wrong = net(X, torch.tensor([0.25, 0.25]), input_in_minus_one_one=True)
    with pytest.raises(ValueError, match=r"32 channels.*32 groups and EDM in 8.*match_edm_groups"):
        deepinv_denoiser(net)
    with torch.no_grad():
        kept = deepinv_denoiser(net, trained_in_deepinv=True)(X, 0.25)
        right = deepinv_denoiser(match_edm_groups(net))(X, 0.25)
    # two routes in float32, through all the layers and a dozen roundings around them
    tolerance = rounding(torch.float32, 16 + depth_of(net), max(1.0, X.abs().max()))
    assert (kept - wrong).abs().max() <= tolerance
    assert right[0, 0, 3, 5].item() == pytest.approx(-0.444105, abs=tolerance)
    assert (right - wrong).abs().max() > 0.05


def test_wide_networks_need_no_mending():
    net = deepinv_net("SongUNet", {"img_resolution": 16} | DDPMPP | SMALL | {"model_channels": 128})
    before = [m.num_groups for m in net.modules() if isinstance(m, torch.nn.GroupNorm)]
    match_edm_groups(net)
    assert before == [m.num_groups for m in net.modules() if isinstance(m, torch.nn.GroupNorm)]
    net._was_trained_on_minus_one_one, net.pixel_std = True, 0.5
    deepinv_denoiser(net)


def test_widths_that_deepinv_cannot_build_are_a_plain_error(small, tmp_path):
    config, weights = read_snapshot(small)
    narrow = config.network | {"model_channels": 16}
    with pytest.raises(ValueError, match="deepinv cannot build this network"):
        edm_network.build(edm_network.EDMConfig(**vars(config) | {"network": narrow}), weights)


# --- conversion ---------------------------------------------------------------------------------


def test_converted_files_give_the_same_network(small, tmp_path, capsys):
    target = tmp_path / "model.safetensors"
    assert cli.main(["convert-edm", str(small), str(target)]) == 0
    assert "NCSNpp, edm preconditioning" in capsys.readouterr().out
    assert os.listdir(tmp_path) == ["model.safetensors"]
    first, second = (pretrained.denoiser(f"edm:{path}") for path in (small, target))
    weights, again = first.state_dict(), second.state_dict()
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    # not bit for bit: a library may sum otherwise where weights lie at other addresses
    tolerance = rounding(torch.float32, 16 + depth_of(first), max(1.0, X.abs().max()))
    assert (first(X, 0.7) - second(X, 0.7)).abs().max() <= tolerance


def metadata_of(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, "pt") as file:
        return file.metadata()


def test_the_configuration_of_a_converted_file_is_valid_json(small, tmp_path):
    """EDM's own networks have sigma_max = inf, for which JSON has no number."""
    config, weights = read_snapshot(small)
    assert config.sigma_range[1] == math.inf
    path = tmp_path / "model.safetensors"
    edm_network.save_converted(path, config, weights)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    written = json.loads(metadata_of(path)["config"], parse_constant=refuse)
    assert written["sigma_range"] == [0.0, None]
    again, _ = edm_network.load_converted(path)
    assert again.sigma_range == config.sigma_range


def test_files_that_say_infinity_are_still_read(small, tmp_path):
    config, weights = read_snapshot(small)
    text = json.dumps(vars(config))
    assert "Infinity" in text
    path = tmp_path / "older.safetensors"
    safetensors.torch.save_file(weights, path, {"format": "scoreopt-edm-1", "config": text})
    assert edm_network.load_converted(path)[0].sigma_range == config.sigma_range


def test_a_configuration_nested_without_end_is_a_plain_error(tmp_path):
    path = tmp_path / "deep.safetensors"
    deep = {"format": "scoreopt-edm-1", "config": "[" * 100_000}
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, deep)
    with pytest.raises(ValueError, match="no converted EDM network"):
        edm_network.load_converted(path)


def test_a_failed_conversion_leaves_the_old_file(small, tmp_path, monkeypatch, capsys):
    target = tmp_path / "model.safetensors"
    target.write_text("old")

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    assert cli.main(["convert-edm", str(small), str(target)]) == 1
    assert "no space left" in capsys.readouterr().err
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("missing.pkl", "out.safetensors", "missing.pkl"),
        ("garbage.pkl", "out.safetensors", "was refused"),
        ("garbage.pkl", "out.pt", "must end in .safetensors"),
    ],
)
def test_the_command_line_reports_errors(source, target, message, tmp_path, capsys):
    (tmp_path / "garbage.pkl").write_bytes(b"\x80\x04garbage")
    assert cli.main(["convert-edm", str(tmp_path / source), str(tmp_path / target)]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / target).exists()


def test_other_safetensors_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="not written by scoreopt convert-edm"):
        pretrained.denoiser(f"edm:{path}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_blocks": -1}, "num_blocks"),
        ({"num_blocks": 10**9}, "num_blocks"),
        ({"in_channels": True}, "in_channels"),
        ({"attn_resolutions": "16"}, "attn_resolutions"),
        ({"dropout": float("nan")}, "dropout"),
        ({"model_type": "os.system"}, "model_type"),
        ({"pretrained": "download"}, "pretrained"),
        ({"out_channels": 6}, "out_channels"),
    ],
)
def test_the_configuration_in_a_converted_file_is_checked(change, message, small, tmp_path):
    config, weights = read_snapshot(small)
    metadata = vars(config) | {"network": config.network | change}
    path = tmp_path / "altered.safetensors"
    safetensors.torch.save_file(
        weights, path, {"format": "scoreopt-edm-1", "config": json.dumps(metadata)}
    )
    with pytest.raises(ValueError, match=f"no converted EDM network.*{message}"):
        pretrained.denoiser(f"edm:{path}")


# --- what is not such a network -----------------------------------------------------------------


def altered(path: Path, change) -> Path:
    content = snapshot(**DDPMPP, **SMALL)
    outer = content["ema"].meta["state"]
    change(outer, outer["_modules"]["model"].meta["state"])
    return write(path, content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda outer, unet: unet["_init_kwargs"].update(num_blocks=10**9), "num_blocks"),
        (lambda outer, unet: unet["_init_kwargs"].update(model_channels=10**9), "model_channels"),
        (lambda outer, unet: unet["_init_kwargs"].update(model_channels=torch.ones(3)), "tensor"),
        (lambda outer, unet: unet["_init_kwargs"].update(channel_mult=[2] * 99), "channel_mult"),
        (lambda outer, unet: unet["_init_kwargs"].update(encoder_type="skip"), "neither DDPM"),
        (lambda outer, unet: unet["_init_kwargs"].update(novelty=1), "novelty"),
        (lambda outer, unet: unet.update(_init_args=(16,)), "not recorded by name"),
        (lambda outer, unet: unet.update(_init_args=torch.ones(2)), "not recorded by name"),
        (lambda outer, unet: outer.update(sigma_data=torch.ones(2)), "sigma_data"),
        (lambda outer, unet: outer.update(sigma_max=-1.0), "sigma_range"),
        (lambda outer, unet: outer.update(sigma_max=10**400), "sigma_range"),
        (lambda outer, unet: outer["_modules"].clear(), "model"),
        (lambda outer, unet: unet["_parameters"].update(w="text"), "no tensor"),
    ],
)
def test_configurations_are_checked_before_anything_is_built(change, message, tmp_path):
    path = altered(tmp_path / "altered.pkl", change)
    with pytest.raises(ValueError, match=message):
        read_snapshot(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda unet: unet["_modules"].pop("map_layer0"), "Missing key"),
        (lambda unet: unet["_parameters"].update(more=torch.ones(2)), "Unexpected key"),
        (lambda unet: unet["_init_kwargs"].update(model_channels=64), "size mismatch"),
    ],
)
def test_weights_must_be_exactly_those_of_the_configuration(change, message, tmp_path):
    path = altered(tmp_path / "altered.pkl", lambda outer, unet: change(unet))
    with pytest.raises(ValueError, match=message):
        pretrained.denoiser(f"edm:{path}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"ema": Persistent("Generator", {})}, "class 'Generator'"),
        ({"ema": None}, "class 'NoneType'"),
        ({"net": 1}, "ema"),
        ([1, 2], "class 'list'"),
    ],
)
def test_other_pickles_are_a_plain_error(content, message, tmp_path):
    path = write(tmp_path / "other.pkl", content)
    with pytest.raises(ValueError, match=message):
        read_snapshot(path)


def test_truncated_empty_and_zipped_files_are_a_plain_error(small, tmp_path):
    whole = small.read_bytes()
    for cut in (1, 100, len(whole) // 2, len(whole) - 1):
        path = tmp_path / "cut.pkl"
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="was refused"):
            read_snapshot(path)
    (tmp_path / "empty.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match="is empty"):
        read_snapshot(tmp_path / "empty.pkl")
    with zipfile.ZipFile(tmp_path / "state.pkl", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Call(os.system, "true")))
    with pytest.raises(ValueError, match=r"archive of torch\.save"):
        read_snapshot(tmp_path / "state.pkl")


@pytest.mark.parametrize("command", ["convert", "load"])
@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "large"])
def test_only_regular_files_of_bounded_size_are_read(kind, command, tmp_path, capsys):
    path = tmp_path / "a.pkl"
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(2**32 + 1)  # takes no room on a disk
    said = "must have at most 4,294,967,296 bytes" if kind == "large" else "is no regular file"
    if command == "load":
        with pytest.raises(ValueError, match=said):
            pretrained.denoiser(f"edm:{path}")
    else:
        assert cli.main(["convert-edm", str(path), str(tmp_path / "b.safetensors")]) == 1
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("where", ["class", "global", "argument", "weight"])
def test_what_a_terminal_takes_for_a_command_is_escaped(where, small, tmp_path, capsys):
    name = "\x1b]0;owned\x07"
    path = tmp_path / "a.pkl"
    if where == "global":
        path.write_bytes(b"\x80\x04c" + name.encode() + b"\nx\n.")
    else:
        content = snapshot(**DDPMPP, **SMALL)
        unet = content["ema"].meta["state"]["_modules"]["model"].meta
        if where == "class":
            unet["class_name"] = name
        elif where == "argument":
            unet["state"]["_init_kwargs"][name] = 1
        else:
            unet["state"]["_parameters"][name] = torch.ones(1)
        write(path, content)
    with pytest.raises(ValueError, match="owned") as raised:
        pretrained.denoiser(f"edm:{path}")
    assert not set(str(raised.value)) & {"\x1b", "\x07"}
    if where != "weight":  # which conversion keeps as it is
        assert cli.main(["convert-edm", str(path), str(tmp_path / "b.safetensors")]) == 1
        assert not set(capsys.readouterr().err) & {"\x1b", "\x07"}


def test_weights_may_be_as_large_as_their_file_and_no_larger(small):
    """The bound that a tensor of many names meets leaves every honest file alone."""
    _, weights = read_snapshot(small)
    total = sum(value.numel() * value.element_size() for value in weights.values())
    assert 0.5 * small.stat().st_size < total < small.stat().st_size
