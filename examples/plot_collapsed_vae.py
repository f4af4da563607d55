"""
A collapsed autoencoder and its cure
====================================

The ELBO of an autoencoder is a trade: what the latents tell of a row makes its likelihood better, and costs their
divergence from the prior. Early in a fit the decoder cannot read them, so that they cost more than they bring. An
encoder that then gives up, and returns the prior for every row, may never come back: posterior collapse [1]_.
"""

import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits

import pyro_lvm as lvm

digits = load_digits()
x = torch.tensor(digits.data > 8, dtype=torch.float32)
shuffled = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
train, test = x[shuffled[:1437]], x[shuffled[1437:]]
print(f"{len(train)} digits to fit, {len(test)} held out, {x.shape[1]} pixels of zero or one")

# %%
# Three fits
# ----------
#
# The networks have three hidden layers and the learning rate is large, which invites a collapse. All fits start from
# the same weights. Two of them make the divergence cheap as long as it is small, or as long as the fit is young: free
# bits [2]_ charge nothing for the first five nats of a row, and annealing [1]_ lets the weight of the divergence rise
# from 0 to 1 over the first thousand steps.


def fit(elbo):
    torch.manual_seed(0)  # the networks' starting weights
    vae = lvm.models.VAE(num_features=64, num_latents=20, hidden=(128, 128, 128))
    result = lvm.fit(vae, None, train, elbo=elbo, batch_size=100, num_steps=1_200, optim=1e-2, progress=False)
    return vae, result


plain = lvm.elbo.Trace_ELBO()
fits = {
    "ELBO": fit(plain),
    "free bits": fit(lvm.elbo.FreeBits(plain, nats=5.0)),
    "annealing": fit(lvm.elbo.Beta(plain, warm_up=1_000)),
}

# %%
# What the latents tell
# ---------------------
#
# Rate and distortion are the two sides of the trade [3]_, and their sum is the negative ELBO. A unit, one of the twenty
# numbers in a row's latents, is active if its posterior mean moves with the rows. A few active units are enough for
# digits this small; none at all are too few, and the held-out log p(x) says so.

codes = {name: lvm.diagnose(result).codes for name, (_, result) in fits.items()}
print("nats per digit  rate  distortion  active units  held-out log p(x)")
for name, (_, result) in fits.items():
    found, score = codes[name], result.score(test, num_draws=500).value.mean()
    rate, distortion = found.rate.value, found.distortion.value
    print(f"{name:<14}{rate:>6.2f}{distortion:>12.2f}{found.active.sum():>14}{score:>19.2f}")

# %%
# In words:

for name, found in codes.items():
    print(f"{name}:")
    for finding in found.findings():
        print(f"  {finding.grade}: {finding.text}")
print("try next:", codes["ELBO"].findings()[0].advice)

# %%
# The part of each unit in the rate:

figure, axes = plt.subplots(1, 3, figsize=(12, 3.2), sharey=True, layout="constrained")
for ax, (name, found) in zip(axes, codes.items(), strict=True):
    found.plot(ax)
    ax.set_title(name)
    ax.label_outer()
    ax.tick_params(axis="x", labelbottom=True, labelsize=8)
plt.show()

# %%
# What the decoders make of it
# ----------------------------
#
# Left: held-out digits and their reconstructions from the posterior means. Right: mean images of twelve draws from the
# prior, the same for all fits. The collapsed decoder knows one image, the mean of all digits. Free bits and annealing
# end with active units that are near enough to the prior for its draws to be legible: the aggregated posterior, the
# mixture of the posteriors of all rows, is within a nat of it [4]_.

shown, z = test[:12], torch.randn(12, 20, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    rebuilt = [vae.decode(vae.encode(shown)[0]).sigmoid() for vae, _ in fits.values()]
    drawn = [vae.decode(z).sigmoid() for vae, _ in fits.values()]

# sphinx_gallery_thumbnail_number = 2
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 2.0), layout="constrained")
for ax, lines, names in ((left, [shown, *rebuilt], ["held out", *fits]), (right, drawn, list(fits))):
    lvm.plots.images(torch.cat(lines), (8, 8), num_columns=12, ax=ax)
    ax.set_axis_on()
    ax.set_xticks([])
    ax.set_yticks([9 * i + 3.5 for i in range(len(names))], names)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_anchor("S")
left.set_title("reconstructions")
right.set_title("draws of the prior")
plt.show()

# %%
# .. [1] S. Bowman et al., "Generating sentences from a continuous space" (2016).
# .. [2] D. P. Kingma et al., "Improved variational inference with inverse autoregressive flow" (2016), appendix C.8.
# .. [3] A. Alemi et al., "Fixing a broken ELBO" (2018).
# .. [4] M. Hoffman and M. Johnson, "ELBO surgery: yet another way to carve up the variational evidence lower bound"
#    (2016).
