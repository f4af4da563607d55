"""
Digits by a flow with 1x1 convolutions
======================================

A flow has no need to know the classes of images, nor a latent space smaller than they are: it is a density of all their
pixels. This one is made of the steps of Glow [1]_, at the scale of scikit-learn's digits, which are 8 x 8 pixels.
"""

import math

import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from torch.distributions import MultivariateNormal

import pyro_lvm as lvm
from pyro_lvm.transforms import ActNorm, Conv1x1, ImageCoupling, Squeeze, channel_mask, checkerboard_mask

# %%
# From counts to real numbers
# ---------------------------
#
# A pixel is an integer from 0 to 16. Uniform noise makes it a real number, divided by 17 it lies between 0 and 1, and a
# logit, kept a little from both ends, takes it to the real line [2]_. Each training image comes with ten draws of the
# noise, lest a flow learn the noise by heart.

LEVELS, MARGIN = 17, 0.05


def to_real(pixels):
    """Real numbers from integers, and the log-slope of the map, which makes densities of the integers of theirs."""
    shares = MARGIN + (1 - 2 * MARGIN) * (pixels + torch.rand_like(pixels)) / LEVELS
    slopes = (1 - 2 * MARGIN) / LEVELS / (shares * (1 - shares))
    return shares.logit(), slopes.log().flatten(1).sum(-1)


def to_pixels(x):
    """Integers again."""
    return ((x.sigmoid() - MARGIN) / (1 - 2 * MARGIN) * LEVELS).floor().clamp(0, LEVELS - 1)


torch.manual_seed(0)
images = torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1)
images = images[torch.randperm(len(images))]
train, _ = to_real(images[:1_437].repeat(10, 1, 1, 1))
held_out, log_slopes = to_real(images[1_437:].repeat(10, 1, 1, 1))
print(f"{len(images):,} images, the last {len(images) - 1_437} held out")

# %%
# The flow
# --------
#
# It is listed from the base to the data. A step is a coupling of channels, a linear map of the channels of each pixel
# and a normalisation, which starts from data. ``Squeeze`` makes one channel of 8 x 8 pixels of four channels of 4 x 4.
# Couplings of pixels, in the pattern of a checkerboard, come last.


def step(mask):
    C = len(mask)
    return [ImageCoupling(mask, hidden=(32, 32)), Conv1x1(C), ActNorm(C, images=True)]


channels, board = channel_mask(4, 4, 4), checkerboard_mask(1, 8, 8)
layers = [layer for i in range(8) for layer in step(channels if i % 2 else ~channels)]
layers += [Squeeze()]
layers += [ImageCoupling(mask, hidden=(32, 32)) for mask in (board, ~board, board, ~board)]
density = lvm.models.FlowDensity(lvm.flows.Flow(layers, (4, 4, 4))).initialize(train)

NUM_STEPS = 1_000
lvm.fit(
    density,
    None,
    train,
    batch_size=64,
    num_steps=NUM_STEPS,
    optim=2e-3,
    scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, NUM_STEPS),
    progress=False,
)

# %%
# Bits per dimension
# ------------------
#
# The log-density of the image with its noise, in the units of the integers, is on average at most the log-probability
# of the integers. Divided by -64 log 2 it is the number of bits that a pixel takes. For comparison: a normal
# distribution with a full covariance, of the same real numbers, and pixels that are uniform.


def bits(log_density):
    return -(log_density + log_slopes).mean().item() / (64 * math.log(2))


rows = train.flatten(1).double()
normal = MultivariateNormal(rows.mean(0), rows.T.cov())
print(f"uniform pixels      {math.log2(LEVELS):.3f} bits per dimension, held out")
print(f"normal distribution {bits(normal.log_prob(held_out.flatten(1).double())):.3f}")
print(f"flow                {bits(density.log_prob(held_out)):.3f}")

# %%
# New digits
# ----------
#
# Some draws of the flow are digits, and others are strokes that might be. The normal distribution leaves grey specks
# where all digits are white, and its strokes are broken.

drawn = {
    "held-out images": held_out[:40],
    "draws of the flow": density.sample(40),
    "draws of the normal distribution": normal.sample((40,)),
}
figure, axes = plt.subplots(1, 3, figsize=(12, 6.2), gridspec_kw={"wspace": 0.1}, layout="constrained")
for ax, (name, x) in zip(axes, drawn.items(), strict=True):
    lvm.plots.images(to_pixels(x).flatten(1), (8, 8), num_columns=5, ax=ax)
    ax.set_title(name)
plt.show()

# %%
# .. [1] D. P. Kingma and P. Dhariwal, "Glow: Generative flow with invertible 1x1 convolutions", *Advances in Neural
#    Information Processing Systems* 31 (2018).
# .. [2] L. Dinh, J. Sohl-Dickstein and S. Bengio, "Density estimation using Real NVP", *International Conference on
#    Learning Representations* (2017), section 4.1.
