"""Networks of diffusers: a Gaussian one must come out as the analytic denoiser."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tolerances import depth_of, everything_in_float64, rounding
from torch import nn
from toys import MEAN, STD, gaussian, mid_images, to_symmetric

from scoreopt_defense import DefendedModel, DiffPure, OneShot, ScoreOpt, pretrained
from scoreopt_defense.denoisers import (
    Denoiser,
    DiffusersDDPMDenoiser,
    DiffusersEDMDenoiser,
    diffusers_denoiser,
)

diffusers = pytest.importorskip("diffusers")

PREDICTIONS = ["epsilon", "sample", "v_prediction"]


class GaussianVPNet(nn.Module):
    """The best prediction for Gaussian images, from the network's own view of the time."""

    def __init__(self, alphas_cumprod, prediction_type):
        super().__init__()
        alphas_cumprod = alphas_cumprod.double().numpy()
        with np.errstate(divide="ignore"):  # a zero-SNR schedule ends at sigma = inf
            self.log_sigmas = np.log(np.sqrt((1 - alphas_cumprod) / alphas_cumprod))
        self.prediction_type = prediction_type
        self.config = SimpleNamespace(in_channels=3)

    def forward(self, z, t):
        assert t.shape == (len(z),)
        sigma = np.exp(
            np.interp(t.double().numpy(), np.arange(len(self.log_sigmas)), self.log_sigmas)
        )
        sigma = torch.from_numpy(sigma).to(z).reshape(-1, 1, 1, 1)
        alpha, beta = 1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt()
        # z = alpha x + beta eps with x ~ N(MEAN, STD^2): the posterior mean of x, then of eps
        gain = alpha * STD**2 / (alpha**2 * STD**2 + beta**2)
        sample = MEAN + gain * (z - alpha * MEAN)
        epsilon = (z - alpha * sample) / beta
        predictions = {
            "sample": sample, "epsilon": epsilon, "v_prediction": alpha * epsilon - beta * sample,
        }  # fmt: skip
        return SimpleNamespace(sample=predictions[self.prediction_type])


class GaussianEDMNet(nn.Module):
    """F of Karras et al., Table 1, such that c_skip x_t + c_out F is the analytic denoiser."""

    def __init__(self, sigma_data, prediction_type):
        super().__init__()
        self.sigma_data, self.prediction_type = sigma_data, prediction_type
        self.config = SimpleNamespace(in_channels=3)

    def forward(self, x_in, c_noise):
        assert c_noise.shape == (len(x_in),)
        sigma = torch.exp(4 * c_noise).reshape(-1, 1, 1, 1)
        total = (sigma**2 + self.sigma_data**2).sqrt()
        x_t = x_in * total
        denoised = MEAN + STD**2 / (STD**2 + sigma**2) * (x_t - MEAN)
        c_out = sigma * self.sigma_data / total
        if self.prediction_type == "v_prediction":  # diffusers flips the sign there
            c_out = -c_out
        f = (denoised - self.sigma_data**2 / total**2 * x_t) / c_out
        return SimpleNamespace(sample=f)


def vp(prediction_type, **schedule):
    scheduler = diffusers.DDPMScheduler(prediction_type=prediction_type, **schedule)
    return DiffusersDDPMDenoiser(
        GaussianVPNet(scheduler.alphas_cumprod, prediction_type), scheduler
    ), scheduler


def levels(scheduler):
    sigma = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).double().sqrt()
    on = sigma[[20, 100, 400]]
    between = (sigma[[20, 100, 400]] * sigma[[21, 101, 401]]).sqrt()
    beyond_the_middle = 0.3 * sigma[[20, 100, 400]] + 0.7 * sigma[[21, 101, 401]]
    return torch.cat([on, between, beyond_the_middle])


@pytest.mark.parametrize("schedule", [{}, {"beta_schedule": "squaredcos_cap_v2"}], ids=str)
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_a_ddpm_network_is_the_denoiser_it_was_trained_to_be(prediction_type, schedule):
    with everything_in_float64():  # the time too, which is told in float32 otherwise
        denoiser, scheduler = vp(prediction_type, **schedule)
        sigma = levels(scheduler)
        x_t = to_symmetric(mid_images(len(sigma))) + sigma.reshape(-1, 1, 1, 1) * torch.randn(
            len(sigma), 3, 8, 8
        )
        got, want = denoiser(x_t, sigma), gaussian()(x_t, sigma)
    # 32 operations, and a time of up to 402 that was rounded; a step moves ln(sigma) by below 0.1
    tolerance = rounding(torch.float64, 32 + 0.1 * 402, x_t.abs().max())
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("step", [0, 1, 500, 998, 999])
def test_on_a_step_the_time_is_that_step_and_between_two_it_lies_between(step):
    denoiser, _ = vp("epsilon")
    knots = denoiser.log_sigmas.exp()
    once = rounding(torch.float32, 1, step + 1)  # found in float64, told in float32
    assert denoiser.timestep(knots[step : step + 1]).item() == pytest.approx(step, abs=once)
    if step < 999:
        between = (knots[step] * knots[step + 1]).sqrt().reshape(1)
        assert denoiser.timestep(between).item() == pytest.approx(step + 0.5, abs=once)


