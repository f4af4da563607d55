import pytest
import torch
from torch import nn

from pyro_lvm.nn import MLP


@pytest.mark.parametrize("hidden", [(), (7,), (7, 5, 3)])
@pytest.mark.parametrize("activation, function", [(nn.ReLU, torch.relu), (nn.Tanh, torch.tanh)])
def test_mlp_is_affine_maps_and_activations(hidden, activation, function):
    mlp = MLP(4, hidden, 2, activation=activation)
    x = torch.randn(3, 6, 4)
    h = x
    weights = list(mlp.parameters())
    assert len(weights) == 2 * (len(hidden) + 1)
    for number, (weight, bias) in enumerate(zip(weights[::2], weights[1::2], strict=True)):
        h = h @ weight.T + bias
        if number < len(hidden):
            h = function(h)
    assert h.shape == (3, 6, 2)
    torch.testing.assert_close(mlp(x), h)


def test_mlp_follows_its_dtype():
    assert MLP(2, (3,), 1).double()(torch.zeros(5, 2, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    "args, error, message",
    [
        ((0, (3,), 1), ValueError, "num_inputs: expected positive integers, got 0"),
        ((2, (3, -1), 1), ValueError, "hidden: expected positive integers, got -1"),
        ((2, (3,), 0), ValueError, "num_outputs: expected positive integers, got 0"),
        ((2.0, (3,), 1), TypeError, "num_inputs: expected positive integers, got 2.0"),
        ((2, (True,), 1), TypeError, "hidden: expected positive integers, got True"),
        ((2, 64, 1), TypeError, r"hidden: expected a sequence of layer widths such as \(64, 64\), got 64"),
        ((2, (3,), 1, nn.ReLU()), TypeError, r"activation: expected a class or function.*got ReLU\(\)"),
        ((2, (3,), 1, dict), TypeError, "activation: expected a class or function.*got <class 'dict'>"),
    ],
)
def test_mlp_refuses_wrong_arguments(args, error, message):
    with pytest.raises(error, match=message):
        MLP(*args)
