"""A mixture of Gaussians."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.checks import check_choice, check_count
from pyro_lvm.data import as_tensor
from pyro_lvm.models._base import check_rows
from pyro_lvm.models._gaussian_posterior import impute, observed_log_prob
from pyro_lvm.models._gaussian_start import cluster_moments
from pyro_lvm.models._mixture_base import MixtureModule, clusters
from pyro_lvm.models._spread import variance_floor
from pyro_lvm.models.gaussian_mixture_em import GaussianMixtureSteps
from pyro_lvm.models.gaussian_mixture_missing import MissingGaussianMixtureSteps

__all__ = ["GaussianMixture"]

_COVARIANCES = ("full", "tied", "diag", "spherical")
_SYMMETRY_TOLERANCE = 1e-5  # of the largest entry: what float32 leaves of a symmetric matrix


class GaussianMixture(MixtureModule):
    r"""A mixture of :math:`K` Gaussians.

    .. math::

        z_i &\sim \mathrm{Categorical}(\pi) \\
        x_i \mid z_i = k &\sim \mathcal{N}(\mu_k, \Sigma_k), \qquad i = 1, \dots, N

    The component :math:`z_i` is marked for enumeration, so that a fit sums it out (`TraceEnum_ELBO`, in nats)
    and needs no guide.

    ============== ============================================== =================
    `covariance`   :math:`\Sigma_k`                               `covariances`
    ============== ============================================== =================
    `"full"`       any positive definite matrix                   `[K, D, D]`
    `"tied"`       one matrix for all components                  `[D, D]`
    `"diag"`       diagonal                                       `[K, D]`
    `"spherical"`  a multiple of the identity                     `[K]`
    ============== ============================================== =================

    Sites: `z` `[N]`, latent; `x` `[N, D]`, observed. Parameters: `weights`, `locs` and `scale_tril` (the
    Cholesky factors, for `"full"` and `"tied"`) or `scale` (the standard deviations, for `"diag"` and
    `"spherical"`). All of them, and `covariances`, can be read and assigned; an assignment is checked. A new
    mixture has equal weights, standard normal locs and unit covariances; :meth:`initialize` gives it a start
    from data.

    Args:
        num_components: Number of components, :math:`K`.
        num_features: Number of features, :math:`D`.
        covariance: One of `"full"`, `"tied"`, `"diag"`, `"spherical"`.

    Raises:
        TypeError: If a count is not an integer.
        ValueError: If a count is not positive, or `covariance` is none of the four.

    References:
        C. M. Bishop, *Pattern Recognition and Machine Learning* (2006), section 9.2.

    Example:
        >>> import torch
        >>> from pyro_lvm.models import GaussianMixture
        >>> _ = torch.manual_seed(0)
        >>> x = torch.cat([torch.randn(100, 2) - 4, torch.randn(300, 2) + 4])
        >>> mixture = GaussianMixture(2, 2, covariance="diag").initialize(x)
        >>> [round(weight, 1) for weight in sorted(mixture.weights.tolist())]
        [0.3, 0.7]
        >>> mixture.covariances = torch.ones(2, 2)
        >>> mixture.scale.tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """

    weights: Tensor
    locs: Tensor
    scale_tril: Tensor
    scale: Tensor

    def __init__(self, num_components: int, num_features: int, covariance: str = "full") -> None:
        super().__init__()
        self.num_components = K = check_count("num_components", num_components)
        self.num_features = D = check_count("num_features", num_features)
        self.covariance = check_choice("covariance", covariance, _COVARIANCES)
        self._add_param("weights", torch.full((K,), 1 / K), constraints.simplex)
        self._add_param("locs", torch.randn(K, D))
        if covariance in ("full", "tied"):
            shape: tuple[int, ...] = (K, D, D) if covariance == "full" else (D, D)
            self._add_param("scale_tril", torch.eye(D).expand(shape), constraints.lower_cholesky)
        else:
            shape = (K, D) if covariance == "diag" else (K,)
            self._add_param("scale", torch.ones(shape), constraints.positive)

    def forward(self, x: Tensor) -> None:
        """The model.

        Args:
            x: Data, `[N, D]`. Integers are converted.

        Raises:
            TypeError: If `x` is not a tensor.
            ValueError: If `x` has another shape, or a floating dtype that is not that of the parameters.
        """
        weights, locs = self.weights, self.locs
        scale = self.scale_tril if self.covariance in ("full", "tied") else self.scale
        x = check_rows("x", x, self.num_features, locs.dtype)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            if self.covariance == "full":
                density = dist.MultivariateNormal(locs[z], scale_tril=scale[z])
            elif self.covariance == "tied":
                density = dist.MultivariateNormal(locs[z], scale_tril=scale)
            elif self.covariance == "diag":
                density = dist.Normal(locs[z], scale[z]).to_event(1)
            else:
                density = dist.Normal(locs[z], scale[z].unsqueeze(-1)).to_event(1)
            pyro.sample("x", density, obs=x)

    def em_steps(self, x: Tensor, missing: bool = False) -> GaussianMixtureSteps:
        """The E-step and M-step of EM.

        No variance falls below a millionth of that of the least varying feature, or a millionth if none varies.

        Args:
            x: Data, `[N, D]`, or a part of it.
            missing: Whether entries that are NaN are integrated out.
        """
        x = check_rows("x", x, self.num_features, self.locs.dtype)
        floor = variance_floor(x)
        return (MissingGaussianMixtureSteps if missing else GaussianMixtureSteps)(floor)

    def _log_densities(self, x: Tensor) -> Tensor:
        x = check_rows("x", as_tensor(x), self.num_features, self.locs.dtype)
        if self.covariance in ("full", "tied"):
            return dist.MultivariateNormal(self.locs, scale_tril=self.scale_tril).log_prob(x.unsqueeze(1))
        scale = self.scale if self.covariance == "diag" else self.scale.unsqueeze(-1)
        return dist.Normal(self.locs, scale).to_event(1).log_prob(x.unsqueeze(1))

    def impute(self, x: Tensor) -> Tensor:
        """The rows with their missing entries, NaN, replaced by their means given the others.

        Args:
            x: `[N, D]`.

        Returns:
            `[N, D]`.
        """
        return impute(self._values(), check_rows("x", as_tensor(x), self.num_features, self.locs.dtype))

    def observed_log_prob(self, x: Tensor) -> Tensor:
        """Log-density of the entries of each row that are there, `[N]`, in nats.

        Args:
            x: `[N, D]`, with NaN for missing entries.
        """
        return observed_log_prob(self._values(), check_rows("x", as_tensor(x), self.num_features, self.locs.dtype))

    def _values(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).detach() for name in self._pyro_params}

    @property
    def covariances(self) -> Tensor:
        """Covariances of the components, in the shapes of scikit-learn (see the table above)."""
        if self.covariance in ("full", "tied"):
            scale_tril = self.scale_tril
            return scale_tril @ scale_tril.mT
        return self.scale.square()

    @covariances.setter
    def covariances(self, value: Any) -> None:
        old = self.covariances
        new = torch.as_tensor(value, dtype=torch.float64, device=old.device).detach()
        if new.shape != old.shape:
            raise ValueError(
                f"covariances: expected shape {list(old.shape)} for covariance={self.covariance!r}, "
                f"got {list(new.shape)}"
            )
        if not new.isfinite().all():
            raise ValueError(f"covariances: expected finite values, got {new[~new.isfinite()][0].item()}")
        if self.covariance in ("diag", "spherical"):
            if not (new > 0).all():
                raise ValueError(f"covariances: expected positive variances, got {new.min().item()}")
            self.scale = new.sqrt()
            return
        if (new - new.mT).abs().max() > _SYMMETRY_TOLERANCE * new.abs().max():
            raise ValueError("covariances: expected symmetric matrices")
        scale_tril, info = torch.linalg.cholesky_ex(new)
        if info.any():
            which = f", component {int(info.nonzero()[0])} is not" if self.covariance == "full" else ""
            raise ValueError(f"covariances: expected positive definite matrices{which}")
        self.scale_tril = scale_tril

    def initialize(self, x: Tensor, seed: int = 0) -> "GaussianMixture":
        r"""Start from k-means clusters, the tightest of five runs that are themselves started by k-means++.

        Every cluster gets one pseudo-row: its weight is :math:`(n_k + 1) / (N + K)`, and its covariance is
        mixed with the diagonal of the data's covariance, shrunk by :math:`K^{2/D}` (Fraley and Raftery 2007).
        So clusters of one row, or of none, have a usable start too. A feature that does not vary has the variance
        of the least varying one there.

        Args:
            x: Data, `[N, D]`: a tensor, an array or a data frame.
            seed: Fixes the random choices. Other seeds give other starts.

        Returns:
            The mixture itself.

        Raises:
            TypeError: If `x` is not a tensor.
            ValueError: If `x` has another shape or dtype, values that are not finite, or fewer rows than
                components.

        References:
            D. Arthur and S. Vassilvitskii, "k-means++: the advantages of careful seeding" (2007).
            C. Fraley and A. E. Raftery, "Bayesian regularization for normal mixture estimation and
            model-based clustering" (2007).
        """
        x = check_rows("x", as_tensor(x), self.num_features, self.locs.dtype)
        data = x.detach().cpu().numpy()
        N, K = len(data), self.num_components
        if N < K:
            raise ValueError(f"x: expected at least as many rows as components, {K}, got {N}")
        if not np.isfinite(data).all():
            row = int(np.nonzero(~np.isfinite(data).all(1))[0][0])
            raise ValueError(f"x: expected finite values, row {row} has others")

        labels = clusters(data, K, seed)
        locs, covariances = cluster_moments(x, labels, K, self.covariance)
        self.weights = torch.as_tensor((np.bincount(labels, minlength=K) + 1) / (N + K))
        self.locs = torch.as_tensor(locs)
        self.covariances = torch.as_tensor(covariances)
        return self
