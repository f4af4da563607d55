"""The problems in torch alone: each negative ELBO written by hand, and a plain loop around Adam.

Constants that a normal prior and a normal guide have in common cancel and are left out; all others are kept, so that
the ELBO compares with that of the libraries.
"""

import math

import numpy as np
import torch
from torch.nn import functional as F

from svi_models.problems import Row, load

RATE = 1e-3
_LOG_2PI = math.log(2 * math.pi)
_START_RHO = math.log(math.expm1(0.1))  # softplus gives 0.1


def mean_field(num_latents):
    """Parameters of a mean-field guide, and a draw with its log q, less the constants of standard normals."""
    loc, rho = torch.zeros(num_latents), torch.full((num_latents,), _START_RHO)

    def draw():
        scale, noise = F.softplus(rho), torch.randn(num_latents)
        return loc + scale * noise, -0.5 * noise.dot(noise) - scale.log().sum()

    return [loc, rho], draw


def full_rank(num_latents):
    loc, rho = torch.zeros(num_latents), torch.full((num_latents,), _START_RHO)
    below, eye = torch.zeros(num_latents, num_latents), torch.eye(num_latents)

    def draw():
        scale, noise = F.softplus(rho), torch.randn(num_latents)
        draw = loc + scale * torch.mv(below.tril(-1) + eye, noise)
        return draw, -0.5 * noise.dot(noise) - scale.log().sum()

    return [loc, rho, below], draw


def inverse_autoregressive_flow(num_latents):
    hidden = 3 * num_latents + 1
    first, second = torch.nn.Linear(num_latents, hidden), torch.nn.Linear(hidden, 2 * num_latents)
    of_inputs, of_hidden = torch.arange(1, num_latents + 1), torch.linspace(1, num_latents - 1, hidden).round()
    of_outputs = of_inputs.repeat(2)
    first_mask = (of_hidden[:, None] >= of_inputs).float()
    second_mask = (of_outputs[:, None] > of_hidden).float()

    def draw():
        noise = torch.randn(num_latents)
        h = F.linear(noise, first.weight * first_mask, first.bias).relu()
        loc, log_scale = F.linear(h, second.weight * second_mask, second.bias).chunk(2)
        log_scale = log_scale + (log_scale.clamp(-5, 3) - log_scale).detach()
        return loc + log_scale.exp() * noise, -0.5 * noise.dot(noise) - log_scale.sum()

    return [*first.parameters(), *second.parameters()], draw


def logistic_regression(guide):
    def build(start, num_rows):
        params, draw = guide(31)

        def loss(X, y):
            theta, log_q = draw()
            logits = X @ theta[:30] + theta[30]
            return log_q + 0.5 * theta.dot(theta) + F.binary_cross_entropy_with_logits(logits, y, reduction="sum")

        return params, loss

    return build


def eight_schools(start, num_rows):
    params, draw = mean_field(10)

    def loss(y, sigma):
        theta, log_q = draw()
        mu, log_tau, raw = theta[0], theta[1], theta[2:]
        tau = log_tau.exp()
        log_p = -0.5 * (mu / 5).square() - math.log(5) - 0.5 * raw.dot(raw)
        # a standard normal has log q's missing constant; the half-Cauchy has none to cancel it
        log_p = log_p + math.log(2 / (5 * math.pi)) - (tau / 5).square().log1p() + log_tau + 0.5 * _LOG_2PI
        errors = (y - mu - tau * raw) / sigma
        return log_q - log_p + 0.5 * errors.dot(errors) + (sigma.log() + 0.5 * _LOG_2PI).sum()

    return params, loss


def mixture(start, num_rows):
    K = len(start["weights"])
    sticks, locs, log_scales = torch.zeros(K - 1), start["locs"], start["scales"].log()
    offsets = torch.arange(K - 1, 0, -1).log()  # weights start equal

    def loss(x):
        logits = sticks - offsets
        rest = F.logsigmoid(-logits).cumsum(0)
        log_weights = F.pad(F.logsigmoid(logits), (0, 1)) + F.pad(rest, (1, 0))
        z = (x[:, None] - locs) * (-log_scales).exp()
        log_p = -0.5 * z.square().sum(-1) - log_scales.sum(-1) + log_weights
        return 0.5 * _LOG_2PI * x.numel() - log_p.logsumexp(1).sum()

    return [sticks, locs, log_scales], loss


def hierarchical_regression(start, num_rows):
    params, draw = mean_field(175)

    def loss(group, floor, y):
        theta, log_q = draw()
        mu_a, mu_b, log_sigmas, a, b = theta[0], theta[1], theta[2:5], theta[5:90], theta[90:]
        sigmas = log_sigmas.exp()
        log_p = -0.005 * (mu_a.square() + mu_b.square()) - 2 * math.log(10)
        log_p = log_p + 3 * math.log(2) - 0.5 * sigmas.dot(sigmas) + log_sigmas.sum()
        z_a, z_b = (a - mu_a) / sigmas[0], (b - mu_b) / sigmas[1]
        log_p = log_p - 0.5 * (z_a.dot(z_a) + z_b.dot(z_b)) - 85 * (log_sigmas[0] + log_sigmas[1])
        errors = (y - a[group] - b[group] * floor) / sigmas[2]
        return log_q - log_p + 0.5 * errors.dot(errors) + len(y) * (log_sigmas[2] + 0.5 * _LOG_2PI)

    return params, loss


def vae(start, num_rows):
    params = {name: value.mT.contiguous() if value.dim() == 2 else value for name, value in start.items()}

    def network(name, x):
        h = F.linear(x, params[f"{name}.0.weight"], params[f"{name}.0.bias"]).relu()
        return F.linear(h, params[f"{name}.1.weight"], params[f"{name}.1.bias"])

    def loss(x):
        loc, log_scale = network("encoder", x).chunk(2, -1)
        noise = torch.randn_like(loc)
        z = loc + log_scale.exp() * noise
        log_ratio = 0.5 * (z.square() - noise.square()).sum() - log_scale.sum()
        likelihood = F.binary_cross_entropy_with_logits(network("decoder", z), x, reduction="sum")
        return num_rows / len(x) * (log_ratio + likelihood)

    return list(params.values()), loss


PROBLEMS = {
    "a": logistic_regression(mean_field),
    "b": logistic_regression(full_rank),
    "c": logistic_regression(inverse_autoregressive_flow),
    "d": eight_schools,
    "e": mixture,
    "f": mixture,
    "g": hierarchical_regression,
    "h": vae,
    "i": vae,
}


def batches(data, batch_size):
    while True:
        order = torch.randperm(len(data[0]))
        for first in range(0, len(order), batch_size):
            yield [d[order[first : first + batch_size]] for d in data]


def run_torch(row: Row, steps, every=None, between=None):
    torch.manual_seed(0)
    data, start = load(row)
    data = [torch.as_tensor(d) for d in data.values()]
    params, loss_fn = PROBLEMS[row.key]({name: torch.as_tensor(v) for name, v in start.items()}, len(data[0]))
    for p in params:
        p.requires_grad_()
    optimizer = torch.optim.Adam(params, lr=RATE, fused=True)
    source = None if row.batch_size is None else batches(data, row.batch_size)
    losses = []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = loss_fn(*(data if source is None else next(source)))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if between is not None and step % every == 0 and between():
            break
    return np.array(losses)
