"""What cannot be fitted by EM is refused, with what was given and what to do."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import pyro_lvm as lvm


def model(x):
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    rate = pyro.param("rate", torch.tensor([1.0, 6.0]), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Poisson(rate[z]), obs=x)


def counts():
    return torch.poisson(torch.tensor([2.0, 9.0]).repeat(20))


REFUSED = {
    "tol below zero": (ValueError, "tol", {"tol": -1e-6}),
    "tol not a number": (ValueError, "tol", {"tol": float("nan")}),
    "tol in words": ((TypeError, ValueError), "tol", {"tol": "small"}),
    "tol true": ((TypeError, ValueError), "tol", {"tol": True}),
    "e_step": (ValueError, "e_step", {"e_step": "soft"}),
    "m_step": (ValueError, "m_step", {"m_step": "lbfgs"}),
    "guide a class": (TypeError, "guide", {"guide": dist.Normal}),
    "guide unknown": (ValueError, "unknown guide", {"guide": "wide"}),
    "num_rows of tensors": (ValueError, "num_rows", {"num_rows": 40}),
    "num_rows not whole": (TypeError, "num_rows", {"num_rows": 4.5}),
    "checkpoint nowhere": (ValueError, "does not exist", {"checkpoint": "/no/c"}),
    "checkpoint a kind": (TypeError, "checkpoint", {"checkpoint": True}),
    "device": (ValueError, "device", {"device": "abacus"}),
    "online with a guide": (ValueError, "online", {"online": 0.7, "batch_size": 5, "guide": "mean_field"}),
    "max_iter zero": (ValueError, "max_iter", {"max_iter": 0}),
    "max_iter not whole": (TypeError, "max_iter", {"max_iter": 2.5}),
    "max_iter true": (TypeError, "max_iter", {"max_iter": True}),
    "num_restarts zero": (ValueError, "num_restarts", {"num_restarts": 0}),
    "missing of a model that cannot": (ValueError, "missing", {"missing": True}),
    "callbacks no list": (TypeError, "callbacks", {"callbacks": print}),
    "callbacks no functions": (TypeError, "callbacks", {"callbacks": [1]}),
    "progress no bool": (TypeError, "progress", {"progress": "yes"}),
    "batch_size zero": (ValueError, "batch_size", {"batch_size": 0}),
    "batch_size not whole": (TypeError, "batch_size", {"batch_size": 1.5}),
    "seed below zero": (ValueError, "seed", {"seed": -1}),
    "seed in words": (TypeError, "seed", {"seed": "one"}),
    "latents as a word": (TypeError, "latents", {"latents": "z"}),
    "latents unknown": (ValueError, "no latent site", {"latents": ["w"]}),
    "latents observed": (ValueError, "no latent site", {"latents": ["x"]}),
    "weights too few": (ValueError, "sample_weight", {"sample_weight": torch.ones(3)}),
    "weights negative": (ValueError, "sample_weight", {"sample_weight": -torch.ones(40)}),
    "weights all zero": (ValueError, "sample_weight", {"sample_weight": torch.zeros(40)}),
    "weights not finite": (ValueError, "sample_weight", {"sample_weight": torch.full((40,), torch.nan)}),
    "init unknown": (ValueError, "init", {"init": {"scale": 1.0}}),
    "init of another shape": (ValueError, "shape", {"init": {"rate": [1.0, 2.0, 3.0]}}),
    "init outside": (ValueError, "constraint", {"init": {"rate": [-1.0, 2.0]}}),
    "init not a dict": (TypeError, "init", {"init": 3}),
    "plate unknown": (ValueError, "plate", {"plate": "columns"}),
    "plate no name": (TypeError, "plate", {"plate": 1}),
    "rows out of range": (ValueError, "rows", {"rows": [2]}),
    "kwargs no dict": (TypeError, "model_kwargs", {"model_kwargs": [1]}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_argument_is_refused(name):
    error, words, options = REFUSED[name]
    with pytest.raises(error, match=words):
        lvm.fit_em(model, counts(), **({"progress": False} | options))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_data_that_are_not_finite_are_refused(bad):
    x = counts()
    x[3] = bad
    with pytest.raises(ValueError, match=r"not finite.*row 3"):
        lvm.fit_em(model, x, progress=False)


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="no rows"):
        lvm.fit_em(model, torch.zeros(0), progress=False)


def test_text_is_refused():
    with pytest.raises(TypeError, match="no number"):
        lvm.fit_em(model, np.array(["a", "b"]), progress=False)


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="model"):
        lvm.fit_em(3, counts(), progress=False)


def test_data_of_another_precision_are_refused():
    with pytest.raises(ValueError, match="dtype"):
        lvm.fit_em(model, counts().float(), progress=False)


def test_continuous_latent_of_the_rows_is_refused():
    def factor(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("rows", len(x)):
            u = pyro.sample("u", dist.StudentT(4.0, loc, 1.0))
            pyro.sample("x", dist.Normal(u, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"'u'.*not quadratic.*pass guide="):
        lvm.fit_em(factor, torch.randn(10), progress=False)


def test_continuous_site_that_is_named_a_latent_is_refused():
    def bayesian(x):
        rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Poisson(rate), obs=x)

    with pytest.raises(ValueError, match="'rate'"):
        lvm.fit_em(bayesian, counts(), latents=["rate"], progress=False)


def test_latent_with_an_infinite_support_is_refused():
    def thinned(x):
        rate = pyro.param("rate", torch.tensor(3.0), constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            n = pyro.sample("n", dist.Poisson(rate))
            pyro.sample("x", dist.Normal(n, 1.0), obs=x)

    with pytest.raises(ValueError, match="'n'"):
        lvm.fit_em(thinned, torch.randn(10), progress=False)


@pytest.mark.parametrize("option", [{"sample_weight": torch.ones(40)}, {"rows": [0]}], ids=["weights", "rows"])
def test_what_a_loader_makes_itself_is_refused(option):
    loader = DataLoader(TensorDataset(counts()), batch_size=10)
    with pytest.raises(ValueError, match="cannot be given with a DataLoader"):
        lvm.fit_em(model, loader, progress=False, **option)


def test_loader_without_a_length_needs_the_number_of_rows():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(counts())

    torch.manual_seed(0)
    loader = DataLoader(Stream(), batch_size=10)
    with pytest.raises(ValueError, match="pass num_rows="):
        lvm.fit_em(model, loader, progress=False)


def test_loader_without_a_length_with_its_number_of_rows():
    x = counts()

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(x)

    whole = lvm.fit_em(model, x, progress=False)
    found = lvm.fit_em(model, DataLoader(Stream(), batch_size=10), num_rows=40, progress=False)
    torch.testing.assert_close(found.params, whole.params)


def test_batches_of_a_model_without_a_row_plate_are_refused():
    def plateless(x):
        rate = pyro.param("rate", torch.tensor(3.0), constraint=constraints.positive)
        pyro.sample("x", dist.Poisson(rate.expand(len(x))).to_event(1), obs=x)

    with pytest.raises(ValueError, match="plate"):
        lvm.fit_em(plateless, counts(), batch_size=5, progress=False)


class Noisy(PyroModule):
    """A model whose observations change from run to run."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise
        self.loc = PyroParam(torch.tensor([0.0, 2.0]), constraint=constraints.real)

    def forward(self, x):
        loc = self.loc
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x + self.noise * torch.randn(len(x)))


@pytest.mark.parametrize("noise", [0.01, 3.0])
def test_model_that_draws_random_numbers_is_told_and_its_module_left_as_it_was(noise):
    x, module = torch.randn(100), Noisy(noise)
    with pytest.raises(lvm.NotMonotoneError, match="random numbers") as caught:
        lvm.fit_em(module, x, tol=0, max_iter=500, progress=False)
    assert caught.value.iteration >= 1
    assert module.loc.tolist() == [0.0, 2.0]


def test_interrupted_callback_leaves_the_module_as_it_was():
    x, module = torch.randn(100), Noisy(0.0)

    def fail(state):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        lvm.fit_em(module, x, callbacks=[fail], progress=False)
    assert module.loc.tolist() == [0.0, 2.0]


def test_a_model_without_parameters_is_refused():
    def fixed(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Poisson(3.0), obs=x)

    with pytest.raises(ValueError, match="no parameters to fit"):
        lvm.fit_em(fixed, counts(), progress=False)
