"""Where the parameters of a fit have been."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_lvm as lvm
from pyro_lvm.svi.path import ParameterPath


def model(y):
    mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 10.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean.sum(), 1.0), obs=y)


Y = torch.arange(10.0)


def fit(**options):
    return lvm.fit(model, "mean_field", Y, progress=False, **{"optim": 0.05, "seed": 1, **options})


def test_points_are_evenly_spaced_and_bounded():
    path = ParameterPath(1_000, 5)
    for step in range(1, 1_001):
        if path.is_due(step):
            path.see(step, {"a": torch.tensor(float(step))})
    assert path.steps.tolist() == list(range(10, 1_001, 10))
    assert path.points[:, 0].tolist() == path.steps.tolist()
    assert path.tail[0] == 500
    for step in range(1_010, 10_001, 10):
        if path.is_due(step):
            path.see(step, {"a": torch.tensor(float(step))})
    assert 50 <= len(path.steps) <= 100
    assert len(set(path.steps.diff().tolist())) == 1


def test_points_are_the_parameters_at_their_steps():
    """A fit of fewer steps ends where the longer one was."""
    result = fit(num_steps=40)
    assert result.path.steps.tolist() == list(range(1, 41))
    assert result.path.names == [f"AutoNormal.{kind}.mean[{i}]" for kind in ("locs", "scales") for i in range(2)]
    for steps in (7, 40):
        shorter = fit(num_steps=steps)
        values = result.path.unflattened(result.path.points[steps - 1])
        for name, value in values.items():
            torch.testing.assert_close(value, shorter._values[name], rtol=0, atol=0)


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_path_changes_no_step(compile):
    """Blocks that end at its points and blocks of a hundred steps take the same steps."""
    few, many = (fit(num_steps=300, every=every, compile=compile) for every in (1, 100))
    assert torch.equal(few.losses, many.losses)
    assert few.path.steps.tolist() != many.path.steps.tolist()


def test_many_coordinates_are_thinned():
    path = ParameterPath(10, 1)
    path.see(1, {"a": torch.arange(3_000.0).reshape(3, 1_000), "b": torch.tensor(-1.0)})
    assert path.points.shape == (1, 1_000)
    assert not path.complete
    assert path.names[0] == "a[0, 0]"
    assert path.names[-1] == "b"
    assert path.points[0, -1] == -1


def test_it_is_saved_with_the_result(tmp_path):
    result = fit(num_steps=30)
    result.save(tmp_path / "fit.pt")
    again = lvm.load(tmp_path / "fit.pt", model, "mean_field", Y)
    assert torch.equal(again.path.points, result.path.points)
    assert again.path.names == result.path.names
    assert again.path.steps.tolist() == result.path.steps.tolist()


def test_it_goes_on_after_a_checkpoint(tmp_path):
    class Stop(Exception):
        pass

    def stop(state):
        if state.step == 50:
            raise Stop

    options = {"num_steps": 120, "every": 10, "checkpoint": tmp_path / "fit.ckpt"}
    with pytest.raises(Stop):
        fit(callbacks=[stop], **options)
    resumed = fit(callbacks=[lambda state: False], **options)
    whole = fit(num_steps=120, every=10)
    assert torch.equal(resumed.path.points, whole.path.points)
    assert resumed.path.steps.tolist() == whole.path.steps.tolist()
