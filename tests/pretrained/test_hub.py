"""Published models by name: downloaded, cached, checked, or read from where they are."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch
from edm_snapshots import DDPMPP, SMALL, snapshot, write
from tolerances import depth_of, everything_in_float64, rounding

from scoreopt_defense import cli, pretrained
from scoreopt_defense.pretrained import edm_network, hub
from scoreopt_defense.pretrained.edm_pickle import read_snapshot

VP, VE = "edm-cifar10-32x32-uncond-vp", "edm-cifar10-32x32-uncond-ve"
IMAGENET = "guided-diffusion-imagenet-256-uncond"


def shapes(name: str) -> dict[str, torch.Tensor]:
    """A state dict of the published architecture, each tensor one number said many times."""
    models = pytest.importorskip("deepinv.models")
    with torch.device("meta"):
        if name == IMAGENET:
            net = models.DiffUNet(large_model=True, pretrained=None)
            del net.sqrt_1m_alphas_cumprod, net.sqrt_alphas_cumprod  # not in OpenAI's file
        else:
            kind = "ddpm" if name == VP else "ncsn"
            net = models.NCSNpp(
                model_type=kind, img_resolution=32, channel_mult=(2, 2, 2), pretrained=None
            )
    return {key: torch.full((), 0.01).expand(v.shape) for key, v in net.state_dict().items()}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server in place of the real ones; returns its folder and what was asked of it."""
    folder, asked = tmp_path / "served", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(folder))
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    for name, published in hub._PUBLISHED.items():
        url = f"http://127.0.0.1:{httpd.server_port}/{published.file}"
        monkeypatch.setitem(hub._PUBLISHED, name, dataclasses.replace(published, url=url))
    yield folder, asked
    httpd.shutdown()
    httpd.server_close()


@pytest.mark.parametrize(
    ("name", "parameters", "sigma_range"),
    [
        (VP, 55_733_891, (0.002, 80.0)),
        (VE, 56_397_827, (0.002, 80.0)),
        (IMAGENET, 552_814_086, (0.0100005, 157.407)),
    ],
)
def test_published_architectures_load_strictly(
    name, parameters, sigma_range, tmp_path, monkeypatch
):
    published = dataclasses.replace(hub._PUBLISHED[name], sha256=None)
    monkeypatch.setitem(hub._PUBLISHED, name, published)
    weights = shapes(name)
    path = tmp_path / "weights.pt"
    torch.save(weights, path)
    state = torch.random.get_rng_state()
    denoiser = pretrained.denoiser(name, path=path)
    assert torch.equal(state, torch.random.get_rng_state())
    assert sum(p.numel() for p in denoiser.parameters()) == parameters
    assert denoiser.sigma_range == pytest.approx(sigma_range, rel=1e-5)  # six digits
    assert denoiser.channels == 3
    assert not any(p.is_meta for p in [*denoiser.parameters(), *denoiser.buffers()])
    assert not any(p.requires_grad or p.dtype != torch.float32 for p in denoiser.parameters())
    assert not any(module.training for module in denoiser.modules())
    weights.pop(next(iter(weights)))
    torch.save(weights, path)
    with pytest.raises(ValueError, match="not the weights of this"):
        pretrained.denoiser(name, path=path)


