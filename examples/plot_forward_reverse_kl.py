"""
Forward and reverse KL
======================

A density q can be fitted to a density p in two ways. From draws of p one minimises the forward divergence, KL(p || q):
that is maximum likelihood. From p's unnormalised density one minimises the reverse one, KL(q || p): that is variational
inference. The two ask for different things, and with the same flow it shows.
"""

import math

import pyro
import pyro.distributions as dist
import torch
from matplotlib import pyplot as plt

import pyro_lvm as lvm

# %%
# Eight targets
# -------------
#
# Two normal distributions far apart; the four densities proportional to exp(-U(z)) on which flows were first tried
# [1]_; two moons, three rings and a checkerboard with soft edges. U2, U3 and U4 have no end from left to right, so that
# a steep wall closes the square from -4 to 4.


def log_normals(z, modes, scale):
    """The logarithm of a sum of bells at the modes, without a normaliser."""
    return torch.logsumexp(torch.stack([-0.5 * ((z - mode) / scale) ** 2 for mode in modes]), 0)


def two_modes(z1, z2):
    return -torch.logaddexp(*(-0.5 * ((z1 - m) ** 2 + (z2 - m) ** 2) / 0.6**2 for m in (-2.0, 2.0)))


def u1(z1, z2):
    return 0.5 * (((z1**2 + z2**2).sqrt() - 2) / 0.4) ** 2 - log_normals(z1, (-2, 2), 0.6)


def u2(z1, z2):
    return 0.5 * ((z2 - wave(z1)) / 0.4) ** 2


def u3(z1, z2):
    bump = 3 * torch.exp(-0.5 * ((z1 - 1) / 0.6) ** 2)
    return -log_normals(z2, (wave(z1), wave(z1) - bump), 0.35)


def u4(z1, z2):
    up = z2 - wave(z1)
    step = 3 * torch.sigmoid((z1 - 1) / 0.3)
    return -torch.logaddexp(-0.5 * (up / 0.4) ** 2, -0.5 * ((up + step) / 0.35) ** 2)


def wave(z1):
    return torch.sin(0.5 * math.pi * z1)


def moons(z1, z2):
    angles = torch.linspace(0, math.pi, 40)
    moon = 1.5 * torch.stack([angles.cos() - 0.5, angles.sin() - 0.25], -1)
    points = torch.cat([moon, -moon])
    squares = (z1.unsqueeze(-1) - points[:, 0]) ** 2 + (z2.unsqueeze(-1) - points[:, 1]) ** 2
    return -(-0.5 * squares / 0.15**2).logsumexp(-1)


def rings(z1, z2):
    return -log_normals((z1**2 + z2**2).sqrt(), (1, 2, 3), 0.12)


def checkerboard(z1, z2):
    """Dark where the signs of two waves agree, from -2 to 2."""
    outside = (z1.abs() - 2).relu() ** 2 + (z2.abs() - 2).relu() ** 2
    same = torch.sin(math.pi * z1) * torch.sin(math.pi * z2)
    return -torch.nn.functional.logsigmoid(10 * same) + 50 * outside


def log_unnormalised(energy, z):
    """The logarithm of exp(-U), inside the wall."""
    return -energy(*z.unbind(-1)) - 50 * (z.abs() - 4).relu().square().sum(-1)


TARGETS = {
    "two modes": two_modes,
    "U1": u1,
    "U2": u2,
    "U3": u3,
    "U4": u4,
    "moons": moons,
    "rings": rings,
    "checkerboard": checkerboard,
}

# %%
# In two dimensions a fine grid tells everything about a target: its normaliser, its density, and exact draws, from
# cells by their probabilities and then from within the cells.

SIDE = 250
line = (torch.arange(SIDE) + 0.5) * 10 / SIDE - 5
cells = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).flatten(0, 1)
LOG_AREA = 2 * math.log(10 / SIDE)


