"""Bayesian logistic regression, binary and multinomial."""

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor

from pyro_lvm.checks import check_count, check_positive
from pyro_lvm.data import as_tensor
from pyro_lvm.models._base import check_rows

__all__ = ["BayesianLogisticRegression"]

_CHUNK = 2**24  # probabilities held at a time by predict_proba


class BayesianLogisticRegression(PyroModule):
    r"""Bayesian logistic regression.

    With two classes (:math:`C = 2`):

    .. math::

        w &\sim \mathcal{N}(0, s^2 I_D), \qquad b \sim \mathcal{N}(0, s_b^2) \\
        y_i \mid x_i, w, b &\sim \mathrm{Bernoulli}\big(1 / (1 + \exp(-x_i^\top w - b))\big),
        \qquad i = 1, \dots, N

    With more (all :math:`C` columns have the prior, which makes them identifiable):

    .. math::

        w_c &\sim \mathcal{N}(0, s^2 I_D), \qquad b_c \sim \mathcal{N}(0, s_b^2), \qquad c = 1, \dots, C \\
        y_i \mid x_i, w, b &\sim \mathrm{Categorical}\big(\mathrm{softmax}_c(x_i^\top w_c + b_c)\big)

    Sites: `weights`, latent, `[D]` for two classes and `[D, C]` for more; `intercept`, latent, a scalar for
    two classes and `[C]` for more, absent with `intercept=False`; `y` `[N]`, observed, classes 0 to C - 1.
    The model has no parameters and no guide of its own. Its ELBO is in nats.

    Args:
        num_features: Number of features, :math:`D`.
        num_classes: Number of classes, :math:`C`.
        prior_scale: Prior standard deviation of the weights, :math:`s`.
        intercept: Whether there is an intercept.
        intercept_scale: Prior standard deviation of the intercept, :math:`s_b`. None takes `prior_scale`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `num_features` or a scale is not positive, `num_classes` is less than two, or
            `intercept_scale` is given without an intercept.

    References:
        C. M. Bishop, *Pattern Recognition and Machine Learning* (2006), sections 4.3 and 4.5.

    Example:
        >>> import torch
        >>> from pyro_lvm.models import BayesianLogisticRegression
        >>> model = BayesianLogisticRegression(num_features=1)
        >>> draws = {"weights": torch.tensor([[1.0], [3.0]]), "intercept": torch.tensor([0.0, 0.0])}
        >>> probs = model.predict_proba(torch.tensor([[0.0], [1.0]]), draws)
        >>> [[round(p, 4) for p in row] for row in probs.tolist()]
        [[0.5, 0.5], [0.1582, 0.8418]]
    """

    prior_scale: Tensor
    intercept_scale: Tensor

    def __init__(
        self,
        num_features: int,
        num_classes: int = 2,
        prior_scale: float = 1.0,
        intercept: bool = True,
        intercept_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.num_features = check_count("num_features", num_features)
        self.num_classes = check_count("num_classes", num_classes)
        if self.num_classes < 2:
            raise ValueError(f"num_classes: expected at least 2, got {num_classes}")
        if not isinstance(intercept, bool):
            raise TypeError(f"intercept: expected True or False, got {intercept!r}")
        if intercept_scale is not None and not intercept:
            raise ValueError(f"intercept_scale: expected None with intercept=False, got {intercept_scale!r}")
        self.intercept = intercept
        scale = check_positive("prior_scale", prior_scale)
        self.register_buffer("prior_scale", torch.tensor(scale), persistent=False)
        if intercept_scale is not None:
            scale = check_positive("intercept_scale", intercept_scale)
        self.register_buffer("intercept_scale", torch.tensor(scale), persistent=False)

    def forward(self, X: Tensor, y: Tensor | None = None) -> Tensor:
        """The model.

        Args:
            X: Inputs, `[N, D]`. Integers are converted.
            y: Classes, `[N]`, integers or floats from 0 to C - 1. None draws them.

        Returns:
            The classes, `[N]`.

        Raises:
            TypeError: If `X` is not a tensor.
            ValueError: If `X` or `y` has another shape, or `X` a floating dtype that is not that of the
                model.
        """
        D, C, binary = self.num_features, self.num_classes, self.num_classes == 2
        X = check_rows("X", X, D, self.prior_scale.dtype)
        if y is not None and y.shape != X.shape[:1]:
            raise ValueError(f"y: expected shape {list(X.shape[:1])}, got {list(y.shape)}")
        zero = torch.zeros_like(self.prior_scale)
        prior = dist.Normal(zero, self.prior_scale).expand([D] if binary else [D, C])
        weights = pyro.sample("weights", prior.to_event(1 if binary else 2))
        intercept = zero
        if self.intercept:
            prior = dist.Normal(zero, self.intercept_scale)
            intercept = pyro.sample("intercept", prior if binary else prior.expand([C]).to_event(1))

        # Draws that come with outer plates have a dimension of size 1 for the row plate: [S, 1, D] and [S, 1]
        logits = X @ (weights.unsqueeze(-1) if binary else weights)
        if logits.dim() > 2:
            logits = logits.squeeze(-3)
        if binary:
            logits = logits.squeeze(-1)
        logits = logits + intercept
        with pyro.plate("rows", len(X)):
            if binary:
                obs = None if y is None else y.to(logits.dtype)
                return pyro.sample("y", dist.Bernoulli(logits=logits), obs=obs)
            obs = y if y is None or y.is_floating_point() else y.long()
            return pyro.sample("y", dist.Categorical(logits=logits), obs=obs)

    @torch.no_grad()
    def predict_proba(self, X: Tensor, draws: Mapping[str, Tensor]) -> Tensor:
        r"""Probabilities of the classes, averaged over draws.

        .. math:: p(y = c \mid x) \approx \frac{1}{S} \sum_s p(y = c \mid x, w_s, b_s)

        Args:
            X: Inputs, `[N, D]`: a tensor, an array or a data frame. Integers are converted.
            draws: Posterior draws, with a leading dimension of draws at each site (`weights` `[S, D]` or
                `[S, D, C]`, `intercept` `[S]` or `[S, C]`; other sites are ignored), or a single point
                without it.

        Returns:
            Probabilities, `[N, C]`.

        Raises:
            TypeError: If `X` is not a tensor.
            ValueError: If a site is missing, or a shape or dtype does not fit.
        """
        D, C, binary = self.num_features, self.num_classes, self.num_classes == 2
        X = check_rows("X", as_tensor(X), D, self.prior_scale.dtype)
        point: dict[str, tuple[int, ...]] = {"weights": (D,) if binary else (D, C)}
        if self.intercept:
            point["intercept"] = () if binary else (C,)
        missing = [name for name in point if name not in draws]
        if missing:
            raise ValueError(f"draws: expected the sites {list(point)}, got {list(draws)}")
        values = {name: torch.as_tensor(draws[name]).to(X) for name in point}
        if values["weights"].dim() == len(point["weights"]):
            values = {name: value.unsqueeze(0) for name, value in values.items()}
        num_draws = values["weights"].shape[:1]
        for name, shape in point.items():
            if values[name].shape != num_draws + shape or 0 in num_draws:
                raise ValueError(
                    f"draws: expected {name!r} of shape [{', '.join(map(str, ('S', *shape)))}] for S draws, "
                    f"or {list(shape)} for a point, and got "
                    + ", ".join(f"{key!r} of shape {list(torch.as_tensor(draws[key]).shape)}" for key in point)
                )

        total = X.new_zeros(len(X), C)
        weights = values["weights"].unsqueeze(-1) if binary else values["weights"]  # [S, D, C] or [S, D, 1]
        intercept = values["intercept"] if self.intercept else weights.new_zeros(len(weights))
        intercept = intercept.reshape(len(weights), 1, -1)
        size = max(1, _CHUNK // max(1, total.numel()))
        for w, b in zip(weights.split(size), intercept.split(size), strict=True):
            logits = X @ w + b
            # each class by itself: 1 - p would round small probabilities to 0
            probs = torch.cat([-logits, logits], -1).sigmoid() if binary else logits.softmax(-1)
            total += probs.sum(0)
        return total / len(weights)