@pytest.mark.parametrize(
    ("name", "kind"), [(VP, "ddpm"), pytest.param(VE, "ncsn", marks=pytest.mark.slow)]
)
def test_the_papers_cifar10_models_are_deepinvs(name, kind, tmp_path):
    models = pytest.importorskip("deepinv.models")
    torch.manual_seed(0)
    net = models.NCSNpp(
        model_type=kind, img_resolution=32, channel_mult=(2, 2, 2), pretrained=None, pixel_std=0.5,
        _was_trained_on_minus_one_one=True,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 4:
                parameter.normal_(0, 0.03)
    torch.save(net.state_dict(), tmp_path / f"{name}.pt")
    denoiser = pretrained.denoiser(name, path=tmp_path).double()
    net.double()  # in float32 the rounding of so many layers would hide a small mistake
    with everything_in_float64(), torch.no_grad():
        x_t = torch.randn(1, 3, 8, 8)
        tolerance = told_times(denoiser, x_t)
        for sigma in (0.25, 2.0):
            expected = 2 * net((x_t + 1) / 2, sigma / 2) - 1
            assert (denoiser(x_t, sigma) - expected).abs().max() <= tolerance
            assert (denoiser(x_t, 1.001 * sigma) - expected).abs().max() > 1e5 * tolerance


def told_times(denoiser, x_t) -> float:
    """Two routes in float64: the layers, a dozen roundings around them, and a time up to 1,000,
    whose rounding its sine takes on."""
    return rounding(torch.float64, 16 + depth_of(denoiser) + 1000, max(1.0, x_t.abs().max()))


# --- downloads ----------------------------------------------------------------------------------


def test_a_model_is_downloaded_once(server, cache, capfd, monkeypatch):
    folder, asked = server
    torch.save(shapes(VP), folder / f"{VP}.pt")
    first = pretrained.denoiser(VP)
    assert "100%" in capfd.readouterr().err  # the progress bar
    assert os.listdir(cache) == [f"{VP}.pt"]
    assert len(asked) == 1
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    again = pretrained.denoiser(VP)
    assert len(asked) == 1
    assert str(first) == str(again)


@pytest.mark.parametrize("setting", ["1", "true", "YES", "on"])
def test_offline_is_an_error_that_says_what_to_do(setting, server, cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", setting)
    with pytest.raises(ConnectionError, match=r"HF_HUB_OFFLINE is set: unset it, or download http"):
        pretrained.denoiser(VP)
    assert server[1] == []


def test_a_failed_download_says_where_the_file_belongs(server, cache):
    with pytest.raises(ConnectionError, match=r"(?s)could not be downloaded.*path=\.\.\."):
        pretrained.denoiser(VP)
    assert not list(cache.glob("*.pt"))


def test_a_download_with_another_checksum_is_not_kept(server, cache):
    (server[0] / "256x256_diffusion_uncond.pt").write_bytes(b"something else")
    with pytest.raises(ConnectionError, match="invalid hash value"):
        pretrained.denoiser(IMAGENET)
    assert not list(cache.iterdir())


def test_a_cached_file_with_another_checksum_is_refused(cache):
    cache.mkdir(parents=True)
    (cache / "256x256_diffusion_uncond.pt").write_bytes(b"something else")
    with pytest.raises(ValueError, match="SHA-256"):
        pretrained.denoiser(IMAGENET)


def test_truncated_downloads_are_a_plain_error(server, cache):
    torch.save({"a": torch.zeros(1000)}, server[0] / f"{VP}.pt")
    whole = (server[0] / f"{VP}.pt").read_bytes()
    (server[0] / f"{VP}.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="truncated, altered or no file of weights: delete it"):
        pretrained.denoiser(VP)


# --- local files --------------------------------------------------------------------------------


def test_a_weight_file_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"a": Evil()}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="no file of weights"):
        pretrained.denoiser(VP, path=tmp_path / "weights.pt")
    assert not (tmp_path / "ran").exists()


def test_weights_may_be_safetensors(tmp_path):
    weights = {key: value.clone() for key, value in shapes(VP).items()}
    safetensors.torch.save_file(weights, tmp_path / f"{VP}.safetensors")
    denoiser = pretrained.denoiser(VP, path=tmp_path)
    assert sum(p.numel() for p in denoiser.parameters()) == 55_733_891


@pytest.mark.parametrize("file", ["256x256_diffusion_uncond.pt", "renamed.pth", "noname"])
def test_a_known_checksum_holds_for_a_local_file_too(file, tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / file)
    with pytest.raises(ValueError, match=r"SHA-256 is not a37c32ff.*\.safetensors"):
        pretrained.denoiser(IMAGENET, path=tmp_path / file)


def test_the_right_file_passes_under_any_name(tmp_path, monkeypatch):
    torch.save(shapes(VP), tmp_path / "renamed.pth")
    digest = hashlib.sha256((tmp_path / "renamed.pth").read_bytes()).hexdigest()
    published = dataclasses.replace(hub._PUBLISHED[VP], sha256=digest)
    monkeypatch.setitem(hub._PUBLISHED, VP, published)
    assert pretrained.denoiser(VP, path=tmp_path / "renamed.pth").channels == 3


def test_a_conversion_has_a_checksum_of_its_own(tmp_path):
    """So its names and shapes are what is checked."""
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    pytest.importorskip("deepinv")
    with pytest.raises(ValueError, match="not the weights of this DiffUNet"):
        pretrained.denoiser(IMAGENET, path=tmp_path / "weights.safetensors")


@pytest.fixture(scope="module")
def small_snapshots(tmp_path_factory) -> Path:
    """A network in small; the same under other settings, of the same shapes; and another size."""
    pytest.importorskip("deepinv")
    folder = tmp_path_factory.mktemp("snapshots")
    own = DDPMPP | SMALL
    write(folder / "own.pkl", snapshot(**own))
    write(folder / "dropout.pkl", snapshot(**own | {"dropout": 0.3}))
    write(folder / "data.pkl", snapshot(**own, attributes={"sigma_data": 0.7}))
    write(folder / "vp.pkl", snapshot("VPPrecond", **own))
    write(folder / "wide.pkl", snapshot(**own | {"model_channels": 64}))
    for path in folder.glob("*.pkl"):
        assert cli.main(["convert-edm", str(path), str(path.with_suffix(".safetensors"))]) == 0
    return folder


@pytest.fixture
def small_published(small_snapshots, monkeypatch):
    config, _ = read_snapshot(small_snapshots / "own.pkl")
    published = dataclasses.replace(
        hub._PUBLISHED[VP], config=config, build=functools.partial(edm_network.build, config)
    )
    monkeypatch.setitem(hub._PUBLISHED, VP, published)


@pytest.mark.parametrize("suffix", [".pkl", ".safetensors"])
@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("data", r"sigma_data is 0\.7, published: 0\.5"),
        ("vp", "beta_d is 19.9, published: None.*kind is 'vp', published: 'edm'"),
        ("wide", "model_channels is 64, published: 32"),
    ],
)
def test_another_network_does_not_pass_under_a_published_name(
    file, message, suffix, small_snapshots, small_published
):
    path = small_snapshots / (file + suffix)
    assert pretrained.denoiser(f"edm:{path}").channels == 3  # it is a good network of its own
    with pytest.raises(ValueError, match=f"is not {VP}: {message}"):
        pretrained.denoiser(VP, path=path)


