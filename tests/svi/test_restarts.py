"""Several fits in one call."""

import functools
import os
import signal

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyro_lvm as lvm
from pyro_lvm.interrupts import interrupts
from pyro_lvm.svi.restarts import best_of


def two_modes():
    """The mode at 4 has nine tenths of the mass."""
    x = pyro.sample("x", dist.Normal(0.0, 4.0))
    parts = dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.1, 0.9])), dist.Normal(torch.tensor([-4.0, 4.0]), 1.0)
    )
    pyro.factor("p", parts.log_prob(x) - dist.Normal(0.0, 4.0).log_prob(x))


def quick(model, guide, *data, **options):
    return lvm.fit(model, guide, *data, progress=False, **{"num_steps": 300, "optim": 0.05, **options})


def test_the_best_is_kept_and_the_spread_is_told():
    result = quick(two_modes, "mean_field", num_restarts=6, seed=3)
    assert result.restarts.shape == (6,)
    assert -result.final_loss == result.restarts.max()
    assert result.sample(1_000)["x"].mean().item() == pytest.approx(4.0, abs=0.3)
    assert result.restarts.max() - result.restarts.min() > 1.5  # log 9, and noise: a start came to the other mode
    single = quick(two_modes, "mean_field", seed=result.seed, num_restarts=1)
    assert single.restarts.tolist() == [-single.final_loss]


def test_the_first_is_the_fit_without_restarts():
    first = quick(two_modes, "mean_field", num_restarts=3).restarts[0]
    assert first == quick(two_modes, "mean_field").restarts[0]


def test_modules_start_each_fit_where_they_are_and_end_at_the_best():
    y = torch.tensor([1.0, 3.0])

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.tensor(0.0))

        def forward(self, y):
            with pyro.plate("rows", len(y)):
                pyro.sample("y", dist.Normal(self.loc, 1.0), obs=y)

    model = Model()
    result = quick(model, None, y, num_restarts=3, num_steps=20)
    assert result.restarts.eq(result.restarts[0]).all()  # nothing is random
    assert 0 < model.loc.item() < 2
    assert model.loc.item() == result.params["loc"].item()


def clusters():
    generator = torch.Generator().manual_seed(0)
    return torch.cat([torch.randn(30, 2, generator=generator) + 8 * i for i in range(3)])


def test_models_start_each_fit_from_the_data():
    """Three clear clusters, which the model's own start finds: each fit does what a fit alone with its seed does."""
    x, model = clusters(), lvm.models.GaussianMixture(3, 2)
    result = quick(model, None, x, num_restarts=3, num_steps=100)
    alone = [
        quick(lvm.models.GaussianMixture(3, 2), None, x, num_steps=100, seed=seed).restarts.item() for seed in range(3)
    ]
    assert result.restarts.tolist() == alone
    assert model.initialized
    assert torch.equal(model.weights, result.params["weights"])


@pytest.mark.parametrize("kind", [AutoNormal, lvm.guides.FlowGuide])
def test_guides_of_ones_own_start_each_fit_where_the_first_did(kind):
    def model():
        pyro.sample("x", dist.Normal(20.0, 1.0))

    guide = kind(model)
    result = quick(model, guide, num_restarts=3, num_steps=20)
    alone = [quick(model, kind(model), num_steps=20, seed=seed).restarts.item() for seed in range(3)]
    assert result.restarts.tolist() == alone


def test_modules_are_left_at_the_best_which_is_not_the_last():
    guide = AutoNormal(two_modes)
    result = quick(two_modes, guide, num_restarts=3, num_steps=20)
    assert result.restarts.argmax() != 2
    for name, value in result.params.items():
        held = functools.reduce(getattr, name.removeprefix("AutoNormal.").split("."), guide)
        assert torch.equal(held, value)


def test_lazy_modules_start_each_fit_as_they_are():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.LazyLinear(1)

        def forward(self, x):
            pyro.sample("y", dist.Normal(self.net(x), 1.0).to_event(2), obs=torch.zeros(4, 1))

    result = quick(Model(), None, torch.ones(4, 2), num_restarts=3, num_steps=5)
    alone = [quick(Model(), None, torch.ones(4, 2), num_steps=5, seed=seed).restarts.item() for seed in range(3)]
    assert result.restarts.tolist() == alone


def test_a_guide_is_as_it_was_after_an_error():
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))

    def fail(state):
        raise LookupError

    guide = AutoNormal(model)
    with pytest.raises(LookupError):
        quick(model, guide, num_restarts=2, callbacks=[fail])
    assert list(guide.parameters()) == []
    assert guide.prototype_trace is None


def test_what_a_later_fit_raises_is_passed_over():
    def fit(seed, init_loc_fn):
        if seed != good:
            raise torch.linalg.LinAlgError("no Cholesky factor")
        return quick(two_modes, "mean_field", num_steps=10, seed=seed)

    good = 0
    assert best_of(3, two_modes, "mean_field", fit, 0).restarts.isfinite().tolist() == [True, False, False]
    good = 1
    with pytest.raises(torch.linalg.LinAlgError):  # which may be an argument's fault
        best_of(3, two_modes, "mean_field", fit, 0)


def test_an_interrupt_leaves_out_the_rest():
    def press(state):
        os.kill(os.getpid(), signal.SIGINT)

    result = quick(two_modes, "mean_field", num_restarts=4, callbacks=[press])
    assert len(result.restarts) == 1
    assert result.num_steps < 300
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_within_another_is_told_and_a_second_ctrl_c_acts_at_once():
    def press():
        os.kill(os.getpid(), signal.SIGINT)

    with interrupts() as outer:
        with interrupts() as inner:
            assert not inner()
            press()
            assert inner()
        assert outer()
        with interrupts() as next_one:
            assert next_one()
            with pytest.raises(KeyboardInterrupt):
                press()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with interrupts() as outer:
        with interrupts():
            pass
        press()
        assert outer()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_fit_that_fails_counts_for_nothing():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("half", torch.where(x > 3, torch.nan, 0.0))

    result = quick(model, "mean_field", num_restarts=4, num_steps=50)
    assert result.restarts.max() > -torch.inf


def test_all_that_fail_raise():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("never", (0 * x).abs().sqrt())  # whose slope is not finite

    with pytest.raises(lvm.NonFiniteError):
        quick(model, "mean_field", num_restarts=2)


def test_a_saved_fit_keeps_them(tmp_path):
    result = quick(two_modes, "mean_field", num_restarts=2)
    result.save(tmp_path / "fit.pt")
    assert torch.equal(lvm.load(tmp_path / "fit.pt", two_modes, "mean_field").restarts, result.restarts)


def test_a_checkpoint_keeps_one_fit(tmp_path):
    with pytest.raises(ValueError, match="checkpoint= keeps one fit"):
        quick(two_modes, "mean_field", num_restarts=2, checkpoint=tmp_path / "c.pt")


@pytest.mark.parametrize("number", [0, -1, 1.5])
def test_a_number_of_restarts_is_a_count(number):
    with pytest.raises((ValueError, TypeError), match="num_restarts"):
        quick(two_modes, "mean_field", num_restarts=number)


def test_seeds_end_where_torch_ends_them():
    with pytest.raises(ValueError, match="seed"):
        quick(two_modes, "mean_field", num_restarts=2, seed=2**64 - 1)
