"""Every trainable tensor that a model and a guide use is found, and the loss and its gradient are plain Pyro's."""

import functools
import time
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoIAFNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

import pyro_lvm as lvm
from pyro_lvm.modules import reachable_modules

X = torch.tensor([0.3, -1.2, 0.8, 2.0])


def normal(loc, scale=1.0):
    return dist.Normal(loc, scale)


class Net(nn.Module):
    """A plain torch module with a model and a guide as methods, as in Pyro's VAE tutorial."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(1, 1)
        self.encoder = nn.Linear(1, 2)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", normal(0.0))
            pyro.sample("x", normal(self.decoder(z[:, None])[:, 0]), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("rows", len(x)):
            loc, scale = self.encoder(x[:, None]).unbind(-1)
            pyro.sample("z", normal(loc, scale.exp()))


class Plain:
    """The same on a class that is no module."""

    def __init__(self):
        self.inner = {"nets": [Net()]}

    def model(self, x):
        return self.inner["nets"][0].model(x)

    def guide(self, x):
        return self.inner["nets"][0].guide(x)


class Callable_:
    def __init__(self):
        self.net = nn.Linear(1, 2)

    def __call__(self, x):
        loc, scale = self.net(x[:, None]).unbind(-1)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", normal(loc, scale.exp()))


def of_functions():
    def model(x):
        scale = pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
        weights = pyro.param("weights", lambda: torch.tensor([0.2, 0.8]), constraint=constraints.simplex)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", normal(weights[0], scale))
            pyro.sample("x", normal(z * pyro.param("slope", torch.tensor(1.5))), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.linspace(0, 1, len(x)))
        scale = pyro.param("width", torch.ones(len(x)), constraint=constraints.interval(0.1, 5.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("z", normal(loc, scale))

    return model, guide


class Model(PyroModule):
    def __init__(self):
        super().__init__()
        self.loc = PyroParam(torch.tensor(0.4))
        self.scale = PyroParam(torch.tensor(1.3), constraints.positive)
        self.linear = PyroModule[nn.Linear](1, 1)
        self.weight = nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", normal(self.loc, self.scale))
            pyro.sample("x", normal(self.linear(z[:, None])[:, 0] * self.weight), obs=x)


class Guide(PyroModule):
    """Its parameters carry the names of the model's."""

    def __init__(self):
        super().__init__()
        self.loc = PyroParam(torch.zeros(4))
        self.scale = PyroParam(torch.ones(4), constraints.positive)

    def forward(self, x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", normal(self.loc, self.scale))


def of_pyro_modules():
    with pyro.settings.context(module_local_params=False):
        return Model(), Guide()


def of_local_pyro_modules():
    with pyro.settings.context(module_local_params=True):
        return Model(), Guide()


def of_methods_of_a_module():
    net = Net()
    return net.model, net.guide


def of_methods_of_a_class():
    thing = Plain()
    return thing.model, thing.guide


def of_callable_objects():
    return Net().model, Callable_()


def of_pyro_module_statements_alone():
    """Modules that only the body of the program reaches."""
    nets = {"decoder": nn.Linear(1, 1), "encoder": nn.Linear(1, 2)}
    hidden = type("Hidden", (), {"__slots__": ("get",)})()
    object.__setattr__(hidden, "get", nets.__getitem__)

    def model(x):
        decoder = pyro.module("decoder", hidden.get("decoder"))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", normal(0.0))
            pyro.sample("x", normal(decoder(z[:, None])[:, 0]), obs=x)

    def guide(x):
        encoder = pyro.module("encoder", hidden.get("encoder"))
        loc, scale = encoder(x[:, None]).unbind(-1)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", normal(loc, scale.exp()))

    return model, guide


def of_closures():
    decoder, encoder = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1)), nn.Linear(1, 2)

    def decode(z):
        return decoder(z[:, None])[:, 0]

    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", normal(0.0))
            pyro.sample("x", normal(decode(z)), obs=x)

    def guide(x):
        loc, scale = encoder(x[:, None]).unbind(-1)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", normal(loc, scale.exp()))

    return model, guide


GLOBAL = nn.Linear(1, 2)


def reads_a_global(x):
    return (lambda: GLOBAL(x[:, None]).unbind(-1))()


def of_globals():
    def guide(x):
        loc, scale = reads_a_global(x)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", normal(loc, scale.exp()))

    return of_functions()[0], guide


