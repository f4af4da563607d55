import pytest
import torch
from torch import nn

from pyro_lvm.nn import MLP, MaskedMLP


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


@pytest.mark.parametrize("order", [None, [2, 0, 3, 1]])
@pytest.mark.parametrize("hidden, residual", [((), False), ((9, 6), False), ((8, 8), True)])
def test_masked_outputs_see_the_features_before_them(hidden, residual, order):
    torch.manual_seed(0)
    net = MaskedMLP(4, hidden, 2, residual=residual, order=order, activation=nn.Tanh)
    J = torch.autograd.functional.jacobian(net, torch.randn(4))  # [D, P, D]
    places = torch.tensor([0, 1, 2, 3] if order is None else order).argsort()
    sees = places.unsqueeze(-1) > places
    assert torch.equal((J != 0).all(1), sees)
    assert torch.equal((J != 0).any(1), sees)


def test_features_found_by_degree_are_those_of_their_outputs():
    """With a general activation, which a gradient must see; with a context; with and without gradients."""
    torch.manual_seed(0)
    net = MaskedMLP(4, (9, 6), 2, context=3, order=[2, 0, 3, 1], activation=nn.GELU)
    noise, context = torch.randn(7, 4), torch.randn(7, 3)

    def feature(column, outputs):
        return column + outputs[0] * outputs[1]

    x = net.by_degree(feature, noise, context)
    with torch.no_grad():
        torch.testing.assert_close(net.by_degree(feature, noise, context), x)
    outputs = net(x, context)
    torch.testing.assert_close(x, noise + outputs[..., 0] * outputs[..., 1])


@pytest.mark.parametrize("order", [[0, 1], [0, 1, 1], [1, 2, 3], [0, 1, 2, 3]])
def test_masked_mlp_refuses_what_is_no_order(order):
    with pytest.raises(ValueError, match="order: expected the numbers from 0 to 2, each once"):
        MaskedMLP(3, (4,), 1, order=order)


def test_masked_mlp_refuses_residuals_of_different_widths():
    with pytest.raises(ValueError, match="hidden: expected layers of one width"):
        MaskedMLP(3, (4, 5), 1, residual=True)
