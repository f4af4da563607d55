"""A mixture of Gaussians with priors on all that it does not know."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import pyro_method
from pyro.ops.indexing import Vindex
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.checks import check_count, check_positive
from pyro_lvm.data import as_tensor
from pyro_lvm.models._base import AssignableModule, check_rows
from pyro_lvm.models._steps import Params
from pyro_lvm.models._wishart import Wishart
from pyro_lvm.models.bayesian_gaussian_mixture_em import (
    BayesianGaussianMixtureSteps,
    log_student_mixture,
    statistics,
)
from pyro_lvm.models.gaussian_mixture import GaussianMixture

__all__ = ["BayesianGaussianMixture"]

_SYMMETRY_TOLERANCE = 1e-5  # of the largest entry: what float32 leaves of a symmetric matrix


class BayesianGaussianMixture(AssignableModule):
    r"""A mixture of :math:`K` Gaussians with conjugate priors.

    .. math::

        \pi &\sim \mathrm{Dirichlet}(\alpha_0, \dots, \alpha_0) \\
        \Lambda_k &\sim \mathrm{Wishart}(\nu_0, \Psi_0^{-1}) \\
        \mu_k \mid \Lambda_k &\sim \mathcal{N}\big(m_0, (\beta_0 \Lambda_k)^{-1}\big), \qquad k = 1, \dots, K \\
        z_i \mid \pi &\sim \mathrm{Categorical}(\pi) \\
        x_i \mid z_i = k, \mu, \Lambda &\sim \mathcal{N}(\mu_k, \Lambda_k^{-1}), \qquad i = 1, \dots, N

    The model brings its own guide,

    .. math::

        q(\pi, \mu, \Lambda) = \mathrm{Dirichlet}(\pi \mid \alpha) \prod_k
            \mathcal{N}\big(\mu_k \mid m_k, (\beta_k \Lambda_k)^{-1}\big)\,
            \mathrm{Wishart}(\Lambda_k \mid \nu_k, \Psi_k^{-1}),

    and the coordinate ascent on its ELBO, :meth:`em_steps`. With a small :math:`\alpha_0` components that the data do
    not need keep a weight near zero.

    ==================== ===================================== ===========
    parameter            of the guide                          shape
    ==================== ===================================== ===========
    `concentration`      :math:`\alpha`                        `[K]`
    `locs`               :math:`m`                             `[K, D]`
    `loc_precision`      :math:`\beta`                         `[K]`
    `degrees_of_freedom` :math:`\nu`                           `[K]`
    `scale_tril`         Cholesky factors of :math:`\Psi`      `[K, D, D]`
    ==================== ===================================== ===========

    The matrix that is factorised is :math:`\Psi_k = W_k^{-1}`, the prior's matrix plus a scatter matrix: coordinate
    ascent adds to it, and no matrix is ever inverted.

    Sites: `weights` `[K]`, `precisions` `[K, D, D]` and `means` `[K, D]`, latent; `z` `[N]`, latent and enumerated; `x`
    `[N, D]`, observed. The parameters can be read and assigned; an assignment is checked. The prior is held in
    buffers, `prior_concentration`, `prior_loc`, `prior_loc_precision`, `prior_degrees_of_freedom` and
    `prior_scale_tril`.

    Args:
        num_components: Number of components, :math:`K`; more than are expected.
        num_features: Number of features, :math:`D`.
        weight_concentration: :math:`\alpha_0`. None takes :math:`1 / K`.
        loc: :math:`m_0`, `[D]`. None takes the mean of the data in :meth:`initialize`, and zeros before.
        loc_precision: :math:`\beta_0`.
        degrees_of_freedom: :math:`\nu_0`, more than :math:`D - 1`. None takes :math:`D`.
        scale_matrix: :math:`\Psi_0`, the scale matrix of the inverse Wishart prior of the covariances, `[D, D]`. None
            takes the covariance of the data in :meth:`initialize`, and the identity before.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a number is out of its range, or an array has another shape or values that do not fit.

    References:
        C. M. Bishop, *Pattern Recognition and Machine Learning* (2006), section 10.2. The defaults of the prior are
        those of scikit-learn.

    Example:
        >>> import torch
        >>> from pyro_lvm.models.bayesian_gaussian_mixture import BayesianGaussianMixture
        >>> _ = torch.manual_seed(0)
        >>> x = torch.cat([torch.randn(100, 2) - 4, torch.randn(300, 2) + 4])
        >>> mixture = BayesianGaussianMixture(2, 2).initialize(x)
        >>> [round(count) for count in sorted((mixture.concentration - 0.5).tolist())]
        [100, 300]
        >>> mixture.log_predictive(torch.tensor([[4.0, 4.0], [0.0, 0.0]])).argmax().item()
        0
    """

    concentration: Tensor
    locs: Tensor
    loc_precision: Tensor
    degrees_of_freedom: Tensor
    scale_tril: Tensor
    prior_concentration: Tensor
    prior_loc: Tensor
    prior_loc_precision: Tensor
    prior_degrees_of_freedom: Tensor
    prior_scale_tril: Tensor

    def __init__(
        self,
        num_components: int,
        num_features: int,
        weight_concentration: float | None = None,
        loc: Any = None,
        loc_precision: float = 1.0,
        degrees_of_freedom: float | None = None,
        scale_matrix: Any = None,
    ) -> None:
        super().__init__()
        self.num_components = K = check_count("num_components", num_components)
        self.num_features = D = check_count("num_features", num_features)
        concentration = 1 / K if weight_concentration is None else weight_concentration
        concentration = check_positive("weight_concentration", concentration)
        loc_precision = check_positive("loc_precision", loc_precision)
        df = check_positive("degrees_of_freedom", D if degrees_of_freedom is None else degrees_of_freedom)
        if df <= D - 1:
            raise ValueError(f"degrees_of_freedom: expected more than num_features - 1, {D - 1}, got {df}")

        self._loc_from_data, self._scale_from_data = loc is None, scale_matrix is None
        self.register_buffer("prior_concentration", torch.full((K,), concentration))
        self.register_buffer("prior_loc", torch.zeros(D) if loc is None else _values("loc", loc, D))
        self.register_buffer("prior_loc_precision", torch.tensor(loc_precision))
        self.register_buffer("prior_degrees_of_freedom", torch.tensor(df))
        self.register_buffer("prior_scale_tril", torch.eye(D) if scale_matrix is None else _factor(scale_matrix, D))

        self._add_param("concentration", self.prior_concentration.clone(), constraints.positive)
        self._add_param("locs", self.prior_loc + torch.randn(K, D))
        self._add_param("loc_precision", torch.full((K,), loc_precision), constraints.positive)
        self._add_param("degrees_of_freedom", torch.full((K,), df), constraints.greater_than(D - 1))
        self._add_param("scale_tril", self.prior_scale_tril.repeat(K, 1, 1), constraints.lower_cholesky)

    def forward(self, x: Tensor) -> None:
        """The model.

        Args:
            x: Data, `[N, D]`. Integers are converted.

        Raises:
            TypeError: If `x` is not a tensor.
            ValueError: If `x` has another shape, or a floating dtype that is not that of the parameters.
        """
        x = check_rows("x", x, self.num_features, self.prior_loc.dtype)
        weights = pyro.sample("weights", dist.Dirichlet(self.prior_concentration))
        scale_tril = self.prior_scale_tril.expand(self.num_components, -1, -1)
        precisions = pyro.sample("precisions", Wishart(self.prior_degrees_of_freedom, scale_tril).to_event(1))
        prior = dist.MultivariateNormal(self.prior_loc, precision_matrix=self.prior_loc_precision * precisions)
        means = pyro.sample("means", prior.to_event(1))
        scale_tril = prior.scale_tril * self.prior_loc_precision.sqrt()  # of the components, without factorising anew
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            density = dist.MultivariateNormal(Vindex(means)[..., z, :], scale_tril=Vindex(scale_tril)[..., z, :, :])
            pyro.sample("x", density, obs=x)

    @pyro_method
    def guide(self, x: Tensor) -> None:
        """The guide: the Dirichlet and Normal-Wishart posterior, for the enumerated model.

        Args:
            x: Data, `[N, D]`, which the posterior's parameters stand for.
        """
        pyro.sample("weights", dist.Dirichlet(self.concentration))
        precisions = pyro.sample("precisions", Wishart(self.degrees_of_freedom, self.scale_tril).to_event(1))
        scaled = self.loc_precision[:, None, None] * precisions
        pyro.sample("means", dist.MultivariateNormal(self.locs, precision_matrix=scaled).to_event(1))

    def em_steps(self, x: Tensor) -> BayesianGaussianMixtureSteps:
        """The E-step and M-step of coordinate ascent, under the present prior."""
        prior = {
            "concentration": self.prior_concentration,
            "locs": self.prior_loc,
            "loc_precision": self.prior_loc_precision,
            "degrees_of_freedom": self.prior_degrees_of_freedom,
            "scale_tril": self.prior_scale_tril,
        }
        return BayesianGaussianMixtureSteps(prior)

    def log_predictive(self, x: Tensor) -> Tensor:
        r"""Log-density of new rows, averaged over the posterior: a mixture of Student's t, Bishop's (10.81).

        .. math::

            p(x) \approx \sum_k \frac{\alpha_k}{\sum_j \alpha_j}\, \mathrm{St}\Big(x \,\Big|\, m_k,
                \frac{1 + \beta_k}{\beta_k (\nu_k + 1 - D)} \Psi_k,\ \nu_k + 1 - D\Big)

        Args:
            x: Rows, `[N, D]`: a tensor, an array or a data frame. Integers are converted.

        Returns:
            Log-densities, `[N]`.

        Raises:
            TypeError: If `x` is not a tensor.
            ValueError: If `x` has another shape or dtype.
        """
        dtype = self.prior_loc.dtype
        return log_student_mixture(check_rows("x", as_tensor(x), self.num_features, dtype), self._params()).to(dtype)

    def initialize(self, x: Tensor, seed: int = 0) -> BayesianGaussianMixture:
        """Set the prior from the data where it was not given, and start from the posterior given k-means clusters.

        Args:
            x: Data, `[N, D]`: a tensor, an array or a data frame.
            seed: Fixes the random choices. Other seeds give other starts.

        Returns:
            The mixture itself.

        Raises:
            TypeError: If `x` is not a tensor.
            ValueError: If `x` has another shape or dtype, values that are not finite, fewer rows than components, or,
                where `scale_matrix` was not given, a singular covariance.
        """
        x = check_rows("x", as_tensor(x), self.num_features, self.prior_loc.dtype).detach()
        with torch.random.fork_rng(devices=[]):  # a new mixture has random locs
            clusters = GaussianMixture(self.num_components, self.num_features, covariance="spherical").to(x)
        params = self._params() | {"locs": clusters.initialize(x, seed).locs.detach()}

        rows = x.double()
        if self._scale_from_data:
            deviations = rows - rows.mean(0)
            factor, info = torch.linalg.cholesky_ex(deviations.mT @ deviations / max(1, len(x) - 1))
            if info:
                raise ValueError("x: expected data with a covariance of full rank; give scale_matrix for others")
            self.prior_scale_tril = factor.to(x)
        if self._loc_from_data:
            self.prior_loc = rows.mean(0).to(x)

        nearest = torch.cdist(x, params["locs"]).argmin(-1)
        responsibilities = torch.nn.functional.one_hot(nearest, self.num_components).double()
        sums = statistics(rows, responsibilities, params["locs"].double())
        for name, value in self.em_steps(x).maximize(sums, params).items():
            setattr(self, name, value)
        return self

    def _params(self) -> Params:
        return {name: getattr(self, name).detach() for name in self._pyro_params}

    def _checked(self, name: str, value: Any) -> Tensor:
        least = self.num_features - 1
        if name == "degrees_of_freedom" and (torch.as_tensor(value) <= least).any():
            raise ValueError(
                f"degrees_of_freedom: expected numbers greater than num_features - 1, {least}, got {value}"
            )
        return super()._checked(name, value)


def _values(name: str, value: Any, *shape: int) -> Tensor:
    values = torch.as_tensor(value, dtype=torch.float64).detach()
    if values.shape != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(values.shape)}")
    if not values.isfinite().all():
        raise ValueError(f"{name}: expected finite values, got {values[~values.isfinite()][0].item()}")
    return values.to(torch.get_default_dtype())


def _factor(scale_matrix: Any, num_features: int) -> Tensor:
    matrix = _values("scale_matrix", scale_matrix, num_features, num_features)
    factor, info = torch.linalg.cholesky_ex(matrix)
    if info or (matrix - matrix.mT).abs().max() > _SYMMETRY_TOLERANCE * matrix.abs().max():
        raise ValueError("scale_matrix: expected a symmetric positive definite matrix")
    return factor
