import math

import numpy as np
import pyro
import pytest
import sklearn.linear_model
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from scipy.special import log_softmax
from scipy.stats import norm

from pyro_lvm.models import BayesianLogisticRegression, logistic_regression

SHAPES = [(2, True), (2, False), (3, True), (3, False)]


def random_draws(D, C, intercept, num_draws=None, dtype=torch.float64):
    leading = [] if num_draws is None else [num_draws]
    draws = {"weights": torch.randn(*leading, *([D] if C == 2 else [D, C]), dtype=dtype)}
    if intercept:
        draws["intercept"] = torch.randn([*leading, *([] if C == 2 else [C])]).to(dtype)
    return draws


def log_probs(X, draw, C):
    """Log-probabilities of the classes [N, C] at one draw, in NumPy."""
    draw = {name: value.double().numpy() for name, value in draw.items()}
    logits = np.asarray(X, dtype=float) @ draw["weights"] + draw.get("intercept", 0.0)
    if C == 2:
        logits = np.stack([np.zeros_like(logits), logits], -1)
    return log_softmax(logits, -1)


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("N, D", [(6, 3), (1, 2), (4, 1)])
@pytest.mark.parametrize("C, intercept", SHAPES)
def test_joint_density(C, intercept, N, D, dtype, rtol, log_joint, param_setting):
    model = BayesianLogisticRegression(D, C, 2.0, intercept, 5.0 if intercept else None).to(dtype)
    X, y = torch.randn(N, D, dtype=dtype), torch.randint(C, (N,))
    draw = random_draws(D, C, intercept, dtype=dtype)
    expected = log_probs(X, draw, C)[np.arange(N), y].sum() + norm(0, 2).logpdf(draw["weights"]).sum()
    if intercept:
        expected += norm(0, 5).logpdf(draw["intercept"]).sum()
    for labels in (y, y.to(dtype), y.to(torch.int32)):
        value = log_joint(model)(draw, X, labels)
        assert value.dtype == dtype
        assert value.item() == pytest.approx(expected, rel=rtol)


@pytest.mark.parametrize("C", [2, 3])
def test_the_mode_is_the_ridge_estimate_of_scikit_learn(C, log_joint):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3))
    y = (X @ rng.normal(size=(3, C)) + rng.normal(size=(60, C))).argmax(1)
    prior_scale = 1.5
    theirs = sklearn.linear_model.LogisticRegression(C=prior_scale**2, fit_intercept=False, tol=1e-10)
    theirs.fit(X, y)
    weights = torch.as_tensor(theirs.coef_[0] if C == 2 else theirs.coef_.T).requires_grad_()
    model = BayesianLogisticRegression(3, C, prior_scale, intercept=False).double()
    density = log_joint(model)({"weights": weights}, torch.as_tensor(X), torch.as_tensor(y))
    (gradient,) = torch.autograd.grad(density, weights)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-4)
    probs = model.predict_proba(torch.as_tensor(X), {"weights": weights})
    np.testing.assert_allclose(probs, theirs.predict_proba(X), rtol=1e-9)


@pytest.mark.parametrize("C", [2, 3])
def test_intercept_scale_defaults_to_the_prior_scale(C):
    model = BayesianLogisticRegression(2, C, prior_scale=3.0)
    trace = poutine.trace(model).get_trace(torch.zeros(4, 2))
    for name, shape in {"weights": [2] if C == 2 else [2, C], "intercept": [] if C == 2 else [C]}.items():
        site = trace.nodes[name]
        assert list(site["value"].shape) == shape
        torch.testing.assert_close(site["fn"].stddev, torch.full(shape, 3.0))
        assert site["fn"].batch_shape == ()
        assert not site["cond_indep_stack"]


