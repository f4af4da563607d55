"""
Your own model: deaths by horse kick
====================================

Ladislaus von Bortkiewicz counted the soldiers whom horses had kicked to death in fourteen corps of the Prussian army
from 1875 to 1894, and found that the counts look like Poisson draws [1]_. He set four of the corps aside because he
thought them different. Are they? A hierarchical model can tell: each corps has a rate of its own, and the data say
how far the rates lie apart.
"""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib import pyplot as plt

import pyro_lvm as lvm

CORPS = ["Guard", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XIV", "XV"]
DEATHS = """
    00000001100010  20001000000011  20000011001020  12211000001010  00011220100210
    03211100021430  10021001010000  12000010112141  00120121010300  30100001002011
    00000010020101  21001110010130  11210032110120  01100110000110  00110110012202
    12020112021122  00011101103310  13201130110110  01000102001300  10000000101100
"""  # a group of digits for each year, a digit for each corps

counts = np.array([[int(digit) for digit in year] for year in DEATHS.split()])
corps = torch.arange(14).repeat(20)
deaths = torch.tensor(counts.ravel(), dtype=torch.float32)
print(f"{int(deaths.sum())} deaths in {len(deaths)} corps-years")

# %%
# The model
# ---------
#
# A typical corps loses ``rate`` men a year. The logarithms of the corps' rates lie about that with the standard
# deviation ``spread``. Ten lines of Pyro say so. The plate ``rows`` is as long as the data that come in, and that is
# all that pyro_lvm needs to know in order to scale minibatches.


def model(corps, deaths=None):
    rate = pyro.sample("rate", dist.LogNormal(-0.5, 1.0))
    spread = pyro.sample("spread", dist.HalfNormal(0.5))
    with pyro.plate("corps", 14):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
    rates = rate * (spread * effect).exp()
    with pyro.plate("rows", len(corps)):
        pyro.sample("deaths", dist.Poisson(rates[corps]), obs=deaths)


# %%
# The fit sees 70 of the 280 corps-years at a time. The guide is a normal distribution with a full covariance.

result = lvm.fit(model, "full_rank", corps, deaths, batch_size=70, num_steps=3_000, optim=0.01, progress=False)
print(result)

# %%
# Is there a difference at all?
# -----------------------------
#
# The evidence answers. For comparison: one rate for all corps.


def one_rate(corps, deaths=None):
    rate = pyro.sample("rate", dist.LogNormal(-0.5, 1.0))
    with pyro.plate("rows", len(corps)):
        pyro.sample("deaths", dist.Poisson(rate), obs=deaths)


plain = lvm.fit(one_rate, "full_rank", corps, deaths, num_steps=1_000, progress=False)
hierarchical, pooled = result.evidence(5_000), plain.evidence(5_000)
print(f"log p(deaths), a rate for each corps: {hierarchical}")
print(f"log p(deaths), one rate for all:      {pooled}")
print(f"log Bayes factor for differences:     {hierarchical.value - pooled.value:.1f} nats")

# %%
# The data lean towards differences, but only just. Left: what 20 years say about each corps. The posterior draws
# every corps towards the common rate, and farthest those whose counts are extreme. Right: twenty new years, drawn
# from the posterior predictive distribution, look like the years observed.

draws = result.sample(4_000)
rates = draws["rate"][:, None] * (draws["spread"][:, None] * draws["effect"]).exp()
own = counts.mean(0)
order = np.argsort(own)

new = result.predict(corps, num_draws=1_000)["deaths"]
frequencies = torch.stack([(new == count).sum(-1) for count in range(6)], -1).float()
lower, upper = frequencies.quantile(torch.tensor([0.05, 0.95]), 0)

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
lvm.plots.intervals({"posterior of the rate": rates[:, order]}, [CORPS[i] for i in order], ax=left)
left.plot(own[order], range(14), "|", color="black", markersize=11, label="observed mean")
left.legend(frameon=False, loc="upper right")
left.set(xlabel="deaths a year (mean and 90% interval)", xlim=(0, 2), ylabel="corps")
right.bar(range(6), np.bincount(counts.ravel(), minlength=6), color="#CCCCCC", label="observed")
right.errorbar(
    range(6),
    frequencies.mean(0),
    yerr=torch.stack([frequencies.mean(0) - lower, upper - frequencies.mean(0)]).clamp(min=0),
    fmt="o",
    color=lvm.plots.COLORS[0],
    capsize=4,
    label="predicted, 90%",
)
right.set(xlabel="deaths in a corps and year", ylabel="corps-years")
right.spines[["top", "right"]].set_visible(False)
right.legend(frameon=False)
plt.show()

# %%
# .. [1] L. von Bortkiewicz, *Das Gesetz der kleinen Zahlen* (1898). The table is also in D. F. Andrews and A. M.
#    Herzberg, *Data* (1985), table 4.1.
