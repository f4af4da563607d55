"""
Latent classes of a survey
==========================

A questionnaire has many answers, and people do not answer at random: a few kinds of lives lie behind them. Latent class
analysis is a mixture in which the answers of a class are independent of each other, so that the classes explain all
that the items have in common [1]_. Here, 6,366 married women told the magazine *Redbook* about themselves in 1974
[2]_.
"""

import numpy as np
import torch
from matplotlib import pyplot as plt
from statsmodels.datasets import fair

import pyro_lvm as lvm

survey = fair.load_pandas().data
ITEMS = {
    "yrs_married": ("years married", ["about ½", "2½", "6", "9", "13", "16½", "23"]),
    "children": ("children", ["0", "1", "2", "3", "4", "5 or more"]),
    "educ": (
        "education",
        ["grade school", "high school", "some college", "college", "graduate school", "advanced degree"],
    ),
    "occupation": ("occupation", ["student", "worker", "white collar", "teacher", "manager", "professional"]),
    "occupation_husb": ("husband", ["student", "worker", "white collar", "teacher", "manager", "professional"]),
    "religious": ("religious", ["not", "mildly", "fairly", "strongly"]),
    "rate_marriage": ("marriage", ["very poor", "poor", "fair", "good", "very good"]),
}
answers = torch.stack([torch.tensor(np.unique(survey[item], return_inverse=True)[1]) for item in ITEMS], -1)
num_categories = [len(categories) for _, categories in ITEMS.values()]
print(f"{len(answers):,} women, {len(ITEMS)} items with {num_categories} answers")

# %%
# How many classes?
# -----------------
#
# Items with different numbers of answers have a table of probabilities each, ``probs_0``, ``probs_1`` and so on. BIC
# and ICL weigh the likelihood against the number of parameters; the lower, the better.

mixtures = {}
for K in range(1, 7):
    mixtures[K] = lvm.models.Mixture(K, "categorical", num_categories=num_categories)
    result = lvm.fit_em(mixtures[K], answers, num_restarts=5, seed=0, progress=False)
    criteria = f"BIC {mixtures[K].bic(answers):,.0f}, ICL {mixtures[K].icl(answers):,.0f}"
    print(f"{K} classes: {mixtures[K].num_parameters} parameters, {criteria}")

K = min(mixtures, key=lambda K: mixtures[K].icl(answers))
mixture = mixtures[K]

# %%
# What the classes tell
# ---------------------
#
# The magazine's question was another one: whether the women had had affairs. The fit did not see the answer. It differs
# between the classes all the same: the newly married without children have had the fewest.

affairs = torch.tensor((survey["affairs"] > 0).to_numpy(), dtype=torch.float32)
responsibilities = mixture.responsibilities(answers)
sizes = responsibilities.sum(0)
share = responsibilities.T @ affairs / sizes
order = share.argsort()
for name, k in zip("ABCDEFG", order, strict=False):
    print(f"class {name}: {mixture.weights[k]:.0%} of the women, {share[k]:.0%} of whom had affairs")
certain = (responsibilities.amax(-1) > 0.9).float().mean()
print(f"{certain:.0%} of the women belong to their class with a probability above 0.9")

# %%
# The picture
# -----------
#
# A column is a class, a row an answer, and a circle's area the probability of the answer in the class. The bars below
# say how many women of the class had affairs; the dotted line is the share of all women.

figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 10), layout="constrained", sharex=True, height_ratios=[8, 1])
height, ticks, labels = 0, [], []
for j, (title, categories) in enumerate(ITEMS.values()):
    probs = getattr(mixture, f"probs_{j}")[order].detach()
    for c, category in enumerate(categories):
        top.scatter(range(K), [height] * K, s=260 * probs[:, c], color=lvm.plots.COLORS[j % 6], linewidths=0)
        ticks.append(height)
        labels.append(f"{title}: {category}" if c == 0 else category)
        height += 1
    height += 0.6
top.set_yticks(ticks, labels, fontsize=8)
top.set_ylim(height, -1)
top.tick_params(length=0)
bottom.bar(range(K), share[order], width=0.5, color="#888888")
bottom.axhline(affairs.mean(), color="black", linewidth=1, linestyle=":")
bottom.set(ylim=(0, 0.6), ylabel="had affairs")
bottom.set_xticks(range(K), [f"{'ABCDEFG'[k]}\n{mixture.weights[i]:.0%}" for k, i in enumerate(order)])
for ax in (top, bottom):
    ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# .. [1] P. F. Lazarsfeld and N. W. Henry, *Latent Structure Analysis* (1968).
# .. [2] R. C. Fair, "A theory of extramarital affairs", *Journal of Political Economy* 86 (1978).
