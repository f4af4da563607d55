"""
Probabilistic PCA of wines
==========================

Probabilistic PCA puts a low-dimensional normal variable behind each row. It is a good first test of any inference
program, since everything about it is known: its posterior, its likelihood, and even where the likelihood is largest
[1]_.
"""

import math

import numpy as np
import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_wine

import pyro_lvm as lvm

wine = load_wine()
x = torch.tensor((wine.data - wine.data.mean(0)) / wine.data.std(0), dtype=torch.float32)
N, D = x.shape
print(f"{N} wines of three cultivars, {D} chemical measurements, standardised")

# %%
# A fit without noise
# -------------------
#
# The model brings its own guide, the exact posterior. Then log p(x, z) - log q(z) is the same number for every draw
# of z: the ELBO has no variance and equals the log-likelihood.

L = 2
ppca = lvm.models.PPCA(L, D).initialize(x)
result = lvm.fit(ppca, None, x, num_steps=1_500, optim=0.02, progress=False)
print(result)

# %%
# The closed-form maximum takes the largest L eigenvalues of the sample covariance, and for the noise the mean of the
# others.

eigenvalues = np.linalg.eigvalsh(np.cov(x.double().numpy().T, bias=True))[::-1]
noise = eigenvalues[L:].mean()
maximum = -N / 2 * (D * math.log(2 * math.pi) + np.log(eigenvalues[:L]).sum() + (D - L) * math.log(noise) + D)

print(f"log p(x) at the closed-form maximum     {maximum:.3f} nats")
print(f"log p(x) of the fit, in closed form     {ppca.marginal().log_prob(x).sum():.3f} nats")
print(f"the fit's last ELBO                     {-result.losses[-1]:.3f} nats")
print(f"its evidence, by importance sampling    {result.evidence()}")
print(f"noise variance: fit {ppca.noise:.4f}, closed form {noise:.4f}")

# %%
# The map
# -------
#
# The likelihood knows the latent plane, not the axes in it. We turn them to the principal axes, by a singular value
# decomposition of the loading. Each wine stands at its posterior mean; an arrow shows where a measurement grows.

U, lengths, turn = torch.linalg.svd(ppca.loading.detach(), full_matrices=False)
z = result.posterior()["z"].mean @ turn.mT
loading = U * lengths

figure, ax = plt.subplots(figsize=(7, 6), layout="constrained")
lvm.plots.latent_map(z, [f"cultivar {c + 1}" for c in wine.target], ax=ax)
for d in loading.norm(dim=1).argsort(descending=True)[:7]:
    tip = 2.2 * loading[d]
    ax.annotate("", tip, (0, 0), arrowprops={"arrowstyle": "->", "color": "#444444"})
    name = wine.feature_names[d].split("/")[0].replace("_", " ")
    ax.annotate(name, 1.05 * tip, ha="left" if tip[0] > 0 else "right", va="center", fontsize=9, color="#444444")
ax.set_aspect("equal", adjustable="box")
ax.set(xlim=(-2.9, 2.4), ylim=(-2.3, 2.4), xlabel="first principal axis", ylabel="second principal axis")
plt.show()

# %%
# .. [1] M. E. Tipping and C. M. Bishop, "Probabilistic principal component analysis", *Journal of the Royal
#    Statistical Society B* 61 (1999).
