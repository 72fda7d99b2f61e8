# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Your own defence in ten minutes
#
# A module that you believe is robust, and what is left of it. Change `Blurred` to yours.

# %%
from torch import nn

from scoreopt_defense import data, evaluate, pretrained
from scoreopt_defense.attacks import attack
from scoreopt_defense.evaluation.suite.verdict import verdict

# %% [markdown]
# Any module will do that takes images with values from 0 to 1 and returns logits.


# %%
class Blurred(nn.Module):
    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, x):
        return self.classifier(nn.functional.avg_pool2d(x, 3, stride=1, padding=1))


classifier = pretrained.classifier("mnist-tiny")
defence = Blurred(classifier).eval()
images = data.mnist(n=16)
print("clean:", (defence(images.x).argmax(1) == images.y).float().mean().item())

# %% [markdown]
# Two attacks. One walks uphill on the defence's own loss. The other takes images found on the bare
# classifier, and asks whether they still work.

# %%
attacks = {
    "PGD": attack("PGD", norm="linf", eps=0.3, steps=20, eot=1, gradient="as-it-is"),
    "noise": attack("RandomNoise", norm="linf", eps=0.3),
}
result = evaluate({"bare": classifier, "blurred": defence}, images, attacks)
print(result)

# %% [markdown]
# Below the table stand the checks. If one failed, do not believe the number: the attack did not
# work.
#
# The verdict is one sentence. It never says "robust".

# %%
for name in ("bare", "blurred"):
    print(verdict(result, name))

# %% [markdown]
# A figure is a number with an interval. With 16 images it is wide; take more before you write it
# down.

# %%
left = result["blurred", "PGD"].accuracy
print(f"{100 * float(left):.0f} % ({100 * left.low:.0f} to {100 * left.high:.0f})")
assert float(left) <= float(result["blurred", "noise"].accuracy), "noise must do less than PGD"

# %% [markdown]
# Next: leave out the attacks, and `evaluate(defence, images)` runs the quick suite. It takes
# minutes rather than seconds, and finds more.