def of_partials():
    def model(net, x, *, width):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", normal(0.0, width()))
            pyro.sample("x", normal(net(z[:, None])[:, 0]), obs=x)

    def guide(x, net):
        loc, scale = net(x[:, None]).unbind(-1)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", normal(loc, scale.exp()))

    class Width(nn.Module):
        def __init__(self):
            super().__init__()
            self.log = nn.Parameter(torch.tensor(0.2))

        def forward(self):
            return self.log.exp()

    return functools.partial(model, nn.Linear(1, 1), width=Width()), functools.partial(guide, net=nn.Linear(1, 2))


def of_wrapped_functions():
    model, guide = of_closures()
    return poutine.scale(model, 0.5), poutine.scale(poutine.mask(guide, mask=torch.tensor(True)), 0.5)


def of_decorated_functions():
    model, guide = of_closures()

    @functools.wraps(model)
    def other(x):
        return model(x)

    return other, guide


def of_an_autoguide():
    model, _ = of_functions()
    return model, AutoNormal(model)


def of_an_autoguide_of_a_module():
    model = Model()
    return model, AutoDiagonalNormal(model)


def of_a_flow_guide():
    def model(x):
        coefficients = pyro.sample("w", normal(0.0).expand([3]).to_event(1))
        with pyro.plate("rows", len(x)):
            scale = pyro.param("scale", torch.tensor(1.2), constraint=constraints.positive)
            pyro.sample("x", normal(coefficients.sum(), scale), obs=x)

    return model, AutoIAFNormal(model, [5], num_transforms=2)


def of_a_module_with_priors():
    class Regression(PyroModule):
        def __init__(self):
            super().__init__()
            self.linear = PyroModule[nn.Linear](1, 1)
            self.linear.weight = PyroSample(normal(0.0).expand([1, 1]).to_event(2))

        def forward(self, x):
            mean = self.linear(x[:, None])[:, 0]
            with pyro.plate("rows", len(x)):
                pyro.sample("x", normal(mean), obs=x)

    model = Regression()
    return model, AutoNormal(model)


def shared_module(frozen=()):
    net = nn.Linear(1, 2)
    for name in frozen:
        net.get_parameter(name).requires_grad_(False)

    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", normal(0.0))
            pyro.sample("x", normal(net(z[:, None])[:, 0]), obs=x)

    def guide(x):
        loc, scale = net(x[:, None]).unbind(-1)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", normal(loc, scale.exp()))

    return model, guide


def of_a_shared_module():
    return shared_module()


def of_tied_weights():
    """Two modules that hold one tensor, and the second nothing else."""
    encoder, decoder = nn.Linear(1, 1), nn.Linear(1, 1, bias=False)
    decoder.weight = encoder.weight

    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", normal(0.0))
            pyro.sample("x", normal(decoder(z[:, None])[:, 0]), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", normal(encoder(x[:, None])[:, 0]))

    return model, guide


def of_weights_tied_inside_a_module():
    net = Net()
    net.decoder.weight = nn.Parameter(torch.tensor([[0.5]]))
    net.encoder = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 2))
    net.encoder[0].weight = net.decoder.weight
    return net.model, net.guide


def of_frozen_parts():
    return shared_module(frozen=["bias"])


CASES = [value for name, value in list(globals().items()) if name.startswith("of_")]


@pytest.fixture
def own_store():
    with pyro.get_param_store().scope():
        yield


def gradients(tensors):
    return sorted([t.grad.clone() for t in tensors if t.grad is not None], key=lambda g: (g.numel(), g.sum().item()))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__[3:])
def test_loss_and_gradient_are_those_of_plain_pyro(case):
    torch.manual_seed(3)
    model, guide = case()
    objective = lvm.Objective(model, guide)
    params = objective.init(X)
    torch.manual_seed(1)
    loss = objective(params, X)
    loss.backward()
    assert len(pyro.get_param_store()) == 0

    # Pyro shares what has one name in two modules, unless parameters are local to modules.
    local = pyro.settings.context(module_local_params=case in (of_pyro_modules, of_local_pyro_modules))
    torch.manual_seed(1)
    with local, pyro.get_param_store().scope(), poutine.trace(param_only=True) as capture:
        plain = Trace_ELBO().differentiable_loss(model, guide, X)
        plain.backward()
        statements = [
            site["value"].unconstrained() if hasattr(site["value"], "unconstrained") else site["value"]
            for site in capture.trace.nodes.values()
            if site["type"] == "param"
        ]
    modules = objective.program.parameters.modules
    leaves = {id(t): t for t in [*statements, *(p for m in modules for p in m.parameters())]}
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    ours, theirs = gradients(params.values()), gradients(leaves.values())
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__[3:])
def test_a_fit_moves_every_parameter_and_writes_it_into_the_modules(case):
    model, guide = case()
    GLOBAL.zero_grad(set_to_none=True)
    objective = lvm.Objective(model, guide)
    before = objective.init(X)
    objective(before, X).backward()
    result = lvm.fit(model, guide, X, num_steps=3, progress=False)
    for name, value in before.items():
        assert torch.equal(value, result._values[name]) == (value.grad is None)
    now = lvm.Objective(model, guide).init(X)
    modules = result._program.parameters.modules
    assert all(p.grad is None for m in modules for p in m.parameters())
    for name in result._program.parameters._in_module:
        torch.testing.assert_close(now[name].detach(), result._values[name], rtol=0, atol=0)


