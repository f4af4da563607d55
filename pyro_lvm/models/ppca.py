"""Probabilistic principal component analysis."""

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import pyro_method
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.checks import check_count
from pyro_lvm.data import as_tensor
from pyro_lvm.models._base import AssignableModule, check_rows

__all__ = ["PPCA"]

_LOADING_SCALE = 0.1  # of the data's standard deviation: small, but at zero its gradient is zero too


class PPCA(AssignableModule):
    r"""Probabilistic principal component analysis.

    .. math::

        z_i &\sim \mathcal{N}(0, I_L) \\
        x_i \mid z_i &\sim \mathcal{N}(W z_i + \mu, \sigma^2 I_D), \qquad i = 1, \dots, N

    The model brings its own guide, the exact posterior. With it the ELBO (in nats) equals :math:`\log p(x)`
    at any parameters and any draw, so that fits follow the exact gradient without noise.

    Sites: `z` `[N, L]`, latent; `x` `[N, D]`, observed. Parameters: `loading` `[D, L]`, the matrix :math:`W`;
    `loc` `[D]`, the mean :math:`\mu`; `noise`, a scalar, the variance :math:`\sigma^2` (not the standard
    deviation). They can be read and assigned; an assignment is checked. A new model has a random loading,
    zero loc and unit noise; :meth:`initialize` gives it a start from data.

    Args:
        num_latents: Dimension of the latent space, :math:`L`.
        num_features: Number of features, :math:`D`.

    Raises:
        TypeError: If a count is not an integer.
        ValueError: If a count is not positive, or there are more latents than features.

    References:
        M. E. Tipping and C. M. Bishop, "Probabilistic principal component analysis" (1999): the posterior
        is equation 6.

    Example:
        >>> import torch
        >>> from pyro_lvm.models import PPCA
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(100, 1) @ torch.tensor([[1.0, 2.0, 3.0]]) + 0.1 * torch.randn(100, 3)
        >>> ppca = PPCA(1, 3).initialize(x)
        >>> ppca.loading = torch.tensor([[1.0], [2.0], [3.0]])
        >>> ppca.noise = 0.01
        >>> ppca.marginal().log_prob(x).shape
        torch.Size([100])
    """

    loading: Tensor
    loc: Tensor
    noise: Tensor

    def __init__(self, num_latents: int, num_features: int) -> None:
        super().__init__()
        self.num_latents = check_count("num_latents", num_latents)
        self.num_features = check_count("num_features", num_features)
        if self.num_latents > self.num_features:
            raise ValueError(f"num_latents: expected at most num_features, {self.num_features}, got {self.num_latents}")
        self._add_param("loading", _LOADING_SCALE * torch.randn(self.num_features, self.num_latents))
        self._add_param("loc", torch.zeros(self.num_features))
        self._add_param("noise", torch.tensor(1.0), constraints.positive)

    def forward(self, x: Tensor) -> None:
        """The model.

        Args:
            x: Data, `[N, D]`. Integers are converted.

        Raises:
            TypeError: If `x` is not a tensor.
            ValueError: If `x` has another shape, or a floating dtype that is not that of the parameters.
        """
        loading, loc, noise = self.loading, self.loc, self.noise
        x = check_rows("x", x, self.num_features, loc.dtype)
        with pyro.plate("rows", len(x)):
            zeros = loading.new_zeros(self.num_latents)
            z = pyro.sample("z", dist.Normal(zeros, zeros + 1).to_event(1))
            pyro.sample("x", dist.Normal(z @ loading.mT + loc, noise.sqrt()).to_event(1), obs=x)

    @pyro_method
    def guide(self, x: Tensor) -> None:
        r"""The exact posterior, :math:`z_i \sim \mathcal{N}(M^{-1} W^\top (x_i - \mu), \sigma^2 M^{-1})`.

        Here :math:`M = W^\top W + \sigma^2 I_L`. It shares the parameters of the model.

        Args:
            x: Data, `[N, D]`. Integers are converted.
        """
        loading, loc, noise = self.loading, self.loc, self.noise
        x = check_rows("x", x, self.num_features, loc.dtype)
        M = loading.mT @ loading + noise * torch.eye(self.num_latents, dtype=loc.dtype, device=loc.device)
        M = (M + M.mT) / 2  # a product is symmetric only up to rounding
        z_loc = torch.linalg.solve(M, loading.mT @ (x - loc).mT).mT
        # Factorised here once; with the rows' locs torch would do it for each row
        centred = dist.MultivariateNormal(loc.new_zeros(self.num_latents), precision_matrix=M / noise)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.MultivariateNormal(z_loc, scale_tril=centred.scale_tril))

    def marginal(self) -> dist.LowRankMultivariateNormal:
        r"""The exact distribution of a row, :math:`\mathcal{N}(\mu, W W^\top + \sigma^2 I_D)`."""
        return dist.LowRankMultivariateNormal(self.loc, self.loading, self.noise.expand(self.num_features))

    def initialize(self, x: Tensor, seed: int = 0) -> "PPCA":
        """Start from the mean and the mean variance of the features, with a small random loading.

        Args:
            x: Data, `[N, D]`: a tensor, an array or a data frame.
            seed: Fixes the random choices. Other seeds give other starts.

        Returns:
            The model itself.

        Raises:
            TypeError: If `x` is not a tensor.
            ValueError: If `x` has another shape or dtype, no rows, or values that are not finite.
        """
        x = check_rows("x", as_tensor(x), self.num_features, self.loc.dtype).detach()
        if len(x) == 0:
            raise ValueError("x: expected at least one row, got none")
        if not x.isfinite().all():
            row = int((~x.isfinite().all(1)).nonzero()[0])
            raise ValueError(f"x: expected finite values, row {row} has others")
        variance = x.var(0, correction=0).mean()
        variance = torch.where(variance > 0, variance, torch.ones_like(variance))
        generator = torch.Generator().manual_seed(seed)
        normal = torch.randn(self.loading.shape, dtype=x.dtype, generator=generator, device="cpu")
        self.loc = x.mean(0)
        self.noise = variance
        self.loading = _LOADING_SCALE * variance.sqrt() * normal.to(x.device)
        return self
