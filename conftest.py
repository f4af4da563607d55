"""Every test is seeded, and none may leave a trace in the global state of torch or Pyro."""

import sys

import pyro
import pytest
import torch


def global_state():
    """What a test must leave as it found it."""
    return {
        "default dtype": torch.get_default_dtype(),
        "thread count": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "Pyro settings": pyro.settings.get(),
        "param store": {name: value.detach().clone() for name, value in pyro.get_param_store().items()},
    }


@pytest.fixture(autouse=True)
def _seeded_and_clean():
    torch.manual_seed(0)
    before = global_state()
    yield
    after = global_state()
    stores = before.pop("param store"), after.pop("param store")
    # The next test starts clean even where this one fails.
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
    pyro.clear_param_store()
    torch.set_default_dtype(before["default dtype"])
    torch.set_num_threads(before["thread count"])
    torch.set_grad_enabled(before["gradients"])
    pyro.settings.set(**before["Pyro settings"])

    assert after == before
    assert stores[0].keys() == stores[1].keys()
    for name, value in stores[0].items():
        torch.testing.assert_close(stores[1][name], value, rtol=0, atol=0, equal_nan=True)
