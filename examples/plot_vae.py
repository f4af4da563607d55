"""
A variational autoencoder of digits
===================================

A variational autoencoder is a latent variable model whose likelihood is a neural network. Its guide is one too: the
encoder reads an image and returns the posterior of its latents. Such a guide is called amortized, and it makes
minibatches possible, since it holds no parameter for any single row.
"""

import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits

import pyro_lvm as lvm

digits = load_digits()
x = torch.tensor(digits.data > 8, dtype=torch.float32)
shuffled = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
train, test = shuffled[:1500], shuffled[1500:]
print(f"{len(train)} digits to fit, {len(test)} to test, {x.shape[1]} pixels of zero or one")

# %%
# The fit
# -------
#
# Batches of 100 images are scaled to the whole data set. The held-out digits are evaluated every 500 steps.

torch.manual_seed(0)  # the networks' starting weights
vae = lvm.models.VAE(num_features=64, num_latents=2, hidden=(128,))
result = lvm.fit(
    vae, None, x[train], batch_size=100, num_steps=6_000, optim=2e-3, every=500, validation=x[test], progress=False
)
for step, loss in result.validation.items():
    print(f"step {step:5,}: {loss / len(test):.2f} nats per held-out digit")

# %%
# How good is the posterior?
# --------------------------
#
# The ELBO lies below log p(x) by the divergence of guide and posterior. Importance sampling closes most of that gap.
# ``score`` gives log p(x) for each row, of new rows as well.

score = result.score(x[test], num_draws=500).value
elbo = -list(result.validation.values())[-1] / len(test)
print(f"held-out ELBO     {elbo:.2f} nats per digit")
print(f"held-out log p(x) {score.mean():.2f} nats per digit")

# %%
# A digit that the model finds unlikely is often one that a reader doubts, too.

strange = x[test][score.argsort()[:14]]
usual = x[test][score.argsort(descending=True)[:14]]
figure, axes = plt.subplots(2, 1, figsize=(7, 1.9), layout="constrained")
for ax, rows, title in zip(axes, (usual, strange), ("most likely", "least likely"), strict=True):
    lvm.plots.images(rows, (8, 8), num_columns=14, ax=ax)
    ax.set_title(title, loc="left", fontsize=10)
plt.show()

# %%
# What it has learnt
# ------------------
#
# Left: the posterior means of the fitted digits. The classes, which the fit did not see, fall apart. Right: the mean
# images of a grid of latents, from -2 to 2.

steps = torch.linspace(-2, 2, 13)
grid = torch.cartesian_prod(-steps, steps).flip(-1)  # reading order: down, then to the right
with torch.no_grad():
    loc, _ = vae.encode(x[train])
    pixels = vae.decode(grid).sigmoid()

# sphinx_gallery_thumbnail_number = 2
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5.2), layout="constrained")
lvm.plots.latent_map(loc, digits.target[train], ax=left)
lvm.plots.images(pixels, (8, 8), num_columns=13, ax=right)
plt.show()
