"""Classifiers of other libraries, by those libraries' own loaders; nothing is downloaded."""

from __future__ import annotations

import os
import pickle
import sys
import types
import urllib.request
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn
from toys import smooth_classifier

from scoreopt_defense.evaluation.config import ConfigError, defence
from scoreopt_defense.evaluation.named import classifier
from scoreopt_defense.evaluation.sections import Defence
from scoreopt_defense.normalization import Normalized

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SMALL = "shufflenet_v2_x0_5"  # of torchvision; 1.4 million parameters


def unusual(net: nn.Module) -> nn.Module:
    """A network whose buffers are not those that it was made with; in eval mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, buffer in net.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand(buffer.shape, generator=generator))
    return net.eval()


def check(found: nn.Module, net: nn.Module, mean, std) -> None:
    """It is that network on normalised images, and in eval mode."""
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (mean, std))
    assert isinstance(found, Normalized)
    assert not any(part.training for part in found.modules())
    assert torch.equal(found(x), net((x - mean) / std))


# --- torchvision ----------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """torch's folder of downloaded weights, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_weights_of_torchvision_are_those_in_torchs_cache(hub):
    models = pytest.importorskip("torchvision.models")
    net = unusual(models.get_model(SMALL, weights=None))
    url = models.get_model_weights(SMALL).DEFAULT.url
    torch.save(net.state_dict(), hub / Path(url).name)
    check(classifier(f"torchvision:{SMALL}"), net, *IMAGENET)


@pytest.mark.parametrize(
    ("served", "said"),
    [(b"not these", "invalid hash value"), (None, "Name or service not known")],
)
def test_a_download_that_fails_or_is_another_file_is_said_and_not_kept(
    served, said, hub, tmp_path, monkeypatch
):
    pytest.importorskip("torchvision")
    file, open_url = tmp_path / "served", urllib.request.urlopen

    def answer(request, **options):
        if served is None:
            raise URLError("Name or service not known")
        file.write_bytes(served)
        return open_url(file.as_uri())

    monkeypatch.setattr(torch.hub, "urlopen", answer)
    with pytest.raises(ConfigError, match=rf"defences\.x\.classifier = 'torchvision.*{said}"):
        defence("x", Defence(classifier=f"torchvision:{SMALL}"))
    assert not list(hub.iterdir())


# --- timm -----------------------------------------------------------------------------------------


def made_by_timm(timm: types.ModuleType) -> nn.Module:
    return unusual(timm.create_model("test_resnet", num_classes=7))


def test_a_folder_that_timm_saved(tmp_path):
    timm = pytest.importorskip("timm")
    net, mean, std = made_by_timm(timm), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    about = {"num_classes": 7, "pretrained_cfg": {"mean": mean, "std": std}}
    timm.models.save_for_hf(net, tmp_path, model_config=about)
    check(classifier(f"timm:local-dir:{tmp_path}"), net, mean, std)


class Touch:
    """Pickled as a call that leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", None, "Config file not found"),
        ("config.json", b"{", "Expecting property name"),
        ("config.json", b"[]", ""),
        ("config.json", b"{}", r"timm cannot load .*: a file is damaged.*'architecture'"),
        ("pytorch_model.bin", b"PK", ""),
        ("pytorch_model.bin", "call", "weights_only"),
        ("model.safetensors", b"abc", r"timm cannot load .*: a file is damaged.*header"),
    ],
)
def test_a_folder_that_timm_did_not_save_is_said_and_nothing_in_it_runs(
    file, content, said, tmp_path
):
    timm = pytest.importorskip("timm")
    folder, mark = tmp_path / "net", tmp_path / "ran"
    timm.models.save_for_hf(made_by_timm(timm), folder, model_config={"num_classes": 7})
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(pickle.dumps(Touch(mark)) if content == "call" else content)
    with pytest.raises(ConfigError, match=rf"(?s)defences\.x\.classifier = 'timm:.*{said}"):
        defence("x", Defence(classifier=f"timm:local-dir:{folder}"))
    assert not mark.exists()


def test_weights_of_timm_are_those_in_the_hubs_cache(tmp_path, monkeypatch):
    timm, hub = pytest.importorskip("timm"), pytest.importorskip("huggingface_hub")
    name = "test_resnet.r160_in1k"
    net = unusual(timm.create_model(name))
    about = net.pretrained_cfg
    commit = "0" * 40
    cached = tmp_path / f"models--{about['hf_hub_id'].replace('/', '--')}"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    timm.models.save_for_hf(net, cached / "snapshots" / commit)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    check(classifier(f"timm:{name}"), net, about["mean"], about["std"])


# --- RobustBench, which pins other versions than ours ---------------------------------------------


class Zoo(types.ModuleType):
    """Takes and raises what robustbench.utils does, of version 1.1.1."""

    def load_model(
        self,
        model_name: str,
        model_dir: str = "./models",
        dataset: str = "cifar10",
        threat_model: str = "Linf",
    ) -> nn.Module:
        if threat_model not in ("Linf", "L2", "corruptions"):
            raise ValueError(f"{threat_model!r} is not a valid ThreatModel")
        return {"cifar10 L2 Mine": smooth_classifier(torch.float32), "cifar10 Linf Mine": Double()}[
            f"{dataset} {threat_model} {model_name}"
        ]


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x.mean((2, 3))


def test_robustbench_is_asked_for_data_set_and_threat_model(monkeypatch):
    monkeypatch.setitem(sys.modules, "robustbench", types.ModuleType("robustbench"))
    monkeypatch.setitem(sys.modules, "robustbench.utils", Zoo("robustbench.utils"))
    x = torch.rand(2, 3, 8, 8)
    for name in ("Mine", "cifar10/Linf/Mine"):  # takes images in [0, 1] as they are
        assert torch.equal(classifier(f"robustbench:{name}")(x), 2 * x.mean((2, 3)))
    assert not isinstance(classifier("robustbench:cifar10/L2/Mine"), Double)
    for name, said in {
        "Yours": r"robustbench has no 'Yours' for cifar10 and Linf",
        "cifar10/L9/Mine": "'L9' is not a valid ThreatModel",
        "cifar10/Mine": r"expected \[<dataset>/<threat model>/\]<name>, got 'cifar10/Mine'",
    }.items():
        with pytest.raises(ConfigError, match=f"classifier = 'robustbench:{name}': {said}"):
            defence("x", Defence(classifier=f"robustbench:{name}"))
