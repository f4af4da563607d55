"""
A guide that climbs: "auto" on a hierarchy of batters
=====================================================

Eighteen baseball players of the season of 1970, their hits in their first 45 times at bat (Efron and Morris 1975). Some
are better than others, but by how much? A hierarchical model pools them. Its posterior is narrow where the spread of
skill is small and wide where it is large, which no normal distribution is. ``"auto"`` finds out how rich a guide must
be.
"""

# %%
# The model
# ---------
# Skills are normal on the scale of log-odds, with a mean and a spread that the data are to tell.
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch

import pyro_lvm as lvm

hits = torch.tensor([18.0, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7])
at_bats = 45


def batters(hits):
    mean = pyro.sample("mean", dist.Normal(-1.0, 1.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    with pyro.plate("players", len(hits)):
        standard = pyro.sample("standard", dist.Normal(0.0, 1.0))
        average = pyro.deterministic("average", torch.sigmoid(mean + spread * standard))
        pyro.sample("hits", dist.Binomial(at_bats, average), obs=hits)


# %%
# The climb
# ---------
# There is nothing to choose. Each line is a guide: why it was passed over, or what the verdict on it was, the Pareto k
# of its importance weights, its ELBO, and what it cost.
result = lvm.fit(batters, "auto", hits, progress=False)
for step in result.climb.steps:
    print(step)

# %%
# How many nats each guide is below the best that was found. A guide starts where the last came to, so that its curve
# goes on from there; learning rates fall wherever the averaged parameters gain nothing more.
ax = result.climb.plot()
plt.show()

# %%
# What the draws say
# ------------------
# Draws of an "auto" fit are resampled by their importance weights, where these allow it. Every average is drawn towards
# that of all players, the better the fewer hits tell.
print(f"resampled: {result.resamples}")
report = lvm.diagnose(result)
print(report)

# %%
# Raw averages, and what is left of their differences.
draws = lvm.to_arviz(result, num_draws=4_000).posterior["average"]
middle = draws.mean(("chain", "draw"))
low, high = draws.quantile([0.05, 0.95], ("chain", "draw"))
figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
places = range(len(hits))
ax.vlines(places, low, high, color=lvm.plots.COLORS[0], linewidth=2, label="90% of the posterior")
ax.plot(places, middle, "o", color=lvm.plots.COLORS[0], label="posterior mean")
ax.plot(places, hits / at_bats, "x", color=lvm.plots.COLORS[1], label="raw average")
ax.axhline(float(hits.mean()) / at_bats, color="#444444", linewidth=1, linestyle="--")
ax.set(xlabel="player", ylabel="batting average", xticks=[])
ax.legend(frameon=False)
plt.show()
