"""Configuration files of runs, whole and in parts."""

IMAGES = '[images]\nsource = "mnist"\nn = 4\n'
BARE = '[defences.bare]\nclassifier = "mnist-tiny"\n'
ONE_SHOT = """
[defences.one-shot]
classifier = "mnist-tiny"
denoiser = "mnist-tiny"
purifier = "OneShot"
overrides = { sigma = 0.5 }
"""
WHOLE = (
    """
seed = 3
batch = 2

[images]
source = "mnist"
n = 4

[judging]
purifications = 2

"""
    + BARE
    + ONE_SHOT
    + """
[defences.n]
classifier = "mnist-tiny"
denoiser = "mnist-tiny"
purifier = "ScoreOpt"
preset = "mnist-tiny/N"
overrides = { steps = 1 }
votes = 2

[attacks.transfer-pgd-linf]
eps = "51/255"
steps = 2

[attacks.weak]
attack = "transfer-pgd-linf"
eps = 0.01
steps = 1
"""
)
