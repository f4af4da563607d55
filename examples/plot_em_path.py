"""
The path of EM
==============

EM climbs the log-likelihood without a learning rate. Each E-step makes a lower bound that touches the log-likelihood at
the present parameters; each M-step goes to the peak of that bound, where the next one begins. Here is the whole path of
a mixture of two Gaussians, from a start that is poor on purpose. The data are 178 Italian wines.
"""

import torch
from matplotlib import pyplot as plt
from matplotlib.patches import Ellipse
from sklearn.datasets import load_wine
from torch.distributions import MultivariateNormal

import pyro_lvm as lvm

wine = load_wine(as_frame=True).data[["flavanoids", "color_intensity"]]
x = torch.tensor(wine.to_numpy(), dtype=torch.float64)

# %%
# A poor start
# ------------
#
# Both components begin at the centre of all wines, each as wide as the data, and hardly apart from each other. Were
# they at the same place, they would stay the same for ever. A callback keeps the parameters after every iteration.

mixture = lvm.models.GaussianMixture(num_components=2, num_features=2).double()
apart = 0.05 * x.std(0) * torch.tensor([1.0, -1.0])
mixture.locs = torch.stack([x.mean(0) + apart, x.mean(0) - apart])
mixture.covariances = x.T.cov().expand(2, 2, 2)

path = [{name: getattr(mixture, name).detach().clone() for name in ("weights", "locs", "scale_tril")}]
result = lvm.fit_em(mixture, x, callbacks=[lambda state: path.append(state.params)], progress=False)
print(result)

# %%
# The log-likelihood and its bounds
# ---------------------------------
#
# A picture has room for one dimension of parameters. It is the broken line through the iterates: at 0 is the start, at
# 1 what the first iteration made of it, and between them are weighted averages of weights, locs and covariances. With
# the responsibilities :math:`r` at the parameters :math:`\theta_t` after :math:`t` iterations, the bound is
#
# .. math::
#
#     \sum_{ik} r_{ik} \log p(x_i, z_i = k \mid \theta) - \sum_{ik} r_{ik} \log r_{ik}.
#
# It equals the log-likelihood at :math:`\theta_t`, and no parameters make it larger than :math:`\theta_{t+1}` do.

for step in path:
    step["covariances"] = step["scale_tril"] @ step["scale_tril"].mT


def log_joint(place):
    """log p(x, z) of each wine in each component, [178, 2], at a place on the line."""
    t = min(int(place), len(path) - 2)
    share = place - t
    weights, locs, covariances = (
        (1 - share) * path[t][name] + share * path[t + 1][name] for name in ("weights", "locs", "covariances")
    )
    return weights.log() + MultivariateNormal(locs, covariances).log_prob(x[:, None])


def log_likelihood(place):
    return log_joint(place).logsumexp(-1).sum().item()


def bound(place, t):
    responsibilities = log_joint(t).softmax(-1)
    return ((responsibilities * log_joint(place)).sum() + torch.special.entr(responsibilities).sum()).item()


TOUCHES = (2, 4, 7)
for t in TOUCHES:
    assert abs(log_likelihood(t) - bound(t, t)) < 1e-8
    print(
        f"iteration {t + 1}: its bound rises by {bound(t + 1, t) - bound(t, t):.2f} nats, "
        f"the log-likelihood by {log_likelihood(t + 1) - log_likelihood(t):.2f}"
    )

# %%
# The picture
# -----------
#
# Left: ellipses with nine tenths of each component's mass, the darker the later, and the way of the locs. Right: the
# log-likelihood along the line, and three of the bounds. Each touches it at a dot and has its peak one iteration on,
# where the log-likelihood lies higher still.

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
left.plot(*x.T, ".", color="#AAAAAA", markersize=5)
for k, color in enumerate(lvm.plots.COLORS[:2]):
    for t, step in enumerate(path):
        lengths, axes = torch.linalg.eigh(step["covariances"][k])
        width, height = (2 * (4.605 * lengths).sqrt()).tolist()  # the 0.9 quantile of chi-squared with 2 degrees
        angle = torch.atan2(axes[1, 0], axes[0, 0]).rad2deg().item()
        look = {"edgecolor": color, "alpha": 0.12 + 0.88 * (t / (len(path) - 1)) ** 2}
        left.add_patch(Ellipse(step["locs"][k].tolist(), width, height, angle=angle, fill=False, **look))
    locs = torch.stack([step["locs"][k] for step in path])
    left.plot(*locs.T, ".-", color=color, linewidth=1, markersize=5)
    left.plot(*locs[-1], "o", color=color, markersize=8)
left.set(xlabel="flavanoids", ylabel="colour intensity", xlim=(-0.5, 5.5), ylim=(-1, 14))

SHOWN = 14
places = torch.linspace(0, SHOWN, 20 * SHOWN + 1).tolist()
right.plot(places, [log_likelihood(place) for place in places], color="black", label="log-likelihood")
for t, color in zip(TOUCHES, lvm.plots.COLORS[2:], strict=False):
    near = [place for place in places if t - 2 <= place <= t + 3]
    right.plot(near, [bound(place, t) for place in near], color=color, label=f"bound of iteration {t + 1}")
    right.plot(t, log_likelihood(t), "o", color=color)
    right.plot(t + 1, bound(t + 1, t), "^", color=color, fillstyle="none")
right.set(xlabel="iterations", ylabel="nats", ylim=(-665, -552))
right.legend(frameon=False, loc="upper left")
for ax in (left, right):
    ax.spines[["top", "right"]].set_visible(False)
plt.show()
