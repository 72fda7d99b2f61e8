# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Reading a report
#
# One small evaluation, and every figure of it: what it says, and what it does not.

# %%
from pathlib import Path
from tempfile import mkdtemp

from scoreopt_defense import DefendedModel, OneShot, data, evaluate, pretrained
from scoreopt_defense.attacks import attack
from scoreopt_defense.evaluation.suite.verdict import verdict

classifier = pretrained.classifier("mnist-tiny")
purifier = OneShot(pretrained.denoiser("mnist-tiny"), sigma=0.75)
defences = {"bare": classifier, "one-shot": DefendedModel(classifier, purifier)}
attacks = {
    "transfer": attack("transfer-pgd-linf", eps=0.3, steps=10),
    "PGD+EOT": attack("pgd-eot-linf", eps=0.3, steps=10, eot=2),
}
result = evaluate(defences, data.mnist(n=12), attacks)
print(result)

# %% [markdown]
# **A row a defence, a column an attack.** `clean` is without an attack. `weakest` is the accuracy
# if each image meets whichever attack harms it most: that is the figure to report.
#
# **Accuracy and its interval.** Of 12 images the interval is wide. It tells how far the figure may
# be off for these being the images that were drawn; it knows nothing of better attacks.

# %%
cell = result["one-shot", "PGD+EOT"]
print(
    f"accuracy {float(cell.accuracy):.2f}, from {cell.accuracy.low:.2f} to {cell.accuracy.high:.2f}"
)

# %% [markdown]
# **Majority and survival.** A purifier is random, and each image was judged 8 times. The majority
# counts its most frequent answer. Survival is the share that is right in every one of so many
# attempts: an attacker may try again.

# %%
print("majority:", float(cell.majority))
print("survival:", cell.survival)

# %% [markdown]
# **The paired difference** of two defences, of the same images. If its interval holds zero, no
# difference was seen.

# %%
print(result.compare("one-shot", "bare", "PGD+EOT"))

# %% [markdown]
# **The verdict** is one sentence, with what speaks against the figure after the semicolons: failed
# checks, short budgets, suites that were not run.

# %%
print(verdict(result, "one-shot"))
assert "robust" not in verdict(result, "one-shot").replace("not robust", "")

# %% [markdown]
# **The page** is one HTML file that needs no network. Open it, pick a digit, and see what the
# attack did to it.

# %%
page = Path(mkdtemp()) / "page.html"
result.report(page)
print(page, f"{page.stat().st_size / 1e3:.0f} kB")
