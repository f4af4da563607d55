"""Draws made at once mean what a loop means: the same distribution, and noise of its own for every draw."""

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch

from pyro_lvm.vectorize import repeat

S = 4_000
COVARIANCE = torch.tensor([[2.0, 0.6], [0.6, 1.0]])

DISTRIBUTIONS = {
    "Normal": (lambda: dist.Normal(torch.tensor([0.0, 1.0]), 2.0), True),
    "LogNormal": (lambda: dist.LogNormal(torch.zeros(2), 0.3), True),
    "Uniform": (lambda: dist.Uniform(torch.zeros(2), 3.0), True),
    "Laplace": (lambda: dist.Laplace(torch.zeros(2), 1.0), True),
    "Exponential": (lambda: dist.Exponential(torch.tensor([1.0, 3.0])), True),
    "HalfCauchy": (lambda: dist.HalfCauchy(torch.ones(2)), True),
    "Cauchy": (lambda: dist.Cauchy(torch.zeros(2), 1.0), True),
    "Gumbel": (lambda: dist.Gumbel(torch.zeros(2), 1.0), True),
    "Weibull": (lambda: dist.Weibull(torch.ones(2), 1.5), True),
    "Gamma": (lambda: dist.Gamma(torch.tensor([0.7, 3.0]), 2.0), True),
    "InverseGamma": (lambda: dist.InverseGamma(torch.tensor([4.0, 5.0]), 2.0), True),
    "Chi2": (lambda: dist.Chi2(torch.tensor([2.0, 5.0])), True),
    "StudentT": (lambda: dist.StudentT(torch.tensor([3.0, 9.0])), True),
    "Beta": (lambda: dist.Beta(torch.tensor([0.8, 2.0]), torch.tensor([1.5, 3.0])), True),
    "Dirichlet": (lambda: dist.Dirichlet(torch.tensor([0.7, 2.0, 4.0])), True),
    "MultivariateNormal": (lambda: dist.MultivariateNormal(torch.zeros(2), COVARIANCE), True),
    "LowRank": (lambda: dist.LowRankMultivariateNormal(torch.zeros(2), torch.ones(2, 1), torch.ones(2)), True),
    "Bernoulli": (lambda: dist.Bernoulli(torch.tensor([0.3, 0.8])), False),
    "Categorical": (lambda: dist.Categorical(torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])), False),
    "OneHot": (lambda: dist.OneHotCategorical(torch.tensor([0.2, 0.5, 0.3])), False),
    "Binomial": (lambda: dist.Binomial(20, torch.tensor([0.3, 0.8])), False),
    "Multinomial": (lambda: dist.Multinomial(20, torch.tensor([0.2, 0.5, 0.3])), False),
    "Poisson": (lambda: dist.Poisson(torch.tensor([0.7, 6.0])), False),
    "Geometric": (lambda: dist.Geometric(torch.tensor([0.3, 0.6])), False),
    "NegativeBinomial": (lambda: dist.NegativeBinomial(torch.tensor([3.0, 7.0]), torch.tensor([0.3, 0.6])), False),
    "BetaBinomial": (lambda: dist.BetaBinomial(torch.ones(2), torch.ones(2), 12), False),
    "VonMises": (lambda: dist.VonMises(torch.zeros(2), 2.0), True),
    "LKJ": (lambda: dist.LKJCholesky(3, 1.5), True),
    "Flow": (
        lambda: dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0), [dist.transforms.ExpTransform()]),
        True,
    ),
    "Mixture": (
        lambda: dist.MixtureSameFamily(
            dist.Categorical(torch.tensor([0.3, 0.7])), dist.Normal(torch.tensor([-2.0, 1.0]), 0.5)
        ),
        True,
    ),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("given", [False, True], ids=["constant parameters", "parameters drawn before"])
