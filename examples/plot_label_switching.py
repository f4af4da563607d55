"""
Labels that switch
==================

A mixture's likelihood does not know how its components are numbered. Restarts of a fit, and chains of MCMC, end under
different numbers, and a mean over their draws is a mean over different components. ``relabel`` numbers all draws alike;
how often two rows are together needs no numbers at all. The rows are 178 wines of three cultivars [1]_.
"""

import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_wine

import pyro_lvm as lvm

wine = load_wine()
features = ["flavanoids", "color_intensity", "proline"]
x = torch.tensor(wine.data[:, [wine.feature_names.index(name) for name in features]], dtype=torch.float32)
x = (x - x.mean(0)) / x.std(0)
print(f"{len(x)} wines, features: {', '.join(features)}")

# %%
# Draws of several restarts
# -------------------------
#
# A Bayesian mixture brings its own guide, and coordinate ascent fits it. Three starts reach the same ELBO, each under
# numbers of its own. The means over all draws say that the three components lie in one place, where no wine is typical.

K = 3
restarts = []
for seed in (1, 2, 3):
    mixture = lvm.models.BayesianGaussianMixture(K, len(features)).initialize(x, seed)
    restarts.append(lvm.fit_em(mixture, x, progress=False))
    print(f"start {seed}: ELBO {restarts[-1].objective[-1]:.2f} nats")

parts = [result.sample(100) for result in restarts]
draws = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
print("means of flavanoids:", [round(loc, 2) for loc in draws["means"][:, :, 0].mean(0).tolist()])

# %%
# The same numbers in all
# -----------------------
#
# For each variable ``components`` says which dimension counts the components; ``z``, the component of each wine, holds
# their numbers. Components are matched by their parameters, or, if the responsibilities of each draw are given, by
# these. Here whole restarts were numbered otherwise; in other posteriors single draws are.

found = lvm.relabel(draws, components={"weights": 0, "means": 0, "precisions": 0}, labels=("z",))
print(found)
print("means of flavanoids:", [round(loc, 2) for loc in found.draws["means"][:, :, 0].mean(0).tolist()])

# %%
# How many components?
# --------------------
#
# ``compare_models`` puts fits side by side, with the criteria that apply. Where parameters are points, as after EM,
# these are BIC and ICL. For both lower is better, and both say three. A Bayesian fit has an evidence instead, and
# predicts wines that are left out, both by importance weights. One such fit is added, to show how the table reads: it
# says where the weights fail, and that this guide knows one numbering only.

results = {}
for number in range(1, 6):
    mixture = lvm.models.GaussianMixture(number, len(features)).initialize(x)
    results[f"K={number}"] = lvm.fit_em(mixture, x, progress=False)
results["K=3, Bayesian"] = restarts[0]
comparison = lvm.compare_models(results, num_draws=200)
print(comparison)

# %%
# The picture
# -----------
#
# Left: the means of the components in all draws, coloured by number, and the wines in grey. Crosses are the averages
# over all draws. Middle: the same after relabelling. Right: the probability that two wines belong to one component.
# Lines stand between the cultivars, which the fit has never seen.

similarity = lvm.posterior_similarity(restarts[0], num_draws=100)

figure, axes = plt.subplots(1, 3, figsize=(12, 4.2), layout="constrained")
for ax, means, title in zip(axes, (draws["means"], found.draws["means"]), ("as drawn", "relabelled"), strict=False):
    ax.scatter(x[:, 0], x[:, 1], s=12, color="#CCCCCC", linewidths=0)
    order = torch.randperm(len(means) * K, generator=torch.Generator().manual_seed(0))
    colors = [lvm.plots.COLORS[k] for k in (order % K).tolist()]
    ax.scatter(*means[:, :, :2].reshape(-1, 2)[order].T, s=6, c=colors, linewidths=0)
    for k, loc in enumerate(means.mean(0)[:, :2]):
        ax.plot(*loc, "P", color=lvm.plots.COLORS[k], markeredgecolor="black", markersize=11)
    ax.set(xlabel=features[0], ylabel=features[1].replace("_", " "), title=title)
    ax.spines[["top", "right"]].set_visible(False)
axes[1].sharey(axes[0])

lvm.plots.similarity(similarity, ax=axes[2])
borders = torch.tensor(wine.target).bincount().cumsum(0)
for border in borders[:-1].tolist():
    axes[2].axhline(border - 0.5, color="black", linewidth=0.8)
    axes[2].axvline(border - 0.5, color="black", linewidth=0.8)
middles = (borders - torch.tensor(wine.target).bincount() / 2).tolist()
names = [f"cultivar {i + 1}" for i in range(3)]
axes[2].set_xticks(middles, names)
axes[2].set_yticks(middles, names, rotation=90, va="center")
axes[2].tick_params(length=0)
axes[2].set_title("probability to be together")
plt.show()

# %%
# .. [1] S. Aeberhard and M. Forina, *Wine*, UCI Machine Learning Repository (1992).
