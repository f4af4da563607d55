"""A model and a guide as estimators see them: which latents belong to a row, and where parameters are."""

from __future__ import annotations

from dataclasses import dataclass

from pyro_lvm.params import Place
from pyro_lvm.sites import RowPlate, Site


@dataclass
class Structure:
    """What :func:`pyro_lvm.elbo.look.look` has found.

    Attributes:
        max_plate_nesting: How many dimensions the plates take.
        row_plate: The plate of the rows, if there is one.
        rows: Its name, and the name that the guide gives it.
        local: The guide's latent sites inside it.
        shared: The guide's latent sites outside it, which all rows share.
        auxiliary: The guide's sites that the model does not have.
        enumerated: The model's sites that are summed out.
        entangled: Latents whose prior depends on an enumerated site, so that they have no term of their own.
        outside: The model's sites outside the rows that are no latents.
        tied_by: An enumerated site outside the row plate, through which rows depend on each other; empty if none.
        separate: Whether rows are independent of each other given the shared latents; False where nobody asked.
        score: The guide's sites that have no reparametrised draws.
        points: The guide's sites that are where its parameters say, and not where a draw says.
        guide_draws: Whether the guide draws random numbers besides its sites, as dropout does.
        model_draws: The same of the model.
        subsampled: Other plates that take a random part of their elements.
        draws_subsamples: Whether some plate draws its part by itself.
        common_parameter: A parameter that both model and guide use; empty if there is none.
        parameters: Where modules hold parameters.
        buffers: Where modules hold buffers.
        vectorizes: Whether several particles can be drawn at a time; None until it has been tried.
    """

    max_plate_nesting: int
    row_plate: RowPlate | None
    rows: frozenset[str]
    local: frozenset[str]
    shared: frozenset[str]
    auxiliary: frozenset[str]
    enumerated: tuple[str, ...]
    entangled: tuple[str, ...]
    outside: tuple[str, ...]
    tied_by: str
    separate: bool
    score: tuple[str, ...]
    points: tuple[str, ...]
    guide_draws: bool
    model_draws: bool
    subsampled: tuple[str, ...]
    draws_subsamples: bool
    common_parameter: str
    parameters: list[Place]
    buffers: list[Place]
    vectorizes: bool | None = None

    @property
    def shared_latents(self) -> list[str]:
        """Latents of the model that all rows share."""
        return sorted(self.shared - self.auxiliary)

    @property
    def why_together(self) -> str:
        """Why rows have no bounds of their own."""
        if self.row_plate is None:
            return "no plate was found around them"
        if self.tied_by:
            return f"they depend on the enumerated site {self.tied_by!r}"
        if not self.local:
            return f"they share the latents {self.shared_latents} and have none of their own to draw"
        return "the guide draws their latents in one piece, or what lies elsewhere depends on them"

    def why_not_along_draws(self, twice: bool = False) -> str:
        """Why no gradient can follow the draws alone; empty if it can.

        Args:
            twice: Whether the model must run a second time too.
        """
        if self.common_parameter:
            return (
                f"the parameter {self.common_parameter!r} belongs to the model too, which would lose its part of the "
                "gradient"
            )
        if self.points:
            return f"the guide puts {self.points[0]!r} where its parameters say, not where a draw says"
        if self.guide_draws or (twice and self.model_draws):
            which = "guide" if self.guide_draws else "model"
            return f"the {which} draws random numbers besides its sites, as dropout does, and would not draw them again"
        return ""

    def in_rows(self, site: Site) -> bool:
        """Whether a site of model or guide belongs to a row."""
        return site["name"] in self.local or any(f.name in self.rows for f in site["cond_indep_stack"])


def refuse_tied_rows(structure: Structure) -> None:
    """Refuse to count rows more or less than once where they depend on each other through an enumerated site.

    Raises:
        ValueError: that names it.
    """
    if structure.tied_by:
        raise ValueError(
            f"the enumerated site {structure.tied_by!r} lies outside the row plate, so that rows have no evidence of "
            "their own to count more or less than once: take all rows in each step, and repeat rows instead of "
            "weighting them"
        )
