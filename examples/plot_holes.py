"""
Factors from data with holes
============================

A table with missing entries is often fitted after the holes were filled in, with means of columns say. There is no need
to. The entries of a row that are there are normal too, whichever they are, and EM climbs their likelihood [1]_. A fifth
of the entries of this table are taken away, so that we know what they were.
"""

import numpy as np
import torch
from matplotlib import pyplot as plt
from scipy.linalg import orthogonal_procrustes
from sklearn.datasets import load_wine

import pyro_lvm as lvm

wine = load_wine()
x = torch.tensor((wine.data - wine.data.mean(0)) / wine.data.std(0))
N, D = x.shape

# %%
# Making holes
# ------------
#
# Every entry goes with probability 0.2, whatever its value and whatever else is missing. That matters: were large
# values missing more often than small ones, the fit would have to know it. A missing entry is a NaN.

holes = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.2
observed = x.masked_fill(holes, torch.nan)
complete = int((~holes.any(1)).sum())
print(f"{N} wines, {D} measurements; {holes.double().mean():.0%} of the entries are missing")
print(f"wines without a hole: {complete}")

# %%
# Fitting
# -------
#
# Probabilistic PCA has one noise variance for all measurements; factor analysis one for each of them.

models = {"probabilistic PCA": lvm.models.PPCA(2, D), "factor analysis": lvm.models.FactorAnalysis(2, D)}
for name, model in models.items():
    result = lvm.fit_em(model.double(), observed, missing=True, progress=False)
    print(f"{name}: {result.objective[-1]:.1f} nats after {result.num_iter} iterations")

# %%
# Filling in
# ----------
#
# ``impute`` gives the mean of each missing entry given the others of its row. The measurements are standardised, so
# that a mean squared error of 1 is the variance of a measurement. That is about what column means come to.

filled = {"column means": torch.where(holes, observed.nanmean(0), x)}
filled |= {name: model.impute(observed) for name, model in models.items()}
errors = {name: (values - x).square() for name, values in filled.items()}
for name, error in errors.items():
    print(f"mean squared error of a missing entry, by {name}: {error[holes].mean():.2f}")

# %%
# What comes out depends on what is asked for. Measurements that hang together with others can be told from them; those
# that do not cannot, and get about their mean. Ash is filled in better by its mean: two latents have little room for
# it. Left: every missing entry, and the line of equal values. Imputed values spread less than true ones, as means do.
# Right: the error of each measurement.

labels = [name.split("/")[0].replace("_", " ") for name in wine.feature_names]
of_feature = {name: (error * holes).sum(0) / holes.sum(0) for name, error in errors.items()}
order = of_feature["factor analysis"].argsort(descending=True)

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
left.axline((0, 0), slope=1, color="#888888", linewidth=1)
for c in range(3):
    chosen = holes & torch.as_tensor(wine.target == c)[:, None]
    values = filled["factor analysis"][chosen]
    left.plot(
        x[chosen], values, "os^"[c], color=lvm.plots.COLORS[c], markersize=4, alpha=0.7, label=f"cultivar {c + 1}"
    )
left.set(xlabel="true value (standard deviations)", ylabel="imputed by factor analysis (standard deviations)")
left.legend(frameon=False, handletextpad=0.2)
for name, marker, color in zip(of_feature, "|so", ("#444444", *lvm.plots.COLORS[:2]), strict=True):
    right.plot(of_feature[name][order], np.arange(D), marker, color=color, markersize=7, label=name)
right.set_yticks(np.arange(D), [labels[d] for d in order])
right.set(xlim=(0, None), xlabel="mean squared error of its missing entries (variances)")
right.legend(frameon=False)
right.grid(axis="y", color="#E4E4E4")
right.set_axisbelow(True)
for ax in (left, right):
    ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# The map
# -------
#
# ``latents`` places each wine by the entries that it has. Beside it is the map of the complete data, from the closed
# form of the likelihood's maximum. A likelihood does not know the axes of its latents, so the one map is turned onto
# the other, by the orthogonal matrix that brings them closest.

z = lvm.models.PPCA(2, D).double().closed_form(x).latents(x).numpy()
z_holes = models["probabilistic PCA"].latents(observed).numpy()
z_holes = z_holes @ orthogonal_procrustes(z_holes, z)[0]
print(f"distance between a wine's places: {np.linalg.norm(z - z_holes, axis=1).mean():.2f} on average")
print(f"distance between two wines: {np.linalg.norm(z[:, None] - z, axis=-1).sum() / (N * (N - 1)):.2f} on average")

figure, axes = plt.subplots(1, 2, figsize=(9, 5.2), sharex=True, sharey=True, layout="constrained")
titles = ["a fifth of the entries missing", "all entries"]
for ax, title, values in zip(axes, titles, (z_holes, z), strict=True):
    lvm.plots.latent_map(values, [f"cultivar {c + 1}" for c in wine.target], ax=ax)
    ax.set_aspect("equal", adjustable="box")
    ax.set_title(title)
    ax.label_outer()
plt.show()

# %%
# .. [1] R. J. A. Little and D. B. Rubin, *Statistical Analysis with Missing Data* (1987).