def exact(energy, num_draws):
    """The log-densities of the cells, the log-normaliser, and draws."""
    log_p = log_unnormalised(energy, cells)
    log_normaliser = log_p.logsumexp(0) + LOG_AREA
    at = cells[(log_p - log_p.max()).exp().multinomial(num_draws, replacement=True)]
    return log_p - log_normaliser, log_normaliser, at + 10 / SIDE * (torch.rand(num_draws, 2) - 0.5)


# %%
# Two fits of one flow
# --------------------
#
# Couplings of splines are as fast in the one direction as in the other. Forward, a flow is fitted to 10,000 draws.
# Reverse, the target is a Pyro model: a wide normal distribution whose density a factor replaces by that of the target.
# The flow is its guide.

NUM_STEPS = 400


def flow(num_features=2):
    return lvm.flows.NSF(num_features, num_transforms=4, coupling=True)


def decayed(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, NUM_STEPS)


def forward(draws):
    density = lvm.models.FlowDensity(flow())
    lvm.fit(
        density,
        None,
        draws,
        batch_size=256,
        num_steps=NUM_STEPS,
        optim=5e-3,
        scheduler=decayed,
        progress=False,
    )
    return density.flow()


def reverse(energy):
    wide = dist.Normal(0.0, 3.0).expand([2]).to_event(1)

    def model():
        z = pyro.sample("z", wide)
        pyro.factor("target", log_unnormalised(energy, z) - wide.log_prob(z))

    guide = lvm.guides.FlowGuide(model, flow=flow)
    lvm.fit(
        model,
        guide,
        num_steps=NUM_STEPS,
        optim=5e-3,
        scheduler=decayed,
        elbo=lvm.elbo.Trace_ELBO(32),
        progress=False,
    )
    return guide.get_posterior()


# %%
# The divergences
# ---------------
#
# In nats: that from p on 10,000 new draws of p, that from q on as many of q.

torch.manual_seed(0)
pictures = {}
print(f"{'':12} {'fitted by':>10} {'KL(p || q)':>12} {'KL(q || p)':>12}")
with torch.no_grad():
    for name, energy in TARGETS.items():
        log_p, log_normaliser, draws = exact(energy, 20_000)
        with torch.enable_grad():
            fits = {"forward": forward(draws[:10_000]), "reverse": reverse(energy)}
        pictures[name] = {"target": log_p} | {way: q.log_prob(cells) for way, q in fits.items()}
        new = draws[10_000:]
        for way, q in fits.items():
            from_p = log_unnormalised(energy, new) - log_normaliser - q.log_prob(new)
            z, log_q = q.rsample_and_log_prob((10_000,))
            from_q = log_q - log_unnormalised(energy, z) + log_normaliser
            print(f"{name:12} {way:>10} {from_p.mean():12.2f} {from_q.mean():12.2f}")

# %%
# The pictures
# ------------
#
# Where p has mass and q has none, the forward divergence is infinite: these fits cover everything, and leave a little
# mass between the parts. The reverse divergence punishes mass of q where p has none, and forgives what is left out. A
# half of two modes that is left out costs log 2 = 0.69 nats and no more, as the table shows, and a way to it leads
# through points of low density, at a higher price. From where its Gaussian starts, the flow spreads along the waves,
# but it has not reached their ends.

figure, axes = plt.subplots(3, len(TARGETS), figsize=(13, 5.2), layout="constrained")
for column, (name, shown) in zip(axes.T, pictures.items(), strict=True):
    for ax, (way, log_density) in zip(column, shown.items(), strict=True):
        ax.imshow(
            log_density.exp().reshape(SIDE, SIDE),
            extent=(-5, 5, -5, 5),
            origin="lower",
            cmap="magma",
            vmax=shown["target"].max().exp(),
        )
        ax.set(xticks=[], yticks=[])
        if name == "two modes":
            ax.set_ylabel(way)
    column[0].set_title(name)
plt.show()

# %%
# .. [1] D. J. Rezende and S. Mohamed, "Variational inference with normalizing flows", *International Conference on
#    Machine Learning* (2015), table 1 and figure 3.
