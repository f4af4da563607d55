"""Pictures: arrays in, matplotlib axes out.

Nothing here knows a model or a result, so that a picture can be made of any draws. Every function draws into the axes
that it is given, or into those of a new figure, and changes no global setting of matplotlib.
"""

from pyro_lvm.plots.axes import COLORS
from pyro_lvm.plots.checks import pareto_k, predictions, ranks, uniformity
from pyro_lvm.plots.curves import curves, dots
from pyro_lvm.plots.fits import intervals, losses, standardized
from pyro_lvm.plots.latents import images, latent_map, mixture, similarity, units

__all__ = [
    "COLORS",
    "curves",
    "dots",
    "images",
    "intervals",
    "latent_map",
    "losses",
    "mixture",
    "pareto_k",
    "predictions",
    "ranks",
    "similarity",
    "standardized",
    "uniformity",
    "units",
]
