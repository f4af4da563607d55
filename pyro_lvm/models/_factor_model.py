"""What probabilistic PCA and factor analysis share: all but the shape of the noise."""

from typing import Any, TypeVar

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import pyro_method
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.checks import check_count
from pyro_lvm.data import as_tensor
from pyro_lvm.models._base import AssignableModule, check_rows
from pyro_lvm.models._factor_posterior import impute, latent_means, observed_log_prob
from pyro_lvm.models._spread import variances
from pyro_lvm.models._steps import Params
from pyro_lvm.models.factor_model_em import FactorSteps, MissingFactorSteps
from pyro_lvm.models.rotation import varimax

Self = TypeVar("Self", bound="FactorModel")

_LOADING_SCALE = 0.1  # of the data's standard deviation: small, but at zero its gradient is zero too
_NOISE_FLOOR = 1e-6  # of a feature's variance


class FactorModel(AssignableModule):
    """Latents with a standard normal prior, features that are a linear function of them, and normal noise.

    Args:
        num_latents: Dimension of the latent space, L.
        num_features: Number of features, D.
        noise_shape: Of the parameter `noise`.
    """

    loading: Tensor
    loc: Tensor
    noise: Tensor

    def __init__(self, num_latents: int, num_features: int, noise_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.num_latents = check_count("num_latents", num_latents)
        self.num_features = check_count("num_features", num_features)
        if self.num_latents > self.num_features:
            raise ValueError(f"num_latents: expected at most num_features, {self.num_features}, got {self.num_latents}")
        self._add_param("loading", _LOADING_SCALE * torch.randn(self.num_features, self.num_latents))
        self._add_param("loc", torch.zeros(self.num_features))
        self._add_param("noise", torch.ones(noise_shape), constraints.positive)

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
        r"""The exact posterior, :math:`z_i \sim \mathcal{N}(A^{-1} W^\top \Psi^{-1} (x_i - \mu), A^{-1})`.

        Here :math:`A = I_L + W^\top \Psi^{-1} W`, and :math:`\Psi` is the diagonal matrix of the noise. It shares the
        parameters of the model.

        Args:
            x: Data, `[N, D]`. Integers are converted.
        """
        loading, loc = self.loading, self.loc
        noise = self.noise.expand(self.num_features)
        x = check_rows("x", x, self.num_features, loc.dtype)
        weighted = loading.mT / noise
        A = weighted @ loading + torch.eye(self.num_latents, dtype=loc.dtype, device=loc.device)
        A = (A + A.mT) / 2  # a product is symmetric only up to rounding
        z_loc = torch.linalg.solve(A, weighted @ (x - loc).mT).mT
        # Factorised here once; with the rows' locs torch would do it for each row
        centred = dist.MultivariateNormal(loc.new_zeros(self.num_latents), precision_matrix=A)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.MultivariateNormal(z_loc, scale_tril=centred.scale_tril))

    def em_steps(self, x: Tensor, missing: bool = False) -> FactorSteps:
        """The E-step and M-step of EM.

        No noise variance falls below a millionth of the variance of its feature; that of all features below a millionth
        of the mean.

        Args:
            x: Data, `[N, D]`, or a part of it.
            missing: Whether entries that are NaN are integrated out.

        Raises:
            ValueError: If all entries are missing.
        """
        x = check_rows("x", x, self.num_features, self.loc.dtype)
        if x.isnan().all():
            raise ValueError("x: expected at least one entry that is not missing")
        centre = x.nanmean(0).nan_to_num()
        return (MissingFactorSteps if missing else FactorSteps)(centre, _NOISE_FLOOR * variances(x))

    def marginal(self) -> dist.LowRankMultivariateNormal:
        r"""The exact distribution of a row, :math:`\mathcal{N}(\mu, W W^\top + \Psi)`."""
        return dist.LowRankMultivariateNormal(self.loc, self.loading, self.noise.expand(self.num_features))

    def latents(self, x: Any) -> Tensor:
        """Posterior means of the latents, `[N, L]`, given the entries of each row that are there.

        Args:
            x: `[N, D]`, with NaN for missing entries.
        """
        return latent_means(self._values(), check_rows("x", as_tensor(x), self.num_features, self.loc.dtype))

    def impute(self, x: Any) -> Tensor:
        """The rows with their missing entries, NaN, replaced by their means given the others.

        Args:
            x: `[N, D]`.

        Returns:
            `[N, D]`.
        """
        return impute(self._values(), check_rows("x", as_tensor(x), self.num_features, self.loc.dtype))

    def observed_log_prob(self, x: Any) -> Tensor:
        """Log-density of the entries of each row that are there, `[N]`, in nats.

        Args:
            x: `[N, D]`, with NaN for missing entries.
        """
        return observed_log_prob(self._values(), check_rows("x", as_tensor(x), self.num_features, self.loc.dtype))

    def varimax(self) -> Tensor:
        """The loading in a rotation in which each latent has few large entries, `[D, L]`; the model stays as it is.

        All rotations of a loading have the same likelihood. See :func:`pyro_lvm.models.varimax`.
        """
        return varimax(self.loading.detach())

    def initialize(self: Self, x: Any, seed: int = 0) -> Self:
        """Start from the mean and the variance of the features, with a small random loading.

        Args:
            x: Data, `[N, D]`: a tensor, an array or a data frame.
            seed: Fixes the random choices. Other seeds give other starts.

        Returns:
            The model itself.

        Raises:
            TypeError: If `x` is not a tensor.
            ValueError: If `x` has another shape or dtype, no rows, or values that are not finite.
        """
        x = self._complete_rows(x)
        spread = x.var(0, correction=0)
        typical = spread.mean() if spread.any() else torch.ones_like(spread[0])
        generator = torch.Generator().manual_seed(seed)
        normal = torch.randn(self.loading.shape, dtype=x.dtype, generator=generator, device="cpu")
        self.loc = x.mean(0)
        self.noise = torch.where(spread > 0, spread, typical) if self.noise.dim() else typical
        self.loading = _LOADING_SCALE * self.noise.sqrt().unsqueeze(-1) * normal.to(x.device)
        return self

    def _complete_rows(self, x: Any) -> Tensor:
        x = check_rows("x", as_tensor(x), self.num_features, self.loc.dtype).detach()
        if len(x) == 0:
            raise ValueError("x: expected at least one row, got none")
        if not x.isfinite().all():
            row = int((~x.isfinite().all(1)).nonzero()[0])
            raise ValueError(f"x: expected finite values, row {row} has others")
        return x

    def _values(self) -> Params:
        return {name: getattr(self, name).detach() for name in self._pyro_params}
