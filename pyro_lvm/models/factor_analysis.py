"""Factor analysis."""

from pyro_lvm.models._factor_model import FactorModel

__all__ = ["FactorAnalysis"]


class FactorAnalysis(FactorModel):
    r"""Factor analysis: probabilistic PCA in which every feature has a noise variance of its own.

    .. math::

        z_i &\sim \mathcal{N}(0, I_L) \\
        x_i \mid z_i &\sim \mathcal{N}(W z_i + \mu, \mathrm{diag}(\psi)), \qquad i = 1, \dots, N

    The model brings its own guide, the exact posterior, and steps for :func:`pyro_lvm.fit_em`, which integrate missing
    entries out if asked. The fit does not depend on the units of the features.

    Sites: `z` `[N, L]`, latent; `x` `[N, D]`, observed. Parameters: `loading` `[D, L]`, the matrix :math:`W`, known up
    to a rotation (see :meth:`varimax`); `loc` `[D]`; `noise` `[D]`, the variances :math:`\psi` (not the standard
    deviations). They can be read and assigned; an assignment is checked. A new model has a random loading, zero loc and
    unit noise; :meth:`initialize` gives it a start from data.

    The likelihood may grow without end as the noise of a feature goes to zero (a Heywood case); EM stops at a millionth
    of the feature's variance, and the ``summary()`` of its result says so.

    Args:
        num_latents: Number of factors, :math:`L`.
        num_features: Number of features, :math:`D`.

    Raises:
        TypeError: If a count is not an integer.
        ValueError: If a count is not positive, or there are more latents than features.

    References:
        D. Rubin and D. Thayer, "EM algorithms for ML factor analysis" (1982).

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> from pyro_lvm.models import FactorAnalysis
        >>> _ = torch.manual_seed(0)
        >>> scale = torch.tensor([0.1, 0.2, 2.0])
        >>> x = torch.randn(500, 1) @ torch.tensor([[1.0, 2.0, 3.0]]) + scale * torch.randn(500, 3)
        >>> model = FactorAnalysis(1, 3)
        >>> em = lvm.fit_em(model, x, max_iter=1_000, progress=False)
        >>> [round(scale, 1) for scale in model.noise.sqrt().tolist()]
        [0.1, 0.2, 2.0]
    """

    def __init__(self, num_latents: int, num_features: int) -> None:
        super().__init__(num_latents, num_features, (num_features,))
