"""
Bayesian logistic regression: which guide, and does it matter?
==============================================================

Thirty measurements of cell nuclei say whether a breast tumour is benign [1]_. Many of them measure nearly the same
thing, so that the posterior of their weights is strongly correlated. That is the case in which a mean-field guide
errs and a full-rank guide need not.
"""

import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

import pyro_lvm as lvm

cancer = load_breast_cancer()
X_train, X_test, y_train, y_test = (
    torch.tensor(part) for part in train_test_split(cancer.data, cancer.target, test_size=0.5, random_state=0)
)
loc, scale = X_train.mean(0), X_train.std(0)
X_train, X_test = ((X - loc).div(scale).float() for X in (X_train, X_test))
print(f"{len(y_train)} tumours to fit, {len(y_test)} to test")

# %%
# Two guides
# ----------
#
# A name is enough. A full-rank normal has 31 x 32 / 2 further numbers to find, and takes smaller and more steps.

model = lvm.models.BayesianLogisticRegression(num_features=30)
mean_field = lvm.fit(model, "mean_field", X_train, y_train, num_steps=2_000, optim=0.02, progress=False)
full_rank = lvm.fit(model, "full_rank", X_train, y_train, num_steps=3_000, optim=0.005, progress=False)
print(mean_field)
print(full_rank)

# %%
# Both guides give a lower bound on the same number, and importance weights estimate it. Mean field is too narrow a
# guide here: its weights miss part of the posterior, so that its estimate is too low, and so is its standard error.

for name, result in (("mean field", mean_field), ("full rank", full_rank)):
    elbo = -result.losses[-500:].mean()
    print(f"{name:10}  ELBO {elbo:.1f} nats, log p(y) = {result.evidence(5_000)}")

# %%
# The weights
# -----------
#
# Mean-field intervals are too short: each holds the other weights fixed where it should let them vary.

weights = {"mean field": mean_field.sample(4_000)["weights"], "full rank": full_rank.sample(4_000)["weights"]}
lvm.plots.intervals(weights, cancer.feature_names)
plt.show()

# %%
# ArviZ reads the same result, with names for the features.

import arviz as az

coords, dims = {"feature": list(cancer.feature_names)}, {"weights": ["feature"]}
idata = lvm.to_arviz(full_rank, num_draws=4_000, coords=coords, dims=dims)
az.summary(idata, var_names=["weights"], kind="stats").head(8)

# %%
# Does it matter for a prediction?
# --------------------------------
#
# The predictive probability of a class averages over the posterior. The usual shortcut plugs the posterior mean into
# the likelihood, which is too sure of itself away from the data.

draws = full_rank.sample(4_000)
averaged = model.predict_proba(X_test, draws)[:, 1]
plugged = model.predict_proba(X_test, {name: values.mean(0) for name, values in draws.items()})[:, 1]


def log_loss(probs):
    return -torch.where(y_test == 1, probs, 1 - probs).log().mean()


for name, probs in (("averaged over the posterior", averaged), ("posterior mean plugged in", plugged)):
    wrong = ((probs > 0.5) != (y_test == 1)).sum()
    print(f"{name}: {log_loss(probs):.4f} nats per tumour, {wrong} of {len(y_test)} wrong")

# %%
# Both draw the line at nearly the same place, and differ in how sure they are. With two measurements of thirty
# tumours one can see it. Plugged in, the probability depends on the distance from one line alone. Averaged, it also
# knows how far the data are: the contours fan out, and the corners remain open.

few = torch.arange(30)
pair = [1, 7]  # mean texture and mean concave points
small = lvm.models.BayesianLogisticRegression(num_features=2, prior_scale=3.0)
result = lvm.fit(small, "full_rank", X_train[few][:, pair], y_train[few], num_steps=1_000, optim=0.02, progress=False)
draws = result.sample(4_000)

side = torch.linspace(-4, 4, 81)
grid = torch.cartesian_prod(side, side)
panels = {
    "posterior mean plugged in": {name: values.mean(0) for name, values in draws.items()},
    "averaged over the posterior": draws,
}
# sphinx_gallery_thumbnail_number = 2
figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained", sharey=True)
for ax, (title, values) in zip(axes, panels.items(), strict=True):
    probs = small.predict_proba(grid, values)[:, 1].reshape(81, 81).T
    levels = [0, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99, 1]
    filled = ax.contourf(side, side, probs, levels, cmap="cividis", alpha=0.75)
    ax.contour(side, side, probs, [0.5], colors="black", linewidths=1.5)
    for label, marker, name in ((1, "o", "benign"), (0, "^", "malignant")):
        rows = few[y_train[few] == label]
        ax.plot(*X_train[rows][:, pair].T, marker, color="white", markeredgecolor="black", label=name)
    ax.set(title=title, xlabel="mean texture (standardised)", xlim=(-4, 4), ylim=(-4, 4))
axes[0].set_ylabel("mean concave points (standardised)")
axes[0].legend(loc="lower left")
figure.colorbar(filled, ax=axes, label="probability of benign", spacing="uniform", ticks=levels)
plt.show()

# %%
# .. [1] W. N. Street, W. H. Wolberg and O. L. Mangasarian, "Nuclear feature extraction for breast tumor diagnosis"
#    (1993).