@pytest.mark.parametrize("C, intercept", SHAPES)
def test_outer_plates_broadcast(C, intercept):
    S, N, D = 4, 5, 3
    model = BayesianLogisticRegression(D, C, intercept=intercept).double()
    X, y = torch.randn(N, D, dtype=torch.float64), torch.randint(C, (N,))
    draws = random_draws(D, C, intercept, S)
    sliced = [{name: value[s] for name, value in draws.items()} for s in range(S)]
    expected = np.stack([log_probs(X, draw, C)[np.arange(N), y] for draw in sliced])

    def outer(X, y):
        with pyro.plate("draws", S, dim=-2):
            model(X, y)

    data = {name: value.unsqueeze(1) for name, value in draws.items()}
    trace = poutine.trace(poutine.condition(outer, data)).get_trace(X, y)
    trace.compute_log_prob()
    np.testing.assert_allclose(trace.nodes["y"]["log_prob"], expected, rtol=1e-10)


@pytest.mark.parametrize("C, intercept", SHAPES)
def test_maps_and_traces(C, intercept, param_setting, check_transforms):
    model = BayesianLogisticRegression(3, C, intercept=intercept).double()
    X, y = torch.randn(5, 3, dtype=torch.float64), torch.randint(C, (5,))
    check_transforms(model, random_draws(3, C, intercept, 4), X, y)


@pytest.mark.parametrize("C", [2, 3])
def test_draws_of_classes_have_their_probabilities(C):
    model = BayesianLogisticRegression(2, C)
    draw = random_draws(2, C, True, dtype=torch.float32)
    X = torch.tensor([[1.0, 2.0]]).repeat(4000, 1)
    y = poutine.condition(model, draw)(X)
    assert y.shape == (4000,)
    expected = np.exp(log_probs(X[:1], draw, C))[0]
    counts = np.bincount(y.long(), minlength=C) / 4000
    assert np.all(np.abs(counts - expected) < 4 * np.sqrt(expected * (1 - expected) / 4000))


@pytest.mark.parametrize("C", [2, 3])
def test_a_fit_by_plain_pyro_predicts(C, param_setting):
    X = torch.randn(150, 2)
    y = torch.bucketize(X[:, 0].contiguous(), torch.tensor([0.0] if C == 2 else [-0.5, 0.5]))
    model = BayesianLogisticRegression(2, C, prior_scale=5.0)
    guide = AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 5e-2}), Trace_ELBO())
    losses = [svi.step(X, y) for _ in range(200)]
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:20])
    draws = Predictive(guide, num_samples=50)(X)
    shapes = {"weights": [2], "intercept": []} if C == 2 else {"weights": [2, 3], "intercept": [3]}
    draws = {name: draws[name].reshape(50, *shape) for name, shape in shapes.items()}
    assert (model.predict_proba(X, draws).argmax(-1) == y).float().mean() > 0.85


# Predicting ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 25, 2**24])
@pytest.mark.parametrize("C, intercept", SHAPES)
def test_probabilities_are_averaged_over_draws(C, intercept, chunk, monkeypatch):
    monkeypatch.setattr(logistic_regression, "_CHUNK", chunk)
    S, N, D = 7, 4, 3
    model = BayesianLogisticRegression(D, C, intercept=intercept).double()
    X, draws = torch.randn(N, D, dtype=torch.float64), random_draws(D, C, intercept, S)
    expected = np.mean(
        [np.exp(log_probs(X, {name: value[s] for name, value in draws.items()}, C)) for s in range(S)], axis=0
    )
    probs = model.predict_proba(X, draws)
    assert probs.shape == (N, C)
    np.testing.assert_allclose(probs, expected, rtol=1e-10)


@pytest.mark.parametrize("C, intercept", SHAPES)
def test_a_point_is_plugged_in(C, intercept):
    model = BayesianLogisticRegression(3, C, intercept=intercept)
    X, point = torch.randint(-2, 3, (4, 3)), random_draws(3, C, intercept, dtype=torch.float32)
    probs = model.predict_proba(X, {**point, "other": torch.zeros(5)})
    np.testing.assert_allclose(probs, np.exp(log_probs(X, point, C)), rtol=1e-4)


