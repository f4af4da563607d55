"""
Densities by flows
==================

A flow sends a normal distribution through invertible layers, and so it has a density that can be computed and
maximised [1]_. How well do flows learn densities that no normal distribution looks like? In two dimensions one can see
it, and where the true density is known, one can count what is missing.
"""

import math

import torch
from matplotlib import pyplot as plt
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

import pyro_lvm as lvm

# %%
# Three densities
# ---------------
#
# Two moons and three rings are curves with normal noise, which a mixture of many small normal distributions is, too.
# The checkerboard is uniform on its eight dark squares: its density is 1/8 there and jumps to zero at their edges.


def along(points, noise):
    """Curves with noise, as a mixture of normals at their points."""
    normals = Independent(Normal(points, noise), 1)
    return MixtureSameFamily(Categorical(torch.ones(len(points))), normals, validate_args=False)


class Checkerboard:
    """Uniform on the dark squares of a board of sixteen, from -2 to 2."""

    def sample(self, shape):
        x = 4 * torch.rand(*shape) - 2
        y = torch.rand(*shape) + 2 * torch.randint(2, shape) - 2 + x.floor() % 2
        return torch.stack([x, y], -1)

    def log_prob(self, x):
        dark = (x.floor().sum(-1) % 2 == 0) & (x.abs() < 2).all(-1)
        return torch.where(dark, -math.log(8), -math.inf)


angles = torch.linspace(0, 2 * math.pi, 201)[:-1]
circle = torch.stack([angles.cos(), angles.sin()], -1)
moon = torch.stack([angles.div(2).cos() - 0.5, angles.div(2).sin() - 0.25], -1)
targets = {
    "two moons": along(torch.cat([1.5 * moon, -1.5 * moon]), 0.1),
    "rings": along(torch.cat([0.8 * circle, 1.6 * circle, 2.4 * circle]), 0.08),
    "checkerboard": Checkerboard(),
}

# %%
# Eight flows
# -----------
#
# ``LinearFlow`` is a normal distribution with any covariance. ``RealNVP`` moves and scales one coordinate at a time, by
# what the other one says, and ``MAF`` does so in both coordinates in turn; ``NSF`` bends by splines instead. All have
# their density in one pass. Those of ``Planar`` and ``Sylvester`` take Newton's method at each point, and that of
# ``IAF`` goes coordinate by coordinate: these are made for guides, where only draws are asked for.

FLOWS = {
    "LinearFlow": lambda: lvm.flows.LinearFlow(2),
    "Planar": lambda: lvm.flows.Planar(2, 8),
    "Sylvester": lambda: lvm.flows.Sylvester(2, 4),
    "IAF": lambda: lvm.flows.IAF(2),
    "RealNVP": lambda: lvm.flows.RealNVP(2),
    "MAF": lambda: lvm.flows.MAF(2),
    "NSF coupling": lambda: lvm.flows.NSF(2, num_transforms=4, coupling=True),
    "NSF": lambda: lvm.flows.NSF(2),
}
NUM_STEPS = 500

torch.manual_seed(0)
line = torch.linspace(-3, 3, 150)
grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).flatten(0, 1)
scores, pictures = {}, {}
for data, target in targets.items():
    train, held_out = target.sample((10_000,)), target.sample((10_000,))
    scores[data] = {"truth": target.log_prob(held_out).mean().item()}
    pictures[data] = {"truth": target.log_prob(grid).exp()}
    for name, make in FLOWS.items():
        density = lvm.models.FlowDensity(make())
        lvm.fit(
            density,
            None,
            train,
            batch_size=512,
            num_steps=NUM_STEPS,
            optim=5e-3,
            scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, NUM_STEPS),
            progress=False,
        )
        scores[data][name] = density.log_prob(held_out).mean().item()
        pictures[data][name] = density.log_prob(grid).exp()

# %%
# The mean log-density of 10,000 held-out points, in nats. No density scores better than the true one, and what is
# missing is the divergence of the flow from it, KL(truth || flow).

columns = ["truth", *FLOWS]
print(f"{'':14}" + "".join(f"{name:>13}" for name in columns))
for data, row in scores.items():
    print(f"{data:14}" + "".join(f"{row[name]:13.2f}" for name in columns))

# %%
# The pictures
# ------------
#
# A continuous map cannot tear a normal distribution apart, so that threads remain between what is separate in truth.
# Splines make them thin, in few layers. Moves and scales alone leave broad ones: after as many steps ``RealNVP`` and
# ``MAF`` have no rings, and score little better than a normal distribution there.

figure, axes = plt.subplots(3, len(columns), figsize=(14, 5.2), layout="constrained")
for i, (data, row) in enumerate(pictures.items()):
    for ax, name in zip(axes[i], columns, strict=True):
        ax.imshow(
            row[name].reshape(150, 150),
            extent=(-3, 3, -3, 3),
            origin="lower",
            cmap="magma",
            vmax=row["truth"].max(),
        )
        ax.set(xticks=[], yticks=[])
        if i == 0:
            ax.set_title(name)
    axes[i, 0].set_ylabel(data)
plt.show()

# %%
# .. [1] G. Papamakarios, E. Nalisnick, D. J. Rezende, S. Mohamed and B. Lakshminarayanan, "Normalizing flows for
#    probabilistic modeling and inference", *Journal of Machine Learning Research* 22 (2021).
