"""
Digits with half of their pixels
================================

Every image here lacks half of its pixels, and no image is ever seen whole. A mixture of Gaussians is fitted all the
same: its E-step integrates the missing entries out, row by row, and afterwards it fills each hole with what it expects
there, given the pixels that are left.
"""

import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits

import pyro_lvm as lvm

digits = load_digits()
images, labels = torch.tensor(digits.data, dtype=torch.float32), torch.tensor(digits.target)

# %%
# Making holes
# ------------
#
# A hundred stencils hide 32 of the 64 pixels each, and every image gets one of them. A missing entry is a NaN. Grey
# values are whole numbers from 0 to 16, and pixels in the corners are almost always 0; a uniform number of up to half a
# grey value, up or down, stands for what rounding took away, and keeps variances from vanishing there.

generator = torch.Generator().manual_seed(0)
x = images + torch.rand(images.shape, generator=generator) - 0.5
stencils = torch.rand(100, 64, generator=generator).argsort(1) < 32
holes = stencils[torch.randint(100, (len(x),), generator=generator)]
x[holes] = torch.nan
print(f"{len(x):,} images, {holes.float().mean():.0%} of the pixels missing")

# %%
# Fitting
# -------
#
# Twenty components share one covariance, ``"tied"``: how pixels hang together is much the same in all digits, and a
# covariance for each component would have two thousand entries to be learnt from ninety images.

mixture = lvm.models.GaussianMixture(num_components=20, num_features=64, covariance="tied")
result = lvm.fit_em(mixture, x, missing=True, tol=1e-3, progress=False)
print(result)

# %%
# Completing
# ----------
#
# ``impute`` gives the expectation of the missing entries given the others: that of each component, weighted by the
# probability of the component. The mean of the other images' pixel is what one would take without a model.

completed = mixture.impute(x)
means = torch.where(holes, x.nanmean(0), x)


def error(filled):
    return (filled - images)[holes].square().mean().sqrt()


print(f"error of a missing pixel: {error(completed):.2f} grey values of 16; by means of pixels {error(means):.2f}")

clusters = mixture.labels(completed)
most = torch.stack([labels[clusters == k].bincount(minlength=10) for k in range(20)]).amax(1)
print(f"{most.sum() / len(labels):.0%} of the images lie in a cluster in which their digit is the most frequent")

# %%
# The picture
# -----------
#
# From top to bottom: the image, what is left of it (holes are blue), the completion, and the completion by means.

shown = [int((labels == digit).nonzero()[8]) for digit in range(10)]
names = ["original", "with holes", "completed", "pixel means"]
colors = plt.get_cmap("gray_r").with_extremes(bad="#9FC5E8")
figure, axes = plt.subplots(4, 10, figsize=(10, 4.4), layout="constrained")
for row, name, values in zip(axes, names, (images, x, completed, means), strict=True):
    for ax, image in zip(row, values[shown], strict=True):
        ax.imshow(image.reshape(8, 8), cmap=colors, vmin=0, vmax=16)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    row[0].set_ylabel(name)
plt.show()
