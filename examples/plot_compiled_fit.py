"""
The same fit, compiled
======================

A hierarchical regression on 442 patients with diabetes is fitted in three ways: by Pyro's own ``SVI``, by
``lvm.fit(compile=True)``, which runs its steps as one compiled program, and by NumPyro, which compiles them by JAX.
Model, guide, optimizer and number of steps are the same, and so is the posterior. The time is not.
"""

import time

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator
from pyro.infer.autoguide import AutoMultivariateNormal
from sklearn.datasets import load_diabetes

import pyro_lvm as lvm

threads = torch.get_num_threads()
torch.set_num_threads(1)  # Pyro's loop, too, is fastest on one, with tensors as small as these

# %%
# Twelve groups
# -------------
#
# The patients are grouped by decade of age and by sex, whose two codes the data do not explain. Some groups have sixty
# patients, others hardly any.

data = load_diabetes(scaled=False)
age, sex, measurements = data.data[:, 0], data.data[:, 1], data.data[:, 2:]
group = (np.clip(age // 10, 2, 7) - 2 + 6 * (sex == 2)).astype(int)
sizes = np.bincount(group)
names = [f"{10 * k} to {10 * k + 9}, sex {s}" for s in (1, 2) for k in range(2, 8)]
print(", ".join(f"{name}: {size}" for name, size in zip(names, sizes, strict=True)))

X = ((measurements - measurements.mean(0)) / measurements.std(0)).astype("float32")
loc, scale = data.target.mean(), data.target.std()
y = ((data.target - loc) / scale).astype("float32")

# %%
# The model predicts the progress of the disease from eight measurements and from the group. The effects of the groups
# have a spread in common, which is learnt from all of them: a small group borrows from the others. They are not
# centred: an effect is ``spread`` times a standard normal number, which suits a normal guide better.
#
# Pyro and NumPyro speak the same language, so that one function can make the model for either.


def make_model(language, dist):
    def model(group, X, y):
        mean = language.sample("mean", dist.Normal(0.0, 1.0))
        spread = language.sample("spread", dist.HalfNormal(0.5))
        weights = language.sample("weights", dist.Normal(0.0, 1.0).expand([8]).to_event(1))
        noise = language.sample("noise", dist.HalfNormal(1.0))
        with language.plate("groups", 12):
            offset = language.sample("offset", dist.Normal(0.0, 1.0))
        with language.plate("rows", len(y)):
            language.sample("y", dist.Normal(mean + spread * offset[group] + X @ weights, noise), obs=y)

    return model


def effects(spread, offset):
    """How far each group lies from the average, in units of the response, ``[S, 12]``."""
    return scale * np.asarray(spread).reshape(-1, 1) * np.asarray(offset).reshape(-1, 12)


NUM_STEPS, EVERY, RATE = 8_000, 100, 2e-3
model = make_model(pyro, dist)
tensors = torch.tensor(group), torch.tensor(X), torch.tensor(y)
losses, clocks, draws = {}, {}, {}  # of each step; seconds after every hundred steps; of the effects

# %%
# Pyro
# ----
#
# The loop of Pyro's own tutorials.

pyro.clear_param_store()
pyro.set_rng_seed(0)
began, clock = time.perf_counter(), []
guide = AutoMultivariateNormal(model)
svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": RATE}), pyro.infer.Trace_ELBO())
found = []
for step in range(NUM_STEPS):
    found.append(svi.step(*tensors))
    if (step + 1) % EVERY == 0:
        clock.append(time.perf_counter() - began)

losses["Pyro"], clocks["Pyro"] = np.array(found), np.array(clock)
posterior = pyro.infer.Predictive(guide, num_samples=2_000)(*tensors)
draws["Pyro"] = effects(posterior["spread"], posterior["offset"])
pyro.clear_param_store()

# %%
# pyro_lvm, compiled
# ------------------
#
# The model stays as it is. A callback looks at the clock after every hundred steps; the first hundred wait for the
# compiler. ``compile=True`` makes it an error if the steps cannot be compiled, where "auto" would go on without.

began, clock = time.perf_counter(), []
result = lvm.fit(
    model,
    AutoMultivariateNormal(model),
    *tensors,
    num_steps=NUM_STEPS,
    optim=RATE,
    compile=True,
    callbacks=[lambda state: clock.append(time.perf_counter() - began)],
    every=EVERY,
    progress=False,
)
print(f"compiled: {result.compiled}")

losses["pyro_lvm, compiled"], clocks["pyro_lvm, compiled"] = result.losses.numpy(), np.array(clock)
posterior = result.sample(2_000)
draws["pyro_lvm, compiled"] = effects(posterior["spread"], posterior["offset"])

# %%
# NumPyro
# -------
#
# Here the user writes what is compiled: a scan over a hundred steps. Where NumPyro is not installed, the pictures show
# the other two.

try:
    import jax
    import numpyro
    from numpyro.infer.autoguide import AutoMultivariateNormal as GuideInJax
except ImportError:
    print("NumPyro is not installed")
else:
    began, clock = time.perf_counter(), []
    arrays = [jax.numpy.asarray(a) for a in (group, X, y)]
    in_jax = make_model(numpyro, numpyro.distributions)
    guide = GuideInJax(in_jax)
    svi = numpyro.infer.SVI(in_jax, guide, numpyro.optim.Adam(RATE), numpyro.infer.Trace_ELBO())
    state = svi.init(jax.random.key(0), *arrays)

    @jax.jit
    def steps(state):
        return jax.lax.scan(lambda state, _: svi.update(state, *arrays), state, length=EVERY)

    found = []
    for _ in range(NUM_STEPS // EVERY):
        state, some = jax.block_until_ready(steps(state))
        found.append(np.asarray(some))
        clock.append(time.perf_counter() - began)

    losses["NumPyro"], clocks["NumPyro"] = np.concatenate(found), np.array(clock)
    posterior = guide.sample_posterior(jax.random.key(1), svi.get_params(state), sample_shape=(2_000,))
    draws["NumPyro"] = effects(posterior["spread"], posterior["offset"])

torch.set_num_threads(threads)

# %%
# What it took
# ------------
#
# Nothing comes out of a compiled fit before the compiler is done. From then on a step takes microseconds, and thousands
# of them are over before they can be watched. A short fit is therefore better left to the eager loop, as
# ``compile="auto"`` does, the default. torch keeps what it has compiled: when this script runs a second time, the first
# steps of ``lvm.fit`` come sooner. On a machine where torch has never compiled anything they come later, since it first
# tries what the processor can do.

print(f"{'':20}{'first 100 steps, s':>20}{'later ones, µs each':>21}{'all steps, s':>14}{'ELBO, nats':>12}")
for name, clock in clocks.items():
    later = 1e6 * (clock[-1] - clock[0]) / (NUM_STEPS - EVERY)
    print(f"{name:20}{clock[0]:>20.2f}{later:>21.1f}{clock[-1]:>14.2f}{-losses[name][-1000:].mean():>12.1f}")

# %%
# On the left, the ELBO against the time since the fit began: means of a hundred steps each, on a logarithmic axis. A
# bar at the bottom is the time of the compiler, the first hundred steps included, and ends at the dot. Pyro climbs from
# the start, step by step. The compiled fits wait, and then go up a cliff.
#
# On the right, what was learnt: the effect of each group, with the number of its patients. All fits find the same
# intervals, up to the noise of the last steps and of the draws. The smallest groups have the widest, and would have
# wider ones still if they were on their own.

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained", width_ratios=(1.1, 1))
bottom, top = -700, -490
for k, (name, clock) in enumerate(clocks.items()):
    color = lvm.plots.COLORS[k]
    elbo = -losses[name].reshape(-1, EVERY).mean(1)
    left.plot(clock, elbo, color=color, linewidth=2, label=f"{name}, {clock[-1]:.1f} s")
    if name != "Pyro":
        height = bottom + 13 * k
        left.hlines(height, clocks["Pyro"][0], clock[0], color=color, linewidth=2, linestyle=(0, (1, 1)))
        left.plot(clock[0], height, "o", color=color, markersize=6)
        left.annotate("compiling", (clocks["Pyro"][0], height), (2, 3), textcoords="offset points", color=color)
left.set_xscale("log")
left.set(ylim=(bottom, top), xlabel="seconds since the fit began", ylabel="ELBO (nats)", title="the fits")
left.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_formatter="")
left.spines[["top", "right"]].set_visible(False)
left.grid(color="#E4E4E4")
figure.legend(frameon=False, ncols=3, loc="outside upper center", title=f"{NUM_STEPS:,} steps", title_fontsize="medium")
lvm.plots.intervals(draws, [f"{name} ({size})" for name, size in zip(names, sizes, strict=True)], ax=right)
right.get_legend().remove()
right.set(xlabel="effect on the response: posterior mean and 90% interval", title="the effects of the groups")
plt.show()
