"""Convolutional networks that keep the height and the width."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from pyro_lvm.nn.mlp import check_size, check_widths, make_activation

__all__ = ["ConvNet"]


class ConvNet(nn.Module):
    """A convolutional network from images to images of the same height and width.

    The first and the last layer see 3 x 3 pixels, those between them one.

    Args:
        num_inputs: Channels of the input `[*, num_inputs, H, W]`.
        hidden: Channels of each hidden layer, at least one.
        num_outputs: Channels of the output `[*, num_outputs, H, W]`.
        context: Size :math:`C` of the last dimension of the context `[*, C]`, which all pixels see; 0 for none.
        activation: Called without arguments for each hidden layer, it returns a module.

    Raises:
        TypeError: If a size is not an integer, or `activation` does not return a module.
        ValueError: If a size is not positive, or there is no hidden layer.

    Example:
        >>> import torch
        >>> from pyro_lvm.nn import ConvNet
        >>> _ = torch.manual_seed(0)
        >>> ConvNet(1, (16, 16), 2)(torch.randn(5, 1, 8, 8)).shape
        torch.Size([5, 2, 8, 8])
    """

    def __init__(
        self,
        num_inputs: int,
        hidden: Sequence[int],
        num_outputs: int,
        context: int = 0,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        widths = check_widths(hidden)
        if not widths:
            raise ValueError("hidden: expected the channels of at least one layer")
        sizes = [check_size("num_inputs", num_inputs), *widths, check_size("num_outputs", num_outputs)]
        kernels = [3, *[1] * (len(widths) - 1), 3]
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, kernel, padding=kernel // 2)
            for (before, after), kernel in zip(pairwise(sizes), kernels, strict=True)
        )
        self.activations = nn.ModuleList(make_activation(activation) for _ in widths)
        self.context = nn.Linear(context, widths[0], bias=False) if context else None

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The outputs, `[*, num_outputs, H, W]`.

        Args:
            x: Images, `[*, num_inputs, H, W]`.
            context: Context, `[*, C]`, its batch shape that of the images or broadcast to it.
        """
        batch = x.shape[:-3]
        h = self.layers[0](x.reshape(-1, *x.shape[-3:]))
        if self.context is not None and context is not None:
            shift = self.context(context.expand(*batch, -1)).reshape(h.shape[:2])
            h = h + shift[..., None, None]
        for activation, layer in zip(self.activations, self.layers[1:], strict=True):
            h = layer(activation(h))
        return h.reshape(*batch, *h.shape[-3:])
