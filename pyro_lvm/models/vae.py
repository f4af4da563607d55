"""A variational autoencoder."""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroParam, pyro_method
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_lvm.checks import check_choice, check_count, check_positive
from pyro_lvm.flows import Flow, FlowDistribution, as_flow
from pyro_lvm.flows._bent import bent_gaussian
from pyro_lvm.models._base import check_rows
from pyro_lvm.nn import MLP

__all__ = ["VAE"]

_LOG_SCALE_BOUND = 7.0  # scales of the guide from 0.0009 to 1100


class VAE(PyroModule):
    r"""A variational autoencoder.

    .. math::

        z_i &\sim \mathcal{N}(0, I_L) \\
        x_i \mid z_i &\sim \mathrm{Bernoulli}\big(1 / (1 + \exp(-f(z_i)))\big)
        \quad\text{or}\quad \mathcal{N}\big(f(z_i), \mathrm{diag}(\sigma^2)\big), \qquad i = 1, \dots, N

    with the decoder :math:`f`. The model brings its own guide,

    .. math::

        q(z_i \mid x_i) = \mathcal{N}\big(m(x_i), \mathrm{diag}(s(x_i)^2)\big),

    whose :math:`m` and :math:`\log s` come from the encoder. Its log-scales are bounded smoothly, by
    :math:`7 \tanh(\cdot / 7)`: without a bound one unusual row can send `exp` to infinity, and a hard clamp
    would leave such a row without gradient. A flow :math:`f` bends it to the distribution of

    .. math:: z_i = m(x_i) + s(x_i) \, f(\epsilon_i; c(x_i)), \qquad \epsilon_i \sim \mathcal{N}(0, I_L),

    with a context :math:`c` that comes from the encoder, too.

    With `beta` other than 1 the objective (in nats) is
    :math:`\mathbb{E}_q \log p(x \mid z) - \beta\,\mathrm{KL}(q(z \mid x) \,\|\, p(z))`: a lower bound of
    :math:`\log p(x)` for :math:`\beta \ge 1` only.

    A Bernoulli likelihood is one of zeros and ones. Pyro's validation refuses values in between; with
    validation off they give the cross-entropy, which is no log-likelihood. Binarise grey values: `x > 0.5`,
    or `torch.bernoulli(x)`.

    Sites: `z` `[N, L]`, latent; `x` `[N, D]`, observed. Parameters: those of `encoder` and `decoder`, and for
    the normal likelihood `scale` `[D]`, the standard deviations :math:`\sigma`.

    Args:
        num_features: Number of features, :math:`D`.
        num_latents: Dimension of the latent space, :math:`L`.
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse.
        likelihood: `"bernoulli"` or `"normal"`.
        encoder: A module that takes `[*, D]` to `[*, 2 L + C]`: the locs, the log-scales and the context of the
            flow, if it has one. None builds an :class:`~pyro_lvm.nn.MLP`.
        decoder: A module that takes `[*, L]` to `[*, D]`, the logits or the locs. None builds an
            :class:`~pyro_lvm.nn.MLP`.
        beta: Weight of the Kullback-Leibler term.
        flow: A flow of :math:`L` features, of :mod:`pyro_lvm.flows` or of zuko, that bends the guide. Its draws should
            take one pass: :class:`~pyro_lvm.flows.IAF`, or :class:`~pyro_lvm.flows.NSF` by couplings.

    Raises:
        TypeError: If a count is not an integer, `beta` not a number, a network not a module, or `flow` no flow.
        ValueError: If a count or `beta` is not positive, the likelihood is neither of the two, or the flow has another
            number of features than there are latents.

    References:
        D. P. Kingma and M. Welling, "Auto-encoding variational Bayes" (2014),
        https://arxiv.org/abs/1312.6114, appendix C. I. Higgins et al., "beta-VAE" (2017), equation 4.
        D. P. Kingma et al., "Improved variational inference with inverse autoregressive flow" (2016).

    Example:
        >>> import torch
        >>> from pyro_lvm.models import VAE
        >>> _ = torch.manual_seed(0)
        >>> vae = VAE(num_features=6, num_latents=2, hidden=(16,))
        >>> loc, scale = vae.encode(torch.ones(4, 6))
        >>> loc.shape, scale.shape
        (torch.Size([4, 2]), torch.Size([4, 2]))
        >>> vae.decode(loc).shape
        torch.Size([4, 6])
    """

    encoder: nn.Module
    decoder: nn.Module
    flow: Any
    scale: Tensor
    _zeros: Tensor

    def __init__(
        self,
        num_features: int,
        num_latents: int,
        hidden: Sequence[int] = (256,),
        likelihood: str = "bernoulli",
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        beta: float = 1.0,
        flow: Any = None,
    ) -> None:
        super().__init__()
        self.num_features = D = check_count("num_features", num_features)
        self.num_latents = L = check_count("num_latents", num_latents)
        self.likelihood = check_choice("likelihood", likelihood, ("bernoulli", "normal"))
        self.beta = check_positive("beta", beta)
        for name, network in (("encoder", encoder), ("decoder", decoder)):
            if network is not None and not isinstance(network, nn.Module):
                raise TypeError(f"{name}: expected a torch module or None, got {network!r}")
        self.flow = None if flow is None else as_flow(flow)
        if isinstance(self.flow, Flow):
            self._check_features(self.flow.shape)
        self._num_context: int | None = 0 if self.flow is None else self.flow.context
        self.encoder = MLP(D, hidden, 2 * L + (self._num_context or 0)) if encoder is None else encoder
        self.decoder = MLP(L, hidden[::-1], D) if decoder is None else decoder
        if likelihood == "normal":
            self.scale = PyroParam(torch.ones(D), constraints.positive)
        self.register_buffer("_zeros", torch.zeros(L), persistent=False)  # knows the dtype and device

    def forward(self, x: Tensor) -> None:
        """The model.

        Args:
            x: Data, `[N, D]`. Integers are converted.

        Raises:
            TypeError: If `x` is not a tensor.
            ValueError: If `x` or the decoder's output has another shape, or `x` a floating dtype that is not
                that of the model.
        """
        x = check_rows("x", x, self.num_features, self._zeros.dtype)
        with pyro.plate("rows", len(x)):
            with poutine.scale(scale=self.beta):
                z = pyro.sample("z", dist.Normal(self._zeros, self._zeros + 1).to_event(1))
            decoded = self.decode(z)
            if self.likelihood == "normal":
                density = dist.Normal(decoded, self.scale).to_event(1)
            else:
                density = dist.Bernoulli(logits=decoded).to_event(1)
            pyro.sample("x", density, obs=x)

    @pyro_method
    def guide(self, x: Tensor) -> None:
        """The guide: a diagonal normal for each row, by the encoder, that the flow bends if there is one.

        Args:
            x: Data, `[N, D]`. Integers are converted.

        Raises:
            ValueError: If the encoder's output has another shape, or the flow another number of features than there
                are latents, and what the model raises.
        """
        loc, scale, context = self._encode(x)
        posterior = dist.Normal(loc, scale).to_event(1) if self.flow is None else self._bent(loc, scale, context)
        with pyro.plate("rows", len(loc)), poutine.scale(scale=self.beta):
            pyro.sample("z", posterior)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Locs and scales of the guide, before a flow bends it.

        Args:
            x: Data, `[N, D]`.

        Returns:
            Two tensors `[N, L]`.
        """
        return self._encode(x)[:2]

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, L = check_rows("x", x, self.num_features, self._zeros.dtype), self.num_latents
        encoded = self.encoder(x)
        C = max(0, encoded.shape[-1] - 2 * L) if self._num_context is None else self._num_context
        expected = torch.Size([len(x), 2 * L + C])
        if encoded.shape != expected:
            what = "loc and log-scale" + (f", and {C} numbers for the flow" if C else "")
            raise ValueError(
                f"encoder: expected an output of shape {list(expected)} ({what}) for an input of "
                f"shape {list(x.shape)}, got {list(encoded.shape)}"
            )
        loc, log_scale, context = encoded.split([L, L, C], -1)
        return loc, (_LOG_SCALE_BOUND * (log_scale / _LOG_SCALE_BOUND).tanh()).exp(), context if C else None

    def _bent(self, loc: Tensor, scale: Tensor, context: Tensor | None) -> FlowDistribution:
        flow = self.flow(context)
        self._check_features(flow.event_shape)
        return bent_gaussian(flow, loc, scale)

    def _check_features(self, shape: torch.Size) -> None:
        if shape != (self.num_latents,):
            raise ValueError(f"flow: expected {self.num_latents} features, one a latent, got {list(shape)}")

    def decode(self, z: Tensor) -> Tensor:
        """Logits of the Bernoulli likelihood, or locs of the normal one.

        Args:
            z: Latents, `[*, L]`.

        Returns:
            A tensor `[*, D]`.
        """
        decoded = self.decoder(z)
        expected = (*z.shape[:-1], self.num_features)
        if decoded.shape != expected:
            raise ValueError(
                f"decoder: expected an output of shape {list(expected)} for an input of shape "
                f"{list(z.shape)}, got {list(decoded.shape)}"
            )
        return decoded