def test_the_range_is_the_schedulers_and_a_zero_snr_end_is_left_out():
    denoiser, scheduler = vp("epsilon")
    alphas = scheduler.alphas_cumprod.double()
    ends = ((1 - alphas) / alphas).sqrt()[[0, -1]].tolist()
    # a handful of roundings, of a logarithm below 10
    assert denoiser.sigma_range == pytest.approx(ends, rel=rounding(torch.float64, 8, 10))
    with everything_in_float64():
        zero_snr, scheduler = vp("v_prediction", rescale_betas_zero_snr=True)
        assert np.isfinite(zero_snr.sigma_range[1])
        x_t = mid_images(2)
        got, want = zero_snr(x_t, 0.5), gaussian()(x_t, 0.5)
    # 32 operations, and a time of up to 999 that was rounded; a step moves ln(sigma) by below 0.1
    tolerance = rounding(torch.float64, 32 + 0.1 * 999, 1)
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sigma_data", [0.5, 0.3])
def test_an_edm_network_is_the_denoiser_it_was_trained_to_be(prediction_type, sigma_data):
    scheduler = diffusers.EDMEulerScheduler(prediction_type=prediction_type, sigma_data=sigma_data)
    denoiser = DiffusersEDMDenoiser(GaussianEDMNet(sigma_data, prediction_type), scheduler)
    assert denoiser.sigma_range == (scheduler.config.sigma_min, scheduler.config.sigma_max)
    sigma = torch.tensor([0.002, 0.05, 0.25, 1.0, 20.0], dtype=torch.float64)
    x_t = mid_images(5) + sigma.reshape(-1, 1, 1, 1)
    # 32 operations, of numbers as large as x_t; 4 ln(sigma) / 4 costs up to 6 more, of ln(0.002)
    tolerance = rounding(torch.float64, 32 + 6, x_t.abs().max())
    torch.testing.assert_close(denoiser(x_t, sigma), gaussian()(x_t, sigma), rtol=0, atol=tolerance)


def tiny_unet():
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8, 8), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
    ).eval()  # fmt: skip


@pytest.mark.parametrize(
    ("scheduler", "kind"),
    [
        ("DDPMScheduler", DiffusersDDPMDenoiser),
        ("DDIMScheduler", DiffusersDDPMDenoiser),
        ("EDMEulerScheduler", DiffusersEDMDenoiser),
        ("EDMDPMSolverMultistepScheduler", DiffusersEDMDenoiser),
    ],
)
def test_the_factory_tells_the_adapter_by_the_scheduler_and_a_real_unet_goes_through(
    scheduler, kind
):
    with everything_in_float64():
        unet, scheduler = tiny_unet(), getattr(diffusers, scheduler)()
        denoiser = diffusers_denoiser(unet, scheduler)
        assert type(denoiser) is kind
        assert denoiser.channels == 3
        x = mid_images(2)
        if kind is DiffusersDDPMDenoiser:
            alpha = (1 + 0.25**2) ** -0.5
            t = denoiser.timestep(torch.full((2,), 0.25))
            want = x - 0.25 * unet(alpha * x, t).sample
        else:
            f = unet(x / (0.25**2 + 0.25) ** 0.5, torch.full((2,), 0.25).log() / 4).sample
            want = 0.25 / (0.25**2 + 0.25) * x + 0.25 * 0.5 / (0.25**2 + 0.25) ** 0.5 * f
        # the layers and a dozen roundings around them; the times are the same numbers
        tolerance = rounding(torch.float64, 16 + depth_of(unet), 1)
        torch.testing.assert_close(denoiser(x, 0.25), want, rtol=0, atol=tolerance)


class InFloat64(Denoiser):
    """Another denoiser, whose network computes in float64 alone; the noise stays as it is."""

    def __init__(self, inner):
        super().__init__(sigma_range=inner.sigma_range, channels=inner.channels)
        self.inner = inner

    def denoise(self, x_t, sigma):
        with everything_in_float64():
            return self.inner.denoise(x_t, sigma)


