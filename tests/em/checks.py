"""What every fit by EM is held against: a path that rises, Pyro's own log-likelihood and its slope, textbook loops."""

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.poutine.messenger import Messenger
from scipy.special import logsumexp
from torch.distributions import transform_to

import pyro_lvm as lvm


def fit(model, *data, tol=1e-12, max_iter=2000, **options):
    return lvm.fit_em(model, *data, tol=tol, max_iter=max_iter, progress=False, **options)


def rules(result):
    """The rule of each parameter, as the summary tells it."""
    lines = [line.split(maxsplit=2) for line in result.summary().splitlines()]
    return {name: rule for kind, name, rule in lines if kind == "parameter"}


def assert_rises(result):
    path = result.objective
    slack = 1e-10 * path.abs().max()
    assert (path.diff() >= -slack).all(), path.diff().min()


class Held(Messenger):
    """Parameters and latent sites at given values."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def _pyro_param(self, msg):
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True

    def _pyro_sample(self, msg):
        if msg["name"] in self.values:
            msg["value"], msg["is_observed"], msg["done"] = self.values[msg["name"]], True, True


def no_guide(*args, **kwargs):
    pass


def pyros_log_density(model, params, *data):
    """The log-density with latents summed out by Pyro, and its slope along unconstrained values of ``params``."""
    with pyro.get_param_store().scope():
        nodes = poutine.trace(model).get_trace(*data).nodes
        there = {
            n: transform_to(
                nodes[n]["fn"].support if nodes[n]["type"] == "sample" else nodes[n]["kwargs"]["constraint"]
            )
            for n in params
        }
        leaves = {n: there[n].inv(v).detach().clone().requires_grad_() for n, v in params.items()}
        held = Held({n: there[n](leaf) for n, leaf in leaves.items()})
        frames = [f for node in nodes.values() if node["type"] == "sample" for f in node["cond_indep_stack"]]
        nesting = max((-f.dim for f in frames if f.vectorized), default=0)
        elbo = TraceEnum_ELBO(max_plate_nesting=nesting, strict_enumeration_warning=False)
        value = -elbo.differentiable_loss(held(config_enumerate(model, default="parallel")), no_guide, *data)
        slopes = torch.autograd.grad(value, list(leaves.values()))
    return value.detach(), dict(zip(leaves, slopes, strict=True))


def assert_at_the_top(result, model, *data, except_for=()):
    """The objective is Pyro's log-density, which is flat there: less than 1e-4 nats a row."""
    value, slopes = pyros_log_density(model, result.params, *data)
    torch.testing.assert_close(result.objective[-1], value, rtol=1e-9, atol=1e-9)
    for name, slope in slopes.items():
        if name not in except_for:
            assert slope.abs().max() < 1e-4 * len(data[0]), f"{name}: {slope}"


def assert_closed(result, **expected):
    """Every parameter follows a closed form, and that of some has this in its name."""
    assert "L-BFGS" not in result.summary(), result.summary()
    for name, words in expected.items():
        assert words in rules(result)[name], result.summary()


def posteriors(log_joint):
    """Of the states in the last dimension, and the log-density of each row."""
    log_p = logsumexp(log_joint, axis=-1)
    return np.exp(log_joint - log_p[..., None]), log_p


def textbook(log_density, maximum, params, num_iter, weight=None):
    """EM of a mixture in numpy.

    Args:
        log_density: Of each row in each component, ``[N, K]``, from parameters.
        maximum: The parameters of the components from responsibilities ``[N, K]``.
        params: Where it starts, the weights of the components among them.
        num_iter: Iterations.
        weight: Of each row.

    Returns:
        The parameters, and the log-likelihoods on the way.
    """
    path = []
    for i in range(num_iter + 1):
        resp, log_p = posteriors(np.log(params["weights"]) + log_density(params))
        weight = np.ones(len(log_p)) if weight is None else weight
        path.append(weight @ log_p)
        if i < num_iter:
            resp = resp * weight[:, None]
            params = {"weights": resp.sum(0) / resp.sum(), **maximum(resp)}
    return params, np.array(path)


def assert_same_path(result, params, path, rtol=1e-9):
    np.testing.assert_allclose(result.objective.numpy(), path, rtol=rtol)
    for name, value in params.items():
        np.testing.assert_allclose(
            result.params[name].numpy(), value, rtol=100 * rtol**0.75, atol=rtol**0.75, err_msg=name
        )


def as_numpy(params):
    return {name: value.detach().numpy().copy() for name, value in params.items()}
