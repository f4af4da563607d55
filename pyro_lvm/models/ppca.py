"""Probabilistic principal component analysis."""

from typing import Any

import torch

from pyro_lvm.models._factor_model import FactorModel

__all__ = ["PPCA"]

_EPS = torch.finfo(torch.float64).eps


class PPCA(FactorModel):
    r"""Probabilistic principal component analysis.

    .. math::

        z_i &\sim \mathcal{N}(0, I_L) \\
        x_i \mid z_i &\sim \mathcal{N}(W z_i + \mu, \sigma^2 I_D), \qquad i = 1, \dots, N

    The model brings its own guide, the exact posterior. With it the ELBO (in nats) equals :math:`\log p(x)`
    at any parameters and any draw, so that fits follow the exact gradient without noise. It brings steps for
    :func:`pyro_lvm.fit_em` too, which integrate missing entries out if asked, and its maximum is known,
    :meth:`closed_form`.

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
        is equation 6, the maximum of the likelihood equations 7 and 8.

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

    def __init__(self, num_latents: int, num_features: int) -> None:
        super().__init__(num_latents, num_features, ())

    def closed_form(self, x: Any) -> "PPCA":
        r"""Set the parameters to the maximum of the likelihood, from the eigenvectors of the covariance.

        With the largest eigenvalues :math:`\lambda_1, \dots, \lambda_L` and their vectors :math:`U`,

        .. math::

            \sigma^2 = \frac{1}{D - L} \sum_{j > L} \lambda_j, \qquad
            W = U \left( \mathrm{diag}(\lambda_1, \dots, \lambda_L) - \sigma^2 I \right)^{1/2}.

        Args:
            x: Data, `[N, D]`: a tensor, an array or a data frame.

        Returns:
            The model itself.

        Raises:
            TypeError: If `x` is not a tensor.
            ValueError: If `x` has another shape or dtype, no rows, or values that are not finite; if the likelihood
                grows without end, as it does where the rows vary in no more dimensions than there are latents.
        """
        x = self._complete_rows(x)
        rows = x.double() - x.double().mean(0)
        values, vectors = torch.linalg.eigh(rows.mT @ rows / len(x))
        values, vectors = values.flip(-1), vectors.flip(-1)
        L = self.num_latents
        noise = values[L:].mean() if self.num_features > L else torch.zeros(()).to(values)
        rounding = torch.finfo(x.dtype).eps ** 2 * x.double().square().mean(0).max()  # of the numbers themselves
        if not noise > rounding + _EPS * values[0]:
            raise ValueError(
                f"x: expected rows that vary in more than {L} dimensions, the number of latents; without noise the "
                "likelihood has no maximum"
            )
        self.loc, self.noise = x.double().mean(0), noise
        self.loading = vectors[:, :L] * (values[:L] - noise).clamp(min=0).sqrt()
        return self
