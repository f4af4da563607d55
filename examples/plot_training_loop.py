"""
Your own training loop
======================

``fit`` is a loop around :class:`pyro_lvm.Objective`, a pure function of a dict of parameters and a batch. Whoever
wants another optimizer, another schedule or another framework takes the objective alone. A plain torch loop is six
lines.
"""

import math
import time

import numpy as np
import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits

import pyro_lvm as lvm

x = torch.tensor(load_digits().data, dtype=torch.float32)
N, D, L = *x.shape, 10
print(f"{N} images of {D} pixels, {L} latents")

# %%
# Six lines
# ---------
#
# ``init`` runs model and guide once and returns their starting values, unconstrained, as leaf tensors. They are the
# caller's own: nothing is hidden in a global store.

ppca = lvm.models.PPCA(L, D).initialize(x)
objective = lvm.Objective(ppca)
params = objective.init(x)
print({name: list(value.shape) for name, value in params.items()})

batches = torch.utils.data.DataLoader(x, batch_size=256, shuffle=True, generator=torch.Generator().manual_seed(0))
optimizer = torch.optim.Adam(params.values(), lr=0.01)
for batch in batches:
    optimizer.zero_grad()
    objective(params, batch, num_rows=N).backward()
    optimizer.step()

# %%
# A race
# ------
#
# The guide of PPCA is its exact posterior, so that the loss has no noise. Then methods for smooth functions apply,
# such as L-BFGS, which would fail on a noisy loss. The maximum is known in closed form.

eigenvalues = np.linalg.eigvalsh(np.cov(x.double().numpy().T, bias=True))[::-1]
noise = eigenvalues[L:].mean()
maximum = -N / 2 * (D * math.log(2 * math.pi) + np.log(eigenvalues[:L]).sum() + (D - L) * math.log(noise) + D)


def race(make_optimizer, num_gradients):
    params = objective.init(x)
    optimizer, losses, began = make_optimizer(params.values()), [], time.perf_counter()

    def closure():
        optimizer.zero_grad()
        loss = objective(params, x)
        loss.backward()
        losses.append(loss.item())
        return loss

    while len(losses) < num_gradients:
        optimizer.step(closure)
    print(f"best ELBO {-min(losses):.1f} nats after {len(losses)} gradients, {time.perf_counter() - began:.1f} s")
    return np.array(losses)


print(f"closed-form maximum {maximum:.1f} nats")
runs = {
    "SGD with momentum": race(lambda p: torch.optim.SGD(p, lr=2e-6, momentum=0.9), 600),
    "Adam": race(lambda p: torch.optim.Adam(p, lr=0.03), 600),
    "L-BFGS": race(lambda p: torch.optim.LBFGS(p, line_search_fn="strong_wolfe", max_iter=20), 600),
}

# %%
figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for k, (name, losses) in enumerate(runs.items()):
    gap = np.minimum.accumulate(losses) + maximum
    ax.semilogy(gap / N, label=name, color=lvm.plots.COLORS[k], linewidth=1.8)
ax.set(xlabel="gradients", ylabel="best ELBO below the maximum\n(nats per image)", ylim=(1e-5, None))
ax.spines[["top", "right"]].set_visible(False)
ax.grid(color="#E4E4E4")
ax.legend(frameon=False)
plt.show()
