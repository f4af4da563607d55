"""
Eight schools: a fit that looks fine and is not
===============================================

Eight schools coached their pupils for a test, and each reports an effect with a standard error (Rubin 1981). How much
do the effects differ? That is the standard deviation :math:`\\tau`, and it is just what a variational fit gets wrong:
the loss is flat, and the posterior of :math:`\\tau` is too narrow. ``diagnose`` says so.
"""

# %%
# Two ways to write the same model
# --------------------------------
# An effect is either drawn around the common mean, or is the mean plus a standard normal times :math:`\tau`. The model
# is the same. Its latents, for which a mean-field guide has independent normal distributions, are not.
import pyro
import pyro.distributions as dist
import torch

import pyro_lvm as lvm

effects = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
errors = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def centred(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def non_centred(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        standard = pyro.sample("standard", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * standard)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


num_steps = 2_000


def falling(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)


def fit(model, guide):
    elbo = lvm.elbo.Trace_ELBO(num_particles=8)
    options = {"num_steps": num_steps, "optim": 0.05, "scheduler": falling, "elbo": elbo}
    return lvm.fit(model, guide, effects, errors, progress=False, compile=False, **options)


# %%
# A centred model under a mean-field guide
# ----------------------------------------
# Where :math:`\tau` is small the effects must be close together, and where it is large they may be far apart.
# Independent normal distributions cannot say that.
report = lvm.diagnose(fit(centred, "mean_field"))
print(report)

# %%
# The other parametrisation
# -------------------------
# The same guide is much nearer now. What is left is the tail of :math:`\tau`, about which the report is in doubt.
report = lvm.diagnose(fit(non_centred, "mean_field"))
print(report)

# %%
# A richer guide, and its draws corrected
# ---------------------------------------
# A guide with correlations leaves a little less to be said about :math:`\tau`. Its k-hat allows to correct what is
# left: draws of the guide are resampled by importance weights.
result = fit(non_centred, "full_rank")
report = lvm.diagnose(result)
print(report)
for correct in (None, "psis"):
    tau = result.sample(4_000, correct=correct)["tau"]
    print(f"tau {'by the guide' if correct is None else 'corrected'}: {tau.mean():.2f} +- {tau.std():.2f}")

# %%
# Below is the page that ``report.plot()`` draws. ``report.to_html("report.html")`` writes the same with all findings
# for a browser.
figure = report.plot()
