# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Masked gradients
#
# A defence of one line that keeps all images under PGD, and is worth nothing.

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn

from scoreopt_defense import BitDepth, DefendedModel, ScoreOpt, data, evaluate, pretrained
from scoreopt_defense.attacks import attack

classifier = pretrained.classifier("mnist-tiny")
images = data.mnist(n=8)


class Rounded(nn.Module):
    def forward(self, x):
        return classifier((x * 8).round() / 8)


# %% [markdown]
# PGD walks uphill on the loss. Rounding has no slope, so PGD stands still.

# %%
pgd = attack("PGD", norm="linf", eps=0.3, steps=10, eot=1, gradient="as-it-is")
result = evaluate({"bare": classifier, "rounded": Rounded().eval()}, images, {"PGD": pgd})
print(result)

# %% [markdown]
# The figure is high, and the checks say why: the gradient is zero, and even an attack that may
# change everything fails. That cannot be robustness.

# %%
x = images.x[:1].clone().requires_grad_()
nn.functional.cross_entropy(Rounded()(x), images.y[:1]).backward()
print("largest gradient of any pixel:", x.grad.abs().max().item())
assert x.grad.abs().max() == 0

# %% [markdown]
# Here is the loss on the way to an attacked image. Rounded or not, it climbs. One has a slope, the
# other stairs.

# %%
attacked = attack("transfer-pgd-linf", eps=0.3).run(classifier, images.x[:1], images.y[:1])
along = torch.linspace(0, 1, 101)[:, None, None, None]
line = images.x[:1] + along * (attacked - images.x[:1])
for name, model in {"bare": classifier, "rounded": Rounded()}.items():
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(line), images.y[:1].expand(101), reduction="none")
    plt.plot(along.flatten(), loss, label=name)
plt.legend()

# %% [markdown]
# So go around the rounding. `BitDepth` is the same defence as a purifier, which can be told from
# the classifier. Then BPDA can pass it by: backward pass differentiable approximation.

# %%
model = DefendedModel(classifier, BitDepth(bits=3))
broken = evaluate(
    {"rounded": model},
    images,
    {
        "transfer": attack("transfer-pgd-linf", eps=0.3, steps=10),
        "BPDA": attack("pgd-eot-linf", eps=0.3, steps=10, eot=1, gradient="bpda"),
    },
    checks=False,
)
print(broken)
assert float(broken["rounded", "BPDA"].accuracy) < float(result["rounded", "PGD"].accuracy)

# %% [markdown]
# BPDA is right for rounding. For ScoreOpt it is not: there it is the poor gradient, and others
# find more. The same attack, a few images, four gradients:

# %%
purifier = ScoreOpt.from_preset("mnist-tiny/O", pretrained.denoiser("mnist-tiny"))
defended = DefendedModel(classifier, purifier)
modes = {
    mode: attack("pgd-eot-linf", eps=0.3, steps=8, eot=1, gradient=mode)
    for mode in ("bpda", "one-shot", "smoothed")
}
print(evaluate({"ScoreOpt-O": defended}, (images.x[:4], images.y[:4]), modes, checks=False))

# %% [markdown]
# Report the lowest figure that any gradient finds, and say which one found it.