def test_draws_have_the_distribution_of_a_loop_and_share_no_noise(name, given):
    make, continuous = DISTRIBUTIONS[name]
    count = S if name not in ("VonMises", "LKJ") else 500  # which vmap refuses

    def program():
        if not given:
            return pyro.sample("x", make())
        # the same distribution, but batched inside vmap: it depends on a draw
        with poisoned(make()) as d:
            return pyro.sample("x", d)

    torch.manual_seed(1)
    draws = repeat(program, count).double()
    torch.manual_seed(2)
    reference = make().sample((count,)).double()
    assert draws.shape == reference.shape
    draws, reference = (t.reshape(count, -1) for t in (draws, reference))
    for column in range(draws.shape[1]):
        one, other = draws[:, column], reference[:, column]
        if reference[0, column] == reference[-1, column] == 0 or one.unique().numel() == 1:
            assert torch.equal(one.unique(), other.unique())  # the fixed entries of a Cholesky factor
        elif continuous:
            assert one.unique().numel() > 0.99 * count
            assert scipy.stats.ks_2samp(one, other).pvalue > 1e-4
        else:
            values = torch.cat([one, other]).unique()
            table = torch.stack([(t[:, None] == values).sum(0) for t in (one, other)])
            table = table[:, table.sum(0) >= 10]
            assert scipy.stats.chi2_contingency(table.numpy()).pvalue > 1e-4
        # neighbouring draws are independent
        ranks = torch.as_tensor(scipy.stats.rankdata(one))
        if one.unique().numel() > 1:
            lag = torch.corrcoef(torch.stack([ranks[1:], ranks[:-1]]))[0, 1]
            assert abs(lag) < 4 / count**0.5


class poisoned:
    """The distribution with parameters that carry a draw, at weight zero."""

    def __init__(self, d):
        self.d = d

    def __enter__(self):
        zero = 0.0 * torch.rand(())
        for name in ("loc", "rate", "concentration", "scale", "probs", "logits", "df", "concentration0"):
            value = vars(self.d).get(name)
            if isinstance(value, torch.Tensor):
                setattr(self.d, name, value + zero)
        return self.d

    def __exit__(self, *_):
        pass


def test_columns_of_one_draw_are_independent():
    torch.manual_seed(0)
    draws = repeat(lambda: dist.Gamma(torch.tensor(2.0), 1.0).expand([3]).sample(), S)
    correlation = torch.corrcoef(draws.T) - torch.eye(3)
    assert correlation.abs().max() < 4 / S**0.5


@pytest.mark.parametrize("refusing", [False, True])
def test_each_draw_gets_its_own_arguments(refusing):
    values, tree = torch.arange(5.0), {"a": torch.arange(10.0).reshape(5, 2)}

    def fn(value, tree):
        if refusing:
            value = torch.tensor(value.item())  # vmap refuses
        return {"x": value + 1, "nested": (tree["a"].sum(), None)}

    out = repeat(fn, 5, values, tree)
    assert torch.equal(out["x"], values + 1)
    assert torch.equal(out["nested"][0], tree["a"].sum(1))
    assert out["nested"][1] is None


@pytest.mark.parametrize("num_draws", [1, 2, 7])
def test_chunks_change_nothing_but_memory(monkeypatch, num_draws):
    monkeypatch.setattr("pyro_lvm.vectorize._NUMBERS_AT_ONCE", 8)
    torch.manual_seed(0)
    draws = repeat(lambda: torch.randn(3), num_draws)
    assert draws.shape == (num_draws, 3)
    assert draws.unique().numel() == 3 * num_draws


def test_a_loop_starts_from_the_same_random_state():
    def refused():
        x = torch.randn(())
        return torch.tensor(x.item())

    torch.manual_seed(0)
    expected = torch.stack([torch.randn(()) for _ in range(4)])
    torch.manual_seed(0)
    assert torch.equal(repeat(refused, 4), expected)


def test_the_same_seed_gives_the_same_draws():
    def program():
        return pyro.sample("x", dist.Gamma(2.0, 1.0))

    with torch.random.fork_rng():
        torch.manual_seed(5)
        one = repeat(program, 10)
        torch.manual_seed(5)
        assert torch.equal(repeat(program, 10), one)


def test_an_error_of_the_program_is_its_own():
    def failing():
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        repeat(failing, 3)


def test_nothing_needs_gradients():
    weight = torch.ones((), requires_grad=True)
    assert not repeat(lambda: weight * torch.randn(()), 3).requires_grad
