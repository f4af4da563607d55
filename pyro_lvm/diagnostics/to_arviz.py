"""``to_arviz``: a fit as the object that ArviZ summarises, compares and plots."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pyro_lvm.checks import check_count
from pyro_lvm.diagnostics.arviz_versions import assemble
from pyro_lvm.diagnostics.dims import DimNames, check_coords
from pyro_lvm.diagnostics.groups import (
    constant_data,
    of_draws,
    of_moments,
    of_predictions,
    of_prior,
    of_unconstrained,
)
from pyro_lvm.diagnostics.moments import moments
from pyro_lvm.diagnostics.parameters import own_names, parameter_draws, sites_at_points
from pyro_lvm.draws import evaluate, predictions_at, prior_draws, sites_of, unconstrained_draws
from pyro_lvm.em.bootstrap import bootstrap as replicates_of
from pyro_lvm.result import Result
from pyro_lvm.sites import lacks_prior


def to_arviz(
    result: Result,
    num_draws: int = 1_000,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    seed: int | None = None,
    *,
    predictions: Sequence[Any] | None = None,
    unconstrained: bool = False,
    bootstrap: int | None = None,
) -> Any:
    """The posterior of a fit, in one chain, as an object of ArviZ.

    The same draws serve all groups, and they are those of ``result.sample(num_draws, seed)``:

    - ``posterior``: every latent site, enumerated and deterministic ones too; of a fit by EM its parameters as well,
      under their names in ``result.params``, points that are the same in all draws, or draws of the bootstrap;
    - ``posterior_predictive``: every observed site, drawn anew at the latents of each draw;
    - ``log_likelihood``: log p of each observed site given all latents of the draw, in nats, one value for each row;
      for a model without a row plate, one for each element of the site's batch. Where a row has latents of its own,
      leave-one-out from it is unreliable: score held-out rows with ``result.score``;
    - ``sample_stats``: ``lp``, the log-joint density of model and draw, enumerated sites at their drawn values,
      ``log_q``, the guide's log-density of what it drew, and ``log_weight``, the log-density of model and draw with
      enumerated sites summed out, less ``log_q``: the importance weight. In nats; scales and row weights do not count;
    - ``prior`` and ``prior_predictive``: latent and observed sites, drawn from the model at the fitted parameters;
    - ``observed_data`` and ``constant_data``: the observed sites, and the other data under the names that the model's
      signature gives them;
    - ``predictions`` and ``predictions_constant_data``, if asked for: the observed sites drawn for new inputs, as
      ``result.predict`` draws them, and these inputs;
    - ``unconstrained_posterior``, if asked for: latent continuous sites in the space in which guides draw them, but
      those whose support has no way to it, as that of covariance matrices;
    - ``latent_moments``, of a fit by EM: what ``result.posterior()`` says of each latent, ``<site>_probs`` of states,
      or ``<site>_mean``, ``<site>_sd`` and, of a vector, ``<site>_covariance``; exact where the E-step is.

    With ``bootstrap=R``, EM is run again on R draws of as many rows, with replacement, from where the fit has ended,
    components in its order (Efron 1979; McLachlan and Peel 2000, section 2.16). There are R draws then, and each has a
    replicate's parameters, and all else given these: latents of the fitted rows, predictions, log-likelihood. The
    prior and ``latent_moments`` stay at the fit, as do the user's modules.

    Sites whose observations are a sparse table, such as word counts, are in ``log_likelihood`` alone. Observed sites
    that hold a parameter, so that their density is a prior, are no data, and count in ``lp`` alone.

    Where the draws of a guide switch the labels of a mixture, they stand here as they were drawn:
    :func:`pyro_lvm.relabel` puts them in order before anything is averaged.

    A dimension inside a plate has the plate's name, another one ``<site>_dim_0`` and so on.

    Args:
        result: What ``fit`` returned.
        num_draws: S; with ``bootstrap``, that is S.
        coords: Values for the elements of dimensions, by dimension, such as ``{"rows": patients}``.
        dims: Names for all dimensions of a variable, by variable, such as ``{"weights": ["feature"]}``.
        seed: Of the draws; the fit's, if None.
        predictions: New inputs to predict for, arguments of the model; ``coords`` of the rows are those of the fit.
        unconstrained: Whether to add ``unconstrained_posterior``.
        bootstrap: How often to fit again by EM to rows drawn with replacement, for draws of the parameters; None for
            none.

    Returns:
        An ``InferenceData`` with ArviZ 0.2x, an ``xarray.DataTree`` with ArviZ 1.x.

    Raises:
        ImportError: if ArviZ is not installed.
        TypeError: if ``result`` is no result, or ``dims`` does not hold lists of names.
        ValueError: for unknown names in ``coords`` and ``dims``, a wrong number of them, a result that kept no rows
            (a ``DataLoader``), a model that subsamples its rows by itself, and a parameter of EM that is called like a
            site. With ``bootstrap``: for fewer than 2, a result that is not by exact EM on all rows alike, and rows
            that are not independent.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyro_lvm as lvm
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("rows", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> y = torch.tensor([1.0, 2.0, 3.0, 4.0])
        >>> result = lvm.fit(model, "mean_field", y, num_steps=1_000, optim=0.05, progress=False)
        >>> data = lvm.to_arviz(result, num_draws=500, coords={"rows": ["Ada", "Ben", "Cleo", "Dan"]})
        >>> dict(data["log_likelihood"]["y"].sizes)
        {'chain': 1, 'draw': 500, 'rows': 4}
        >>> print(f"{data['posterior_predictive']['y'].sel(rows='Cleo').std().item():.1f}")
        1.1

        The standard error of a mean, by the bootstrap:

        >>> def normal(y):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     with pyro.plate("rows", len(y)):
        ...         pyro.sample("y", dist.Normal(loc, 1.0), obs=y)
        >>> y = torch.linspace(-2.0, 2.0, 25)
        >>> em = lvm.fit_em(normal, y, progress=False)
        >>> data = lvm.to_arviz(em, bootstrap=200)
        >>> print(f"{data['posterior']['loc'].std().item():.1f}, by theory {y.std() / 5:.1f}")
        0.2, by theory 0.2
    """
    if not isinstance(result, Result):
        raise TypeError(f"to_arviz takes the result of a fit; got {type(result).__name__}")
    num_draws = check_count("num_draws", num_draws)
    program, args = result._program, result._arguments(())
    sites = sites_of(result, args)
    names_of_parameters = own_names(result, sites)
    replicates = None if bootstrap is None else replicates_of(result, bootstrap, seed)
    params = None if replicates is None else replicates.params
    num_draws = num_draws if replicates is None else len(replicates.converged)
    drawn = evaluate(result, num_draws, seed, params)
    parameters = parameter_draws(result, names_of_parameters, num_draws, params)
    found = moments(result, sites, num_draws)
    constant = constant_data(program, args, (drawn.sites[name] for name in drawn.log_likelihood))
    variables = {*drawn.values, *parameters, *found, *drawn.log_likelihood, *constant}
    names = DimNames(dims, variables)
    groups = of_draws(program, drawn, parameters, constant, names) | of_moments(found, names)
    left_out = {"log_q": drawn.lacks_density} if drawn.lacks_density else {}
    if reason := lacks_prior(sites):
        left_out["prior"] = reason
    else:
        prior = prior_draws(result, num_draws, seed)
        groups |= of_prior(drawn, {n: v for n, v in prior.items() if n not in sites_at_points(result)}, names)
    if unconstrained:
        groups |= of_unconstrained(unconstrained_draws(result, drawn.values, params), drawn.sites, names)
    sizes: dict[str, set[int]] = {}
    for group in groups.values():
        for of_variable, array in group.values():
            for name, size in zip(of_variable, array.shape, strict=True):
                sizes.setdefault(name, set()).add(size)
    checked = dict.fromkeys(groups, check_coords(coords, dims, sizes))
    if predictions is not None:
        inputs = result._arguments(tuple(predictions))
        if params is None:
            predicted = result.predict(*predictions, num_draws=num_draws, seed=seed)
        else:
            predicted = predictions_at(result, inputs, params, seed)
        constant = constant_data(program, inputs, ())
        new = of_predictions(predicted, sites_of(result, inputs), constant, DimNames(dims, variables))
        groups |= new
        shared = {d: v for d, v in checked["posterior"].items() if d not in names.of_rows(program.sites.row_plate)}
        checked |= dict.fromkeys(new, shared)
    groups = {name: group for name, group in groups.items() if group}
    # read when called, since no file imports the package's front
    library = {"inference_library": "pyro_lvm", "inference_library_version": sys.modules["pyro_lvm"].__version__}
    attrs = {group: dict(library) for group in groups}
    if replicates is not None:
        attrs["posterior"]["bootstrap"] = f"{num_draws} replicates, {int(replicates.converged.sum())} converged"
    attrs["sample_stats"] |= {name: f"left out: {reason}" for name, reason in left_out.items()}
    return assemble(groups, checked, attrs)