def test_hand_computed_average():
    model = BayesianLogisticRegression(1).double()
    draws = {"weights": torch.tensor([[0.0], [math.log(3)]]), "intercept": torch.tensor([0.0, math.log(3)])}
    probs = model.predict_proba(torch.tensor([[1.0]], dtype=torch.float64), draws)  # of 1/2 and 9/10
    torch.testing.assert_close(probs, torch.tensor([[0.3, 0.7]], dtype=torch.float64), atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    "draws, message",
    [
        ({"weights": torch.zeros(5, 3)}, r"draws: expected the sites \['weights', 'intercept'\], got \['weights'\]"),
        (
            {"weights": torch.zeros(5, 2), "intercept": torch.zeros(5)},
            r"'weights' of shape \[S, 3\] for S draws, or \[3\] for a point, and got 'weights' of shape \[5, 2\]",
        ),
        (
            {"weights": torch.zeros(5, 3), "intercept": torch.zeros(4)},
            r"'intercept' of shape \[S\] for S draws, or \[\] for a point, and got .*'intercept' of shape \[4\]",
        ),
        ({"weights": torch.zeros(3), "intercept": torch.zeros(3)}, r"'intercept' of shape \[S\]"),
        ({"weights": torch.zeros(0, 3), "intercept": torch.zeros(0)}, r"got 'weights' of shape \[0, 3\]"),
        ({"weights": torch.tensor(1.0), "intercept": torch.tensor(1.0)}, r"got 'weights' of shape \[\]"),
    ],
)
def test_wrong_draws_are_refused(draws, message):
    with pytest.raises(ValueError, match=message):
        BayesianLogisticRegression(3).predict_proba(torch.zeros(4, 3), draws)


# Errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        ({"num_features": 0}, ValueError, "num_features must be a positive integer; got 0"),
        ({"num_classes": 1}, ValueError, "num_classes: expected at least 2, got 1"),
        ({"num_classes": 2.5}, TypeError, "num_classes must be a positive integer; got 2.5"),
        ({"prior_scale": 0.0}, ValueError, "prior_scale: expected a positive number, got 0.0"),
        ({"prior_scale": math.inf}, ValueError, "prior_scale: expected a positive number, got inf"),
        ({"prior_scale": "1"}, TypeError, "prior_scale: expected a positive number, got '1'"),
        ({"intercept": 1}, TypeError, "intercept: expected True or False, got 1"),
        ({"intercept_scale": -1.0}, ValueError, "intercept_scale: expected a positive number, got -1.0"),
        (
            {"intercept": False, "intercept_scale": 1.0},
            ValueError,
            "intercept_scale: expected None with intercept=False, got 1.0",
        ),
    ],
)
def test_constructor_refuses_wrong_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        BayesianLogisticRegression(**{"num_features": 3, **kwargs})


@pytest.mark.parametrize(
    "X, y, message",
    [
        (torch.zeros(4, 2), None, r"X: expected shape \[N, 3\], got \[4, 2\]"),
        (torch.zeros(4, 3).double(), None, "X: expected torch.float32, the dtype of the model, got torch.float64"),
        (torch.zeros(4, 3), torch.zeros(4, 1), r"y: expected shape \[4\], got \[4, 1\]"),
        (torch.zeros(4, 3), torch.zeros(3), r"y: expected shape \[4\], got \[3\]"),
    ],
)
def test_model_refuses_wrong_data(X, y, message):
    with pytest.raises(ValueError, match=message):
        BayesianLogisticRegression(3)(X, y)


@pytest.mark.parametrize("C, intercept", SHAPES)
def test_sites_and_plates(C, intercept):
    trace = poutine.trace(BayesianLogisticRegression(3, C, intercept=intercept)).get_trace(torch.zeros(4, 3))
    samples = [name for name, site in trace.nodes.items() if site["type"] == "sample" and name != "rows"]
    assert samples == (["weights", "intercept", "y"] if intercept else ["weights", "y"])
    (plate,) = trace.nodes["y"]["cond_indep_stack"]
    assert (plate.name, plate.size) == ("rows", 4)
