"""
Regimes of an economy
=====================

An economy does well most of the time, and badly in spells. A hidden Markov model puts a state behind every quarter,
which tends to last, and lets the quarter's numbers be Gaussian with a mean and a covariance of the state [1]_. Hamilton
dated the recessions of the United States with a relative of this model [2]_. The data are quarterly, from 1959 to 2009.
"""

import numpy as np
import torch
from matplotlib import pyplot as plt
from statsmodels.datasets import macrodata

import pyro_lvm as lvm

data = macrodata.load_pandas().data
growth = 400 * np.log(data["realgdp"]).diff()
inflation = 400 * np.log(data["cpi"]).diff()
x = torch.tensor(np.stack([growth, inflation, data["unemp"].diff()], 1)[1:])
names = ["growth of real GDP\n(% a year)", "inflation\n(% a year)", "change of unemployment\n(points a quarter)"]
time = (data["year"] + (data["quarter"] - 1) / 4).to_numpy()[1:]  # the beginning of each quarter
T, D = x.shape

# %%
# How many states?
# ----------------
#
# BIC takes twice the log-likelihood, and asks log T of every free parameter: K - 1 first probabilities, K (K - 1)
# transitions, and for each state D means and D (D + 1) / 2 covariances. The lower, the better. Ten starts each.

models, bic = {}, {}
for K in range(1, 5):
    models[K] = lvm.models.HMM(K, "gaussian", num_features=D).double()
    lvm.fit_em(models[K], x, num_restarts=10, progress=False)
    log_likelihood = models[K].log_prob(x).item()
    num_parameters = K - 1 + K * (K - 1) + K * (D + D * (D + 1) // 2)
    bic[K] = num_parameters * np.log(T) - 2 * log_likelihood
    print(f"{K} states: log-likelihood {log_likelihood:.1f} nats, {num_parameters} parameters, BIC {bic[K]:.1f}")

K = min(bic, key=bic.get)
hmm = models[K]

# %%
# What are they?
# --------------
#
# One state is calm: growth near 4%, low inflation, and unemployment that falls a little. In the other, trouble, growth
# is near nothing, unemployment rises, and inflation is twice as high; and all three vary about twice as much. Below are
# their means and standard deviations.

order = hmm.locs[:, 0].argsort(descending=True)
locs = hmm.locs[order].detach()
scales = hmm.scale_tril[order].detach().norm(dim=-1)  # standard deviations
stays = hmm.transition.diagonal()[order].detach()
path = order.argsort()[hmm.viterbi(x)[0]]
probabilities = hmm.state_probs(x)[0][:, order]
for k, state in enumerate(["calm", "trouble"]):
    numbers = ", ".join(f"{loc:.2f} ± {scale:.2f}" for loc, scale in zip(locs[k], scales[k], strict=True))
    print(f"{state}, {(path == k).sum()} quarters, lasts {1 / (1 - stays[k]):.0f} on average: {numbers}")

# %%
# The National Bureau of Economic Research dates recessions by hand. Here they are, from the quarter after each peak to
# the quarter of the trough. The model has not seen them. It finds almost all of them, but trouble is not recession:
# nearly half of its quarters lie elsewhere, most of them in the high inflation of 1973 and of 1977 to 1981. With two
# states, whatever is not calm must be one thing.

RECESSIONS = [(1960.25, 1961), (1969.75, 1970.75), (1973.75, 1975), (1980, 1980.5), (1981.5, 1982.75)]
RECESSIONS += [(1990.5, 1991), (2001, 2001.75), (2007.75, 2009.25)]
RECESSIONS = [(peak + 0.25, trough) for peak, trough in RECESSIONS]
recession = np.any([(peak <= time) & (time <= trough) for peak, trough in RECESSIONS], 0)
trouble = (path == 1).numpy()
print(f"of {recession.sum()} quarters of recession, {(recession & trouble).sum()} lie in the troubled state")
print(f"of {trouble.sum()} quarters in the troubled state, {(recession & trouble).sum()} are of a recession")

# %%
# The regimes
# -----------
#
# Orange is trouble: behind the series as the most probable path, and below as its probability given all quarters, later
# ones included; the rest is the probability of calm. Black bars are the recessions. The blue line is the mean of the
# state, and it shows where two states are too few: inflation was high in some of these spells, and below zero in 2008.

colors = lvm.plots.COLORS[:2]
figure, axes = plt.subplots(4, 1, figsize=(10, 8), sharex=True, height_ratios=[3, 3, 3, 2], layout="constrained")
for d, (ax, name) in enumerate(zip(axes, names, strict=False)):
    ax.plot(time, x[:, d], color="#444444", linewidth=1)
    ax.step(time, locs[path, d], where="post", color=colors[0], linewidth=1.5)
    ax.set_ylabel(name)
axes[-1].fill_between(time, probabilities[:, 1], step="post", color=colors[1], linewidth=0)
axes[-1].set(xlim=(1959, 2010), ylim=(0, 1), xlabel="year", ylabel="probability\nof trouble")
for ax in axes:
    for peak, trough in RECESSIONS:
        ax.axvspan(peak, trough + 0.25, ymin=1.01, ymax=1.05, color="black", linewidth=0, clip_on=False)
    ax.spines[["top", "right"]].set_visible(False)
for ax in axes[:-1]:
    top = ax.get_xaxis_transform()
    ax.fill_between(time, path == 1, step="post", transform=top, color=colors[1], alpha=0.25, linewidth=0)
plt.show()

# %%
# The next two years
# ------------------
#
# A forecast draws the states to come, and what they emit. Lines are medians, and the bands hold half and nine tenths of
# the draws. It begins in trouble, and returns to what is usual as fast as states change. Quarters depend on each other
# through their states alone, so that the draws know nothing of how deep the recession just was.

draws = hmm.forecast(x, num_steps=8, num_draws=10_000, seed=0)[:, 0]
later = time[-1] + 0.25 * np.arange(1, 9)
now, transition = probabilities[-1], hmm.transition[order][:, order].detach()
chances = [float((now @ torch.linalg.matrix_power(transition, h))[1]) for h in range(1, 9)]
print(f"probability of trouble: now {now[1]:.2f}; then", ", ".join(f"{chance:.2f}" for chance in chances))

figure, axes = plt.subplots(1, D, figsize=(11, 3.8), layout="constrained")
for d, (ax, name) in enumerate(zip(axes, names, strict=True)):
    low, lower, median, upper, high = np.quantile(draws[..., d], [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
    ax.plot(time[-24:], x[-24:, d], color="#444444", label="observed")
    ax.fill_between(later, low, high, color=colors[0], alpha=0.2, linewidth=0, label="nine tenths")
    ax.fill_between(later, lower, upper, color=colors[0], alpha=0.4, linewidth=0, label="half")
    ax.plot(later, median, color=colors[0], label="median")
    ax.set(xlabel="year", ylabel=name)
    ax.spines[["top", "right"]].set_visible(False)
axes[0].legend(frameon=False, loc="lower left")
plt.show()

# %%
# .. [1] L. R. Rabiner, "A tutorial on hidden Markov models and selected applications in speech recognition",
#    *Proceedings of the IEEE* 77 (1989).
# .. [2] J. D. Hamilton, "A new approach to the economic analysis of nonstationary time series and the business cycle",
#    *Econometrica* 57 (1989).
