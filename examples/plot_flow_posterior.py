"""
A posterior that mean-field gets wrong: eight schools
=====================================================

In eight schools a coaching programme was tried, and each reported its effect with a standard error [1]_. How far do the
true effects lie apart? The posterior of that spread is skewed and reaches down to zero, and what it leaves to each
school depends on it: no normal distribution has this shape. A flow can take it on.
"""

import math

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib import pyplot as plt

import pyro_lvm as lvm

SCHOOLS = list("ABCDEFGH")
effect = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
error = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

# %%
# The model
# ---------
#
# The true effects ``theta`` lie about ``mu`` with the standard deviation ``tau``. The latents are the distances
# in units of ``tau``, and not the effects themselves: the usual way to make such a posterior less curved.


def schools(effect):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(effect)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * z)
        pyro.sample("effect", dist.Normal(theta, error), obs=effect)


# %%
# The exact answer
# ----------------
#
# Given ``mu`` and ``tau``, the effects are normal, and so are the reports with the effects integrated out. What remains
# has two dimensions. A grid of ``mu`` and of the logarithm of ``tau`` gives the posterior, its evidence and, by cells
# and then by the normal distributions of the effects, exact draws.

mu, log_tau = torch.meshgrid(torch.linspace(-25, 30, 551), torch.linspace(-8, 6, 701), indexing="ij")
tau = log_tau.exp()
log_joint = (
    dist.Normal(0.0, 5.0).log_prob(mu)
    + dist.HalfCauchy(5.0).log_prob(tau)
    + log_tau
    + dist.Normal(mu[..., None], (tau[..., None].square() + error.square()).sqrt()).log_prob(effect).sum(-1)
)
evidence = log_joint.logsumexp((0, 1)).item() + math.log(0.1 * 0.02)

torch.manual_seed(0)
at = (log_joint - log_joint.max()).exp().flatten().multinomial(20_000, replacement=True)
exact = {"mu": mu.flatten()[at], "tau": tau.flatten()[at]}
precision = 1 / error.square() + 1 / exact["tau"][:, None].square()
mean = (effect / error.square() + (exact["mu"] / exact["tau"].square())[:, None]) / precision
exact["theta"] = mean + torch.randn(mean.shape) / precision.sqrt()

# %%
# Two guides
# ----------
#
# Mean-field is a normal distribution without correlations, here of ``mu``, ``z`` and the logarithm of ``tau``. The flow
# bends it. Both average the ELBO over 16 draws a step, and their learning rates decay to zero.

NUM_STEPS = 1_500
fits = {
    name: lvm.fit(
        schools,
        guide,
        effect,
        num_steps=NUM_STEPS,
        optim=1e-2,
        elbo=lvm.elbo.Trace_ELBO(16),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, NUM_STEPS),
        progress=False,
    )
    for name, guide in {"mean-field": "mean_field", "flow": lvm.guides.FlowGuide(schools)}.items()
}

# %%
# In ArviZ
# --------
#
# ArviZ summarises all three. The gap of a fit is the evidence less its ELBO: the divergence KL(q || p) in nats.

as_chain = {name: value.numpy()[None] for name, value in exact.items()}
posteriors = {"exact": az.from_dict(as_chain, dims={"theta": ["schools"]}, coords={"schools": SCHOOLS})}
for name, result in fits.items():
    posteriors[name] = lvm.to_arviz(result, num_draws=20_000, coords={"schools": SCHOOLS})

for name, posterior in posteriors.items():
    stats = az.summary(posterior, var_names=["mu", "tau"], kind="stats", hdi_prob=0.9, round_to=2)
    print(f"{name}\n{stats}\n")
for name in fits:
    stats = posteriors[name].sample_stats
    gap = evidence - float((stats.lp - stats.log_q).mean())
    print(f"KL(q || p) of {name}: {gap:.2f} nats")

# %%
# The spread and the mean
# -----------------------
#
# Left: 2,000 draws of each. Mean-field cuts off the tail of small spreads, which the flow follows most of the way.
# Right: 90% intervals of the effects of the schools, most of which are too short by mean-field.

figure, axes = plt.subplots(1, 4, figsize=(12, 3.8), layout="constrained", width_ratios=(1, 1, 1, 1.3))
for ax, (name, posterior) in zip(axes[:3], posteriors.items(), strict=True):
    draws = az.extract(posterior, num_samples=2_000, rng=0)
    ax.scatter(draws["mu"], np.log(draws["tau"]), s=3, alpha=0.3, linewidths=0, color=lvm.plots.COLORS[0])
    ax.set(xlim=(-9, 17), ylim=(-5, 4), title=name, xlabel="mu", ylabel="log tau" if name == "exact" else "")
    ax.spines[["top", "right"]].set_visible(False)
intervals = {name: az.extract(posterior)["theta"].values.T for name, posterior in posteriors.items()}
lvm.plots.intervals(intervals, SCHOOLS, ax=axes[-1])
axes[-1].set(xlabel="effect (mean and 90% interval)", ylabel="school")
plt.show()

# %%
# .. [1] D. B. Rubin, "Estimation in parallel randomized experiments", *Journal of Educational Statistics* 6 (1981).
