"""
Segments of customers, from counts
==================================

How often do the customers of a health insurance see a doctor? Some hardly ever, some often, a few all the time. A
mixture of Poisson distributions finds such segments in the counts alone. The data are those of the RAND Health
Insurance Experiment, in which families were given insurances at random and watched for three or five years [1]_.
"""

import numpy as np
import torch
from matplotlib import pyplot as plt
from scipy.stats import poisson
from statsmodels.datasets import randhie

import pyro_lvm as lvm

data = randhie.load_pandas().data
visits = torch.tensor(data[["mdvis"]].to_numpy(), dtype=torch.float32)
print(f"{len(visits):,} customer-years, {visits.mean():.2f} visits a year on average, variance {visits.var():.1f}")

# %%
# How many segments?
# ------------------
#
# One Poisson distribution cannot be right, for its variance would equal its mean. EM fits mixtures of one to six, each
# from five starts. Two criteria say how many components to keep, and lower is better for both. BIC asks how many it
# takes to describe the distribution of the counts: ever more here, since rates differ within any segment too. ICL adds
# the entropy of the responsibilities, and so asks how many groups lie apart. It says three.

mixtures = {}
for K in range(1, 7):
    mixtures[K] = lvm.models.Mixture(K, "poisson", num_features=1)
    result = lvm.fit_em(mixtures[K], visits, num_restarts=5, seed=0, progress=False)
    criteria = f"BIC {mixtures[K].bic(visits):,.0f}, ICL {mixtures[K].icl(visits):,.0f}"
    print(f"{K} segments: log-likelihood {result.objective[-1]:,.1f} nats, {criteria}")

K = min(mixtures, key=lambda K: mixtures[K].icl(visits))
mixture = mixtures[K]

# %%
# Who is in them?
# ---------------
#
# The fit saw the visits and nothing else. What the customers said about their health follows the segments all the same.

order = mixture.rate[:, 0].argsort()
rate, weights = mixture.rate[order, 0].detach(), mixture.weights[order].detach()
responsibilities = mixture.responsibilities(visits)[:, order]
shares = (responsibilities / responsibilities.sum(0)).numpy()

told = {
    "health only fair or poor": data["hlthf"] + data["hlthp"],
    "a physical limitation": data["physlm"],
}
for k in range(K):
    facts = ", ".join(f"{name} {values.to_numpy() @ shares[:, k]:.0%}" for name, values in told.items())
    print(f"{weights[k]:.0%} of the years, {rate[k]:.1f} visits a year: {facts}")

# %%
# The picture
# -----------
#
# Left: the counts, and the mixture as the sum of its segments, on a logarithmic scale. It comes much closer than one
# Poisson distribution; what it misses, in the tail, is what BIC would spend more components on. Right: to which segment
# so many visits belong. The steps are steep, which is why the entropy is small.

counts = np.arange(41)
densities = weights.numpy() * poisson(rate.numpy()).pmf(counts[:, None])
grid = torch.tensor(counts[:, None], dtype=torch.float32)
names = [f"{weights[k]:.0%}, {rate[k]:.1f} visits a year" for k in range(K)]
colors = lvm.plots.COLORS[:K]

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
left.bar(counts, np.bincount(visits[:, 0].int(), minlength=41)[:41] / len(visits), color="#CCCCCC", label="observed")
for k in range(K):
    left.plot(counts, densities[:, k], color=colors[k], linewidth=1)
left.plot(counts, densities.sum(1), "o", color="black", markersize=3, label=f"mixture of {K}")
left.plot(counts, poisson(visits.mean().item()).pmf(counts), ":", color="black", label="one Poisson distribution")
left.set(yscale="log", ylim=(1e-5, 1), xlabel="visits in a year", ylabel="share of the years")
left.legend(frameon=False)
right.stackplot(counts, mixture.responsibilities(grid)[:, order].T, colors=colors, labels=names)
right.set(xlim=(0, 40), ylim=(0, 1), xlabel="visits in a year", ylabel="probability of the segments")
right.legend(loc="lower right")
for ax in (left, right):
    ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# .. [1] W. G. Manning et al., "Health insurance and the demand for medical care", *American Economic Review* 77 (1987).
#    The table is that of A. C. Cameron and P. K. Trivedi, *Microeconometrics* (2005).
