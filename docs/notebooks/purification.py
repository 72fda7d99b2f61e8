# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Purification, step by step
#
# A digit is attacked, and purified. We look at every step.

# %%
import matplotlib.pyplot as plt

from scoreopt_defense import ScoreOpt, data, pretrained
from scoreopt_defense.attacks import attack

classifier = pretrained.classifier("mnist-tiny")
denoiser = pretrained.denoiser("mnist-tiny")
x, y, _ = data.mnist(n=8)
attacked = attack("transfer-pgd-linf", eps=0.3).run(classifier, x, y)
print("right when clean:   ", (classifier(x).argmax(1) == y).sum().item(), "of 8")
print("right when attacked:", (classifier(attacked).argmax(1) == y).sum().item(), "of 8")

# %% [markdown]
# `ScoreOpt` tells a callback of each step before it takes it: the image `x`, its noised copy
# `x_t`, the loss, and what the denoiser makes of the copy. Images there go from -1 to 1.

# %%
purifier = ScoreOpt.from_preset("mnist-tiny/O", denoiser, seed=0)
steps = []
purified = purifier(attacked, callback=steps.append)
print("right when purified:", (classifier(purified).argmax(1) == y).sum().item(), "of 8")
for step in steps:
    sigma, loss = step["sigma"][0].item(), step["loss"].mean().item()
    print(f"step {step['i']}: sigma {sigma:.2f}, loss {loss:.1f}")

# %% [markdown]
# The loss is how far an image is from what the denoiser makes of its noised copy. Each step has
# another noise level, so it does not fall evenly.

# %%
chosen = 3
shown = {"clean": x, "attacked": attacked}
shown |= {f"step {step['i']}": step["x"] / 2 + 0.5 for step in steps[1:]}
shown["purified"] = purified
figure, axes = plt.subplots(1, len(shown), figsize=(1.5 * len(shown), 2))
for axis, (name, images) in zip(axes, shown.items()):
    answer = classifier(images[chosen : chosen + 1].clamp(0, 1)).argmax().item()
    axis.imshow(images[chosen, 0].clamp(0, 1), cmap="gray")
    axis.set_title(f"{name}: {answer}")
    axis.axis("off")

# %% [markdown]
# ScoreOpt-N takes its steps on the noised copy instead, and denoises once in the end. So what it
# optimises looks like noise all along.

# %%
noisy = []
by_n = ScoreOpt.from_preset("mnist-tiny/N", denoiser, seed=0)(attacked, callback=noisy.append)
print("right after ScoreOpt-N:", (classifier(by_n).argmax(1) == y).sum().item(), "of 8")
assert (classifier(by_n).argmax(1) == y).sum() > (classifier(attacked).argmax(1) == y).sum()

# %% [markdown]
# Purification is random. Ask again without a seed, and the image comes out a little different.

# %%
random = ScoreOpt.from_preset("mnist-tiny/N", denoiser)
again = [random(attacked[:1]) for _ in range(2)]
print("largest difference of two purifications:", (again[0] - again[1]).abs().max().item())

# %% [markdown]
# **None of this is an evaluation.** The attack did not know the purifier. One that does is much
# stronger: see *Masked gradients* and *Reading a report*.
