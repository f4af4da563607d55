"""Mixtures of any family, and of several at once."""

from collections.abc import Iterable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.checks import check_count
from pyro_lvm.data import as_tensor
from pyro_lvm.models._base import check_rows
from pyro_lvm.models._family_module import FamilyModule
from pyro_lvm.models._gaussian_rows import Gaussian
from pyro_lvm.models._mixture_base import MixtureModule, clusters
from pyro_lvm.models._row_families import Bernoulli, Categorical, Exponential, Gamma, Multinomial, Poisson
from pyro_lvm.models._row_family import Family

__all__ = ["Bernoulli", "Categorical", "Exponential", "Gamma", "Gaussian", "Mixture", "Multinomial", "Poisson"]

_TAKEN = ("z", "rows", "weights")


class Mixture(MixtureModule, FamilyModule):
    r"""A mixture of :math:`K` components of any family, independent columns given the component.

    .. math::

        z_i &\sim \mathrm{Categorical}(\pi) \\
        x_{id} \mid z_i = k &\sim F(\theta_{kd}), \qquad i = 1, \dots, N, \quad d = 1, \dots, D

    The component :math:`z_i` is marked for enumeration, so that a fit sums it out and needs no guide. Mixtures of
    Bernoulli and of categorical columns are known as latent class analysis.

    ================================================ ========================= ========================================
    `family`                                         entries of `x`            parameters
    ================================================ ========================= ========================================
    `"gaussian"`, `Gaussian(D)`                      real                      `locs` `[K, D]`, `scale_tril` `[K, D, D]`
    `"gaussian"`, `Gaussian(D, "diag")`              real                      `locs` `[K, D]`, `scale` `[K, D]`
    `"poisson"`, `Poisson(D)`                        counts                    `rate` `[K, D]`
    `"multinomial"`, `Multinomial(D)`                counts that share a total `probs` `[K, D]`
    `"bernoulli"`, `Bernoulli(D)`                    0 or 1                    `probs` `[K, D]`
    `"categorical"`, `Categorical(C, D)`             0 to C - 1                `probs` `[K, D, C]`
    `"categorical"`, `Categorical([C_0, C_1, ...])`  0 to C_j - 1 in column j  `probs_j` `[K, C_j]`
    `"exponential"`, `Exponential(D)`                non-negative              `rate` `[K, D]`
    `"gamma"`, `Gamma(D)`                            positive                  `concentration`, `rate` `[K, D]`
    ================================================ ========================= ========================================

    A dictionary of families makes a product of them, with a data argument for each: `Mixture(3, {"visits": Poisson(2),
    "answers": Categorical([3, 4])})` is called with `[N, 2]` counts and `[N, 2]` answers, which share their component.
    Its sites and parameters have the names of the dictionary: `visits` and `visits_rate`.

    Sites: `z` `[N]`, latent; `x` `[N, D]`, observed. Columns with different numbers of categories are sites of their
    own, `x_0`, `x_1` and so on. Parameters: `weights` `[K]` and those of the table, which can be read and assigned;
    an assignment is checked. A new mixture has equal weights and random components; :meth:`initialize` gives it a
    start from data.

    Args:
        num_components: Number of components, :math:`K`.
        family: A family, the name of one, or a dictionary of families.
        sizes: Arguments of a family that is given by its name: `num_features`; `num_categories` of a categorical one;
            `total_count` of a multinomial one, the total of rows that are drawn (observed rows have their own).

    Raises:
        TypeError: If a number is not an integer, or `family` no family.
        ValueError: If a number is not positive, or `family` an unknown name, an empty dictionary or one with names that
            cannot be used.

    References:
        G. McLachlan and D. Peel, *Finite Mixture Models* (2000).
        P. F. Lazarsfeld and N. W. Henry, *Latent Structure Analysis* (1968).

    Example:
        >>> import torch
        >>> from pyro_lvm.models.mixture import Mixture
        >>> _ = torch.manual_seed(0)
        >>> visits = torch.poisson(torch.tensor([[1.0, 9.0]]).repeat(100, 1))
        >>> visits[:30] = visits[:30].flip(-1)
        >>> mixture = Mixture(2, "poisson", num_features=2).initialize(visits)
        >>> [round(weight, 1) for weight in sorted(mixture.weights.tolist())]
        [0.3, 0.7]
        >>> mixture.labels(visits).bincount().sort().values.tolist()
        [30, 70]
    """

    def __init__(self, num_components: int, family: str | Family | Mapping[str, Family], **sizes: Any) -> None:
        super().__init__()
        self.num_components = K = check_count("num_components", num_components)
        self._add_param("weights", torch.full((K,), 1 / K), constraints.simplex)
        self._add_families(K, family, sizes, _TAKEN, "family")

    def forward(self, *data: Tensor) -> None:
        """The model.

        Args:
            data: Rows, `[N, D]`; for a product as many tensors as it has families, in their order. Integers and
                booleans are converted.

        Raises:
            TypeError: If the number of arguments is wrong, or one is not a tensor.
            ValueError: If a tensor has another shape, a floating dtype that is not that of the parameters, or (with
                Pyro's validation on) entries that the family cannot have.
        """
        rows = self._rows(data, check_values=is_validation_enabled())
        with pyro.plate("rows", len(next(iter(rows.values())))):
            z = pyro.sample("z", dist.Categorical(self.weights), infer={"enumerate": "parallel"})
            for part, x in rows.items():
                params = {name: value[z] for name, value in self._params(part).items()}
                for suffix, distribution, value in self.families[part].observe(params, x):
                    pyro.sample(part + suffix, distribution, obs=value)

    def initialize(self, *data: Any, seed: int = 0) -> "Mixture":
        r"""Start from k-means clusters, the tightest of five runs that are themselves started by k-means++.

        The columns are transformed so that rows of a component spread about as far in any component: roots of counts,
        answers as indicators, logarithms of positive numbers. Every cluster gets one pseudo-row, a mean row of the
        data. So its weight is :math:`(n_k + 1) / (N + K)`, and no rate or probability is 0.

        Args:
            data: The arguments of the model: tensors, arrays or data frames.
            seed: Fixes the random choices. Other seeds give other starts.

        Returns:
            The mixture itself.

        Raises:
            TypeError: If the number of arguments is wrong, or one is not a tensor.
            ValueError: If the data has another shape or dtype, entries that the family cannot have, or fewer rows than
                components.

        References:
            D. Arthur and S. Vassilvitskii, "k-means++: the advantages of careful seeding" (2007).
        """
        rows = {part: x.detach().cpu().double() for part, x in self._rows(map(as_tensor, data)).items()}
        features = torch.cat([self.families[part].features(x) for part, x in rows.items()], -1)
        N, K = len(features), self.num_components
        if N < K:
            raise ValueError(f"{next(iter(rows))}: expected at least as many rows as components, {K}, got {N}")
        membership = torch.eye(K, dtype=features.dtype)[torch.as_tensor(clusters(features.numpy(), K, seed))]
        self.weights = (membership.sum(0) + 1) / (N + K)
        for part, x in rows.items():
            for name, value in self.families[part].start(x, membership).items():
                setattr(self, self._attributes[part][name], value)
        return self

    def _log_densities(self, *data: Any) -> Tensor:
        return self._densities(self._rows(map(as_tensor, data)))

    def _rows(self, data: Iterable[Any], check_values: bool = True) -> dict[str, Tensor]:
        """The data arguments by name, in the dtype of the parameters, or an error that says what is wrong with them."""
        data, names = tuple(data), ", ".join(self.families)
        if len(data) != len(self.families):
            raise TypeError(f"data: expected {len(self.families)} arguments ({names}), got {len(data)}")
        rows = {
            part: check_rows(part, x, family.num_features, self.weights.dtype)
            for (part, family), x in zip(self.families.items(), data, strict=True)
        }
        if len({len(x) for x in rows.values()}) > 1:
            raise ValueError(
                f"{names}: expected equally many rows, got {', '.join(str(len(x)) for x in rows.values())}"
            )
        if check_values:
            self._check_entries(rows)
        return rows
