"""
Importance-weighted autoencoders of digits
==========================================

An ELBO asks the guide to be near the posterior, and bends the model towards posteriors that the guide can be near to. A
bound from K particles asks for less: one good draw among K will do [1]_. The model is then freer, and the held-out
likelihood should rise with K. But particles also make gradients less noisy, which helps any fit of so many steps. So
there is a control: an ELBO that averages as many particles outside the logarithm.
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
# Five fits
# ---------
#
# All start from the same networks, and see the same batches. The gradient is that of the paper, "total".


def fit(elbo):
    torch.manual_seed(0)  # the networks' starting weights
    vae = lvm.models.VAE(num_features=64, num_latents=20, hidden=(64,))
    result = lvm.fit(vae, None, train, elbo=elbo, batch_size=100, num_steps=1_200, optim=1e-3, progress=False)
    return vae, result.score(test, num_draws=1_000).value


numbers = (1, 5, 50)
fits = {"VAE": {K: fit(lvm.elbo.Trace_ELBO(K)) for K in numbers}}
fits["IWAE"] = {1: fits["VAE"][1]} | {K: fit(lvm.elbo.TraceIWAE_ELBO(K)) for K in numbers[1:]}  # one bound for K=1

# %%
# The held-out likelihood
# -----------------------
#
# ``score`` has estimated log p(x) of each held-out digit. All fits are scored on the same digits, so that differences
# are far more certain than the values themselves.


def error(rows):
    return (rows.std() / len(rows) ** 0.5).item()


first = fits["VAE"][1][1]
gains = {name: {K: score - first for K, (_, score) in by_number.items()} for name, by_number in fits.items()}
print("nats per held-out digit     log p(x)    less that of the VAE with K=1")
for name, by_number in fits.items():
    for K, (_, score) in by_number.items():
        gain = gains[name][K]
        print(f"{name:>4}, K={K:<17}{score.mean():>11.2f}{gain.mean():>14.2f} +- {error(gain):.2f}")

beyond = gains["IWAE"][50] - gains["VAE"][50]
print(f"IWAE less VAE, both with K=50: {beyond.mean():.2f} +- {error(beyond):.2f}")

# %%
# Both rise. What the VAE gains from more particles is due to less noise; what the IWAE gains beyond it, to the bound.
# After so few steps, noise is the larger part. The errors are those of the choice of digits; another start of the
# networks moves a difference by some hundredths of a nat.
#
# The picture
# -----------
#
# Left: the gains, with two standard errors. Right: mean images of the same 49 draws from the prior.

figure = plt.figure(figsize=(12, 4), layout="constrained")
figure.get_layout_engine().set(w_pad=0.15, h_pad=0.08)
left, right = figure.subfigures(1, 2, width_ratios=(1, 1.85))
ax = left.subplots()
for name, marker, color in (("VAE", "s", lvm.plots.COLORS[0]), ("IWAE", "o", lvm.plots.COLORS[1])):
    mean = [gains[name][K].mean() for K in numbers]
    bars = [2 * error(gains[name][K]) for K in numbers]
    ax.errorbar(numbers, mean, bars, marker=marker, color=color, capsize=4, linewidth=1.8, label=f"{name}, K particles")
ax.set(xscale="log", xticks=numbers, xticklabels=numbers, xlabel="K")
ax.set_ylabel("gain in held-out log p(x), nats per digit")
ax.minorticks_off()
ax.spines[["top", "right"]].set_visible(False)
ax.grid(color="#E4E4E4")
ax.legend(frameon=False)

z = torch.randn(49, 20, generator=torch.Generator().manual_seed(0))
for ax, (name, K) in zip(right.subplots(1, 2), (("VAE", 1), ("IWAE", 50)), strict=True):
    with torch.no_grad():
        lvm.plots.images(fits[name][K][0].decode(z).sigmoid(), (8, 8), ax=ax)
    ax.set_title(f"{name}, K={K}")
plt.show()

# %%
# .. [1] Y. Burda, R. Grosse and R. Salakhutdinov, "Importance weighted autoencoders" (2016).