def test_frozen_parameters_stay():
    model, guide = of_frozen_parts()
    result = lvm.fit(model, guide, X, num_steps=3, progress=False)
    (net,) = result._program.parameters.modules
    assert list(result.params) == ["net.weight"]
    # a later thaw changes no result
    before = result.sample(3)["z"]
    with torch.no_grad():
        net.bias += 100.0
    assert torch.equal(result.sample(3)["z"], before)


def test_tied_weights_are_one_parameter():
    model, guide = of_tied_weights()
    assert sorted(lvm.Objective(model, guide).init(X)) == ["decoder.weight", "encoder.bias"]


class Scaled(nn.Module):
    """x_i = z_i + noise with z_i ~ N(w, 1)."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.0))

    def forward(self, x):
        with pyro.plate("rows", len(x)):
            pyro.sample("x", normal(pyro.sample("z", normal(self.w))), obs=x)


class Posterior(nn.Module):
    """Its exact posterior, N((w + x_i) / 2, 1/2), with the model's own parameter."""

    def __init__(self, w):
        super().__init__()
        self.w = w

    def forward(self, x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", normal((self.w + x) / 2, 0.5**0.5))


def test_a_parameter_that_model_and_guide_modules_share_moves_in_both():
    model = Scaled()
    guide = Posterior(model.w)
    result = lvm.fit(model, guide, X, num_steps=300, optim=0.05, progress=False)
    assert list(result.params) == ["w"]
    assert model.w is guide.w
    assert model.w.grad is None
    assert model.w.item() == pytest.approx(X.mean().item(), abs=1e-3)
    bound = poutine.trace(result.guide).get_trace(X).nodes["z"]["fn"]
    torch.testing.assert_close(bound.loc, (result.params["w"] + X) / 2)
    # a guide that is exact and moves along makes the bound tight at every step
    assert result.losses[-1].item() == pytest.approx(-normal(X.mean(), 2**0.5).log_prob(X).sum().item(), abs=1e-4)


def with_a_frozen_net(net):
    def model(x):
        mean = pyro.param("mean", torch.tensor(0.3))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", normal(mean + net(x[:, None]).detach()[:, 0]), obs=x)

    return model


def test_a_module_with_nothing_to_train_is_kept_by_a_result():
    net = nn.Linear(1, 1).requires_grad_(False)
    result = lvm.fit(with_a_frozen_net(net), None, X, num_steps=3, progress=False)
    mean = result.params["mean"] + net(X[:, None])[:, 0]
    net.weight.add_(5.0)
    assert result.evidence().value == pytest.approx(normal(mean).log_prob(X).sum().item(), rel=1e-6)
    (weight,) = [v for name, v in result._values.items() if name.endswith("weight")]
    assert (net.weight - weight).item() == pytest.approx(5.0, rel=1e-6)


def test_statistics_of_a_module_with_nothing_to_train_are_kept_too():
    net = nn.BatchNorm1d(1, affine=False)
    model = with_a_frozen_net(net)
    result = lvm.fit(model, None, X, num_steps=3, progress=False)
    # three steps, each a tenth of the way from where it was to the batch's mean
    mean = (1 - 0.9**3) * X.mean()
    torch.testing.assert_close(net.running_mean, mean.reshape(1))
    score = result.score().value
    net(100.0 + X[:, None])
    torch.testing.assert_close(result.score().value, score)
    before = net.running_mean.clone()

    def fail(state):
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        lvm.fit(model, None, X, num_steps=4, every=2, callbacks=[fail], progress=False)
    assert torch.equal(net.running_mean, before)


def test_a_recurrent_net_takes_the_values_of_a_result():
    torch.manual_seed(0)
    net = nn.GRU(1, 1, batch_first=True)

    def model(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("x", normal(net(x[:, None, None])[0][:, 0, 0]), obs=x)

    result = lvm.fit(model, None, X, num_steps=20, progress=False)
    exact = normal(net(X[:, None, None])[0][:, 0, 0]).log_prob(X).detach()
    torch.nn.init.zeros_(net.weight_ih_l0)
    torch.testing.assert_close(result.score().value.float(), exact)


def test_params_are_constrained_and_named_as_the_user_knows_them():
    model, guide = of_pyro_modules()
    result = lvm.fit(model, guide, X, num_steps=2, progress=False)
    assert set(result.params) == {
        "loc", "scale", "weight", "linear.weight", "linear.bias", "guide.loc", "guide.scale",
    }  # fmt: skip
    torch.testing.assert_close(result.params["scale"], model.scale.detach())
    torch.testing.assert_close(result.params["guide.scale"], guide.scale.detach())
    assert (result.params["guide.loc"] - guide.loc).abs().max() == 0


def test_large_tables_in_a_closure_cost_one_look_at_each_entry():
    vocabulary = {f"word {i}": i for i in range(300_000)}
    things = [object() for _ in range(300_000)]
    net = nn.Linear(1, 1)

    def model(x):
        return net(x), len(vocabulary), len(things)

    began = time.perf_counter()
    assert [name for name, _ in reachable_modules(model)] == ["net"]
    assert time.perf_counter() - began < 5.0  # looked up by shifting a list, they took a minute


def stranger_in_the_model():
    loose = {"w": torch.tensor(1.0, requires_grad=True)}

    def model(x):
        z = pyro.sample("z", normal(0.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", normal(z * loose["w"]), obs=x)

    return model, "mean_field"


def stranger_in_the_guide():
    loose = torch.zeros(3, requires_grad=True)

    def model(x):
        z = pyro.sample("z", normal(0.0).expand([3]).to_event(1))
        pyro.param("unused", torch.zeros(()))
        pyro.sample("x", normal(z.sum()), obs=x.sum())

    def guide(x):
        pyro.sample("z", normal(loose).to_event(1))

    return model, guide


def stranger_made_on_the_fly():
    def model(x):
        net = nn.Linear(1, 1)
        z = pyro.sample("z", normal(0.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", normal(net(z.reshape(1))), obs=x)

    return model, "mean_field"


@pytest.mark.parametrize(
    ("case", "shape"),
    [(stranger_in_the_model, r"\[\]"), (stranger_in_the_guide, r"\[3\]"), (stranger_made_on_the_fly, r"\[1(, 1)?\]")],
)
def test_a_tensor_that_would_stay_frozen_is_an_error(case, shape):
    model, guide = case()
    with pytest.raises(ValueError, match=f"a trainable tensor of shape {shape} reaches .* leave it frozen"):
        lvm.fit(model, guide, X, num_steps=1, progress=False)


def test_a_parameter_that_appears_later_is_an_error():
    calls = []

    def model(x):
        calls.append(1)
        z = pyro.sample("z", normal(0.0))
        late = pyro.param("late", torch.tensor(0.0)) if len(calls) > 20 else 0.0
        with pyro.plate("rows", len(x)):
            pyro.sample("x", normal(z + late), obs=x)

    with pytest.raises(ValueError, match=r"'late'.* appeared after the first run"):
        lvm.fit(model, "mean_field", X, num_steps=50, progress=False)


def test_reading_a_parameter_that_nobody_made_is_an_error():
    def model(x):
        pyro.sample("x", normal(pyro.param("missing")), obs=x.sum())

    with pytest.raises(ValueError, match=r"'missing'.* before any statement gave it an initial value"):
        lvm.fit(model, None, X, num_steps=1, progress=False)


def test_a_parameter_read_twice_is_one_and_keeps_its_first_start():
    def model(x):
        first = pyro.param("loc", torch.tensor(0.5))
        second = pyro.param("loc", torch.tensor(9.0))
        third = pyro.param("loc")
        with pyro.plate("rows", len(x)):
            pyro.sample("x", normal(first + second + third), obs=x)

    result = lvm.fit(model, None, X, num_steps=1, optim=lambda p: torch.optim.SGD(p, 0.1), progress=False)
    assert result.losses.item() == pytest.approx(-normal(1.5).log_prob(X).sum().item(), rel=1e-6)
    assert result.params["loc"].item() == pytest.approx(0.5 + 0.1 * 3 * (X - 1.5).sum().item(), rel=1e-5)


def test_the_store_is_neither_read_nor_changed(own_store):
    """A store with parameters of the same names and other values, of a function and of a module alike."""
    model, guide = of_functions()
    fresh = lvm.fit(model, guide, X, num_steps=5, progress=False).params
    pyro.param("scale", torch.tensor(77.0), constraint=constraints.positive)
    pyro.param("slope", torch.tensor(-5.0))
    pyro.param("loc", torch.zeros(9))
    state = pyro.get_param_store().get_state()
    again = lvm.fit(model, guide, X, num_steps=5, progress=False).params
    for name, value in fresh.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=0)
    after = pyro.get_param_store().get_state()
    assert after["params"].keys() == state["params"].keys()
    assert all(after["params"][n] is v and torch.equal(after["params"][n], v) for n, v in state["params"].items())
    assert list(after["constraints"]) == list(state["constraints"])


def test_a_module_already_in_the_store_keeps_its_entry(own_store):
    model, guide = of_pyro_modules()
    pyro.param("loc", torch.tensor(55.0))
    lvm.fit(model, guide, X, num_steps=5, progress=False)
    assert model.loc.item() < 2
    assert pyro.get_param_store()["loc"].item() == 55.0


@pytest.mark.parametrize("case", [of_functions, of_pyro_modules, of_local_pyro_modules], ids=lambda c: c.__name__[3:])
def test_pyros_svi_trains_a_guide_of_its_own_on_a_fitted_model(case, own_store):
    result = lvm.fit(*case(), X, num_steps=3, progress=False)

    def guide(x):
        loc = pyro.param("own_loc", torch.zeros(4))
        with pyro.plate("rows", len(x)):
            pyro.sample("z", normal(loc, pyro.param("own_scale", torch.ones(4), constraint=constraints.positive)))

    for other in (guide, AutoNormal(result.model)):
        pyro.get_param_store().clear()
        svi = pyro.infer.SVI(result.model, other, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        svi.step(X)
        first = {name: v.detach().clone() for name, v in pyro.get_param_store().items()}
        svi.step(X)
        assert len(first) == 2
        assert all("own" in name or "AutoNormal" in name for name in first)
        for name, value in pyro.get_param_store().items():
            assert (value != first[name]).all()


def test_a_user_guide_made_before_and_trained_by_pyro_continues_from_its_values():
    model, _ = of_functions()
    guide = AutoNormal(model)
    with pyro.get_param_store().scope():
        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        for _ in range(5):
            svi.step(X)
        trained = guide.locs.z.detach().clone()
    start = lvm.Objective(model, guide).init(X)
    torch.testing.assert_close(start["AutoNormal.locs.z"].detach(), trained, rtol=0, atol=0)


def test_a_model_hidden_by_block_is_an_error():
    def model(x):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        z = pyro.sample("z", normal(0.0))
        pyro.sample("x", normal(z, scale), obs=x.sum())

    hidden = poutine.block(model, expose=["z", "x"])
    with pytest.raises(ValueError, match=r"\['scale'\] are hidden from the fit by poutine.block"):
        lvm.fit(hidden, "mean_field", X, num_steps=1, progress=False)


def test_buffers_count_the_steps_and_nothing_else():
    """Looking at a model before the fit leaves no trace in its batch norm."""
    norm = nn.BatchNorm1d(1)

    def model(x):
        z = pyro.sample("z", normal(0.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", normal(norm(x[:, None])[:, 0] + z), obs=x)

    lvm.fit(model, "mean_field", X, num_steps=7, progress=False)
    assert norm.num_batches_tracked == 7
    result = lvm.fit(model, "mean_field", X, num_steps=2, progress=False)
    assert norm.training
    result.sample(3), result.evidence(3), result.predict(num_draws=2), result.score()
    assert norm.num_batches_tracked == 9
    assert norm.training


def test_no_warning_comes_from_a_module_used_outside(own_store):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, guide = of_pyro_modules()
        lvm.fit(model, guide, X, num_steps=1, progress=False)
        model(X)
        guide(X)


def test_buffers_that_a_run_replaces_are_counted_by_steps_alone():
    class Counting(torch.nn.Module):
        def __init__(self, limit):
            super().__init__()
            self.loc = torch.nn.Parameter(torch.tensor(0.0))
            self.register_buffer("count", torch.tensor(0.0))
            self.limit, self.runs = limit, 0

        def forward(self, x):
            self.count = self.count + 1
            self.runs += 1
            if self.runs > self.limit:
                raise KeyError("too many")
            with pyro.plate("rows", len(x)):
                pyro.sample("x", dist.Normal(self.loc, 1.0), obs=x)

    x = torch.randn(5)
    counting = Counting(limit=100)
    lvm.fit(counting, None, x, num_steps=10, progress=False)
    assert counting.count == 10
    failing = Counting(limit=8)
    before = failing.count
    with pytest.raises(KeyError):
        lvm.fit(failing, None, x, num_steps=10, progress=False)
    assert failing.count is before
    assert before == 0
