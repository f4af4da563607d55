"""The flows of zuko, whose import turns the validation of all distributions off: here it stays as it is."""

import torch

_validates = torch.distributions.Distribution._validate_args
from zuko.flows import MAF, NSF  # noqa: E402

torch.distributions.Distribution.set_default_validate_args(_validates)

__all__ = ["MAF", "NSF"]