@pytest.mark.parametrize("suffix", [".pkl", ".safetensors"])
@pytest.mark.parametrize("file", ["own", "dropout"])  # dropout is off in a network that is used
def test_a_snapshot_of_the_published_network_passes(file, suffix, small_snapshots, small_published):
    path = small_snapshots / (file + suffix)
    x_t = torch.randn(1, 3, 16, 16)
    expected = pretrained.denoiser(f"edm:{path}")(x_t, 0.7)
    assert torch.equal(pretrained.denoiser(VP, path=path)(x_t, 0.7), expected)


@pytest.mark.parametrize("suffix", [".pkl", ".safetensors"])
def test_an_edm_network_is_not_the_imagenet_model(suffix, small_snapshots):
    with pytest.raises(ValueError, match=f"holds an EDM network, and {IMAGENET} is none"):
        pretrained.denoiser(IMAGENET, path=small_snapshots / f"own{suffix}")


@pytest.mark.parametrize(
    ("name", "path", "error", "message"),
    [
        (VP, "missing.pt", FileNotFoundError, "no file or folder"),
        (VP, ".", FileNotFoundError, r"no edm-cifar10-32x32-uncond-vp\.pt"),
        ("mnist-tiny", "x.pt", ValueError, "ships with the package"),
        ("edm:x.pkl", "x.pkl", ValueError, "says where the model is"),
        ("edm:missing.pkl", None, FileNotFoundError, r"missing\.pkl"),
        ("edm:missing.safetensors", None, FileNotFoundError, "no file at"),
        ("edm:weights.pt", None, ValueError, "must be an EDM|must be a file of kind"),
        ("edm:", None, ValueError, "denoiser must be one of"),
        ("cifar1000", None, ValueError, "mnist-tiny.*edm-cifar10.*guided.*hf:.*edm:<file>"),
    ],
)
def test_wrong_names_and_places_say_so(name, path, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        pretrained.denoiser(name, path=path)


def test_a_file_of_other_things_is_refused(tmp_path):
    torch.save({"ema": {"a": torch.zeros(1)}}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="must hold a state dict"):
        pretrained.denoiser(VP, path=tmp_path / "weights.pt")


def test_importing_the_package_brings_none_of_these_libraries():
    code = (
        "import sys, scoreopt_defense as s; s.pretrained.denoiser('mnist-tiny');"
        "print([m for m in ('deepinv', 'diffusers', 'azula', 'requests') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_library_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepinv.models", None)
    config = hub._PUBLISHED[VP]
    with pytest.raises(ImportError, match=r"scoreopt-defense\[deepinv\]"):
        config.build({})
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"scoreopt-defense\[diffusers\]"):
        pretrained.denoiser("hf:somebody/something")


# --- diffusers ----------------------------------------------------------------------------------