def test_a_real_unet_defends_and_is_differentiated():
    with everything_in_float64():
        unet = tiny_unet()
    denoiser = InFloat64(diffusers_denoiser(unet, diffusers.DDPMScheduler()))
    head = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).double().eval()
    purifier = ScoreOpt(denoiser, steps=2, sigma=(0.1, 0.4), deterministic=True)
    model = DefendedModel(head, purifier)
    x = mid_images(2).requires_grad_()
    model(x)[:, 0].sum().backward()
    surrogate_x = x.detach().clone().requires_grad_()
    g = head[1].weight[0].reshape(1, 3, 8, 8).expand(2, 3, 8, 8)
    OneShot.surrogate_of(model.purifier)(surrogate_x).backward(g)
    want = surrogate_x.grad
    # forward and backward, each through all the layers
    tolerance = rounding(torch.float64, 2 * depth_of(unet), want.abs().max())
    torch.testing.assert_close(x.grad, want, rtol=0, atol=tolerance)


CASTS = {
    "float": lambda denoiser: denoiser.float(),
    "double": lambda denoiser: denoiser.to(torch.float64),
    "half": lambda denoiser: denoiser.half(),
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS.keys())
def test_casting_the_defence_does_not_break_the_ddpm_times(cast):
    denoiser, _ = vp("epsilon")
    x_t = mid_images(2)
    want = denoiser(x_t, 0.25)
    # nothing there is cast, neither images nor times: the same operations in float64
    tolerance = rounding(torch.float64, 32, 1)
    torch.testing.assert_close(cast(denoiser)(x_t, 0.25), want, rtol=0, atol=tolerance)


def test_a_class_label_is_given_to_the_network():
    seen = {}

    class Conditional(nn.Module):
        config = SimpleNamespace(in_channels=3)

        def forward(self, z, t, class_labels=None):
            seen["labels"] = class_labels
            return SimpleNamespace(sample=z)

    diffusers_denoiser(Conditional(), diffusers.DDPMScheduler(), class_label=7)(mid_images(2), 0.3)
    assert seen["labels"].tolist() == [7, 7]


def test_unknown_schedulers_and_predictions_are_refused():
    with pytest.raises(TypeError, match=r"scheduler must have alphas_cumprod.*got object"):
        diffusers_denoiser(tiny_unet(), object())
    scheduler = SimpleNamespace(
        alphas_cumprod=torch.linspace(0.99, 0.01, 10),
        config=SimpleNamespace(prediction_type="flow"),
    )
    with pytest.raises(
        ValueError, match=r"prediction_type must be one of .*'epsilon'.* got 'flow'"
    ):
        diffusers_denoiser(tiny_unet(), scheduler)


@pytest.mark.parametrize("scheduler", ["DDPMScheduler", "EDMEulerScheduler"])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_images_of_a_size_that_the_network_cannot_take_are_refused_and_no_others(scheduler, levels):
    unet = diffusers.UNet2DModel(
        in_channels=3, out_channels=3, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8,) * levels, down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels, attention_head_dim=4,
    ).eval()  # fmt: skip
    multiple = 2 ** (levels - 1)
    purifier = OneShot(diffusers_denoiser(unet, getattr(diffusers, scheduler)()), sigma=0.3)
    for height, width in ((4, 8), (8, 6), (9, 8), (12, 12)):
        x = torch.full((1, 3, height, width), 0.5)
        if height % multiple or width % multiple:
            with pytest.raises(ValueError, match=rf"multiples of {multiple} .*\({height}, {width}"):
                purifier(x)
        else:
            assert purifier(x).shape == x.shape


def pipeline():
    return diffusers.DDPMPipeline(tiny_unet(), diffusers.DDPMScheduler())


@pytest.mark.parametrize("make", [ScoreOpt, DiffPure])
def test_a_pipeline_is_its_network_under_its_scheduler(make):
    given, x = pipeline(), mid_images(2, dtype=torch.float32)
    adapter = diffusers_denoiser(given.unet, given.scheduler)
    settings = {"steps": 1} if make is ScoreOpt else {}
    want = make(adapter, **settings)(x, seed=3)
    assert torch.equal(make(given, **settings)(x, seed=3), want)
    assert torch.equal(make(pretrained.denoiser(given), **settings)(x, seed=3), want)


def test_a_pipeline_of_latents_and_what_is_none_are_refused():
    given = pipeline()
    latents = SimpleNamespace(unet=given.unet, scheduler=given.scheduler, vae=object())
    with pytest.raises(ValueError, match="denoises latents"):
        ScoreOpt(latents)
    with pytest.raises(TypeError, match=r"name must be text or a diffusers pipeline.*got object"):
        pretrained.denoiser(object())


def test_sizes_and_channels_that_do_not_fit_are_said_once_at_the_first_call():
    purifier = ScoreOpt(pipeline(), steps=1)
    large = torch.rand(1, 3, 16, 16)
    with pytest.warns(UserWarning, match=r"made for images of 8 x 8 pixels, and is given 16 x 16"):
        purifier(large)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        purifier(large)
        ScoreOpt(pipeline(), steps=1, size=8)(large)
    with pytest.raises(ValueError, match="images must have the denoiser's 3 channels"):
        purifier(torch.rand(1, 1, 8, 8))
