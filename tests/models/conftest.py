"""Models are tested in a private param store, and as plain Pyro modules."""

import pyro
import pytest
import torch
from pyro import poutine
from torch import nn


@pytest.fixture(autouse=True)
def _private_store():
    with pyro.get_param_store().scope():
        yield


@pytest.fixture(params=[False, True], ids=["global_params", "local_params"])
def param_setting(request):
    """Both of Pyro's ways to keep the parameters of modules."""
    with pyro.settings.context(module_local_params=request.param):
        yield request.param


class LogJoint(nn.Module):
    """The log-joint density of a model at given latents, as a module to use with functional_call."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, latents, *data):
        with pyro.get_param_store().scope():
            conditioned = poutine.condition(self.model, data=latents)
            return poutine.trace(conditioned).get_trace(*data).log_prob_sum()


@pytest.fixture
def log_joint():
    return LogJoint


@pytest.fixture
def check_transforms():
    """Maps the log-joint over draws of latents and parameters, and traces it, both against plain calls."""

    def check(model, latents, *data):
        from torch.fx.experimental.proxy_tensor import make_fx

        joint = LogJoint(model)
        num_draws = len(next(iter(latents.values())))
        params = {
            name: value.detach() + 0.1 * torch.randn(num_draws, *value.shape, dtype=value.dtype)
            for name, value in joint.named_parameters()
        }

        def density(params, latents):
            return torch.func.functional_call(joint, params, (latents, *data))

        with pyro.validation_enabled(False):
            mapped = torch.func.vmap(density)(params, latents)
            for s in range(num_draws):
                one = [{name: value[s] for name, value in dict_.items()} for dict_ in (params, latents)]
                torch.testing.assert_close(mapped[s], density(*one))
                torch.testing.assert_close(make_fx(density)(*one)(*one), mapped[s])
        assert mapped.unique().numel() == num_draws

    return check