@pytest.fixture
def pipeline(tmp_path):
    """google/ddpm-cifar10-32 in small: its configuration with fewer channels."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=32, block_out_channels=(8, 16, 16, 16), layers_per_block=2, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, attention_head_dim=None,
        norm_eps=1e-6,
    ).eval()  # fmt: skip
    scheduler = diffusers.DDPMScheduler(beta_start=1e-4, beta_end=0.02, variance_type="fixed_large")
    pipe = diffusers.DDPMPipeline(unet, scheduler)
    pipe.save_pretrained(tmp_path / "pipeline")
    return pipe, tmp_path / "pipeline"


def flatten(folder: Path) -> None:
    """All files at the top, as google/ddpm-cifar10-32 has them."""
    for part in ("unet", "scheduler"):
        for file in (folder / part).iterdir():
            shutil.move(file, folder / file.name)
        (folder / part).rmdir()


@pytest.mark.parametrize("layout", ["folders", "top", "model"])
def test_diffusers_folders_of_every_layout_load(layout, pipeline):
    pipe, folder = pipeline
    if layout != "folders":
        flatten(folder)
    if layout == "model":
        (folder / "model_index.json").unlink()
    state = torch.random.get_rng_state()
    denoiser = pretrained.denoiser(f"hf:{folder}")
    assert torch.equal(state, torch.random.get_rng_state())
    assert denoiser.channels == 3
    assert not any(p.requires_grad for p in denoiser.parameters())
    t = 200
    abar = pipe.scheduler.alphas_cumprod[t].double()
    denoiser.double(), pipe.unet.double()
    with everything_in_float64(), torch.no_grad():
        x_t = torch.randn(2, 3, 32, 32)
        z = abar.sqrt() * x_t
        pipe.scheduler.config.clip_sample = False
        eps = pipe.unet(z, t).sample
        expected = (z - (1 - abar).sqrt() * eps) / abar.sqrt()
        d = denoiser(x_t, ((1 - abar) / abar).sqrt().item())
    assert (d - expected).abs().max() <= told_times(denoiser, x_t)


def test_another_scheduler_is_recognised_by_its_file(pipeline):
    import diffusers

    _, folder = pipeline
    diffusers.EDMEulerScheduler(sigma_min=0.01, sigma_max=50.0).save_pretrained(
        folder / "scheduler"
    )
    assert pretrained.denoiser(f"hf:{folder}").sigma_range == (0.01, 50.0)


def alter(folder: Path, file: str, **changes: object) -> None:
    config = json.loads((folder / file).read_text()) | changes
    (folder / file).write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: alter(f, "unet/config.json", _class_name="UNet2DConditionModel"),
            "not a UNet2DConditionModel",
        ),
        (lambda f: alter(f, "model_index.json", vae=["diffusers", "AutoencoderKL"]), "latent"),
        (
            lambda f: alter(f, "scheduler/scheduler_config.json", _class_name="__import__"),
            "unknown scheduler",
        ),
        (
            lambda f: alter(f, "scheduler/scheduler_config.json", _class_name="UNet2DModel"),
            "unknown scheduler",
        ),
    ],
)
def test_what_is_no_pixel_space_model_is_refused(change, message, pipeline):
    change(pipeline[1])
    with pytest.raises(ValueError, match=message):
        pretrained.denoiser(f"hf:{pipeline[1]}")


@pytest.mark.parametrize("part", ["unet", "scheduler"])
def test_a_missing_part_is_named(part, pipeline):
    shutil.rmtree(pipeline[1] / part)
    with pytest.raises(OSError, match="could not be loaded: it must be a folder or a model"):
        pretrained.denoiser(f"hf:{pipeline[1]}")


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    """An empty Hugging Face cache, and no network."""
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_an_id_without_a_network_is_a_plain_error(hub_cache):
    pytest.importorskip("diffusers")
    with pytest.raises(OSError, match=r"^hf:google/ddpm-cifar10-32 could not be loaded"):
        pretrained.denoiser("hf:google/ddpm-cifar10-32")


def test_an_id_in_the_cache_needs_no_network(hub_cache, pipeline):
    _, folder = pipeline
    flatten(folder)
    repository = hub_cache / "models--google--ddpm-cifar10-32"
    shutil.copytree(folder, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    denoiser = pretrained.denoiser("hf:google/ddpm-cifar10-32")
    expected = pretrained.denoiser(f"hf:{folder}")
    weights, again = expected.state_dict(), denoiser.state_dict()
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert torch.equal(denoiser.log_sigmas, expected.log_sigmas)
