"""The face that every fitted result shows: parameters, draws, predictions, scores, evidence."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_lvm import files, randomness
from pyro_lvm.checks import check_choice, check_count, check_model, check_seed
from pyro_lvm.data import Data, arguments_of, converts, fingerprint
from pyro_lvm.elbo.contraction import draw_enumerated, enumerate_model, over_support, responsibilities
from pyro_lvm.guides import distributions
from pyro_lvm.importance import Estimate, Evidence, evidence, score
from pyro_lvm.params import Bound, Values
from pyro_lvm.program import Program
from pyro_lvm.resampling import resampled
from pyro_lvm.sites import Uncondition, held_at, is_observed, prior_trace, refuse_improper_priors, sample_sites
from pyro_lvm.statements import private_statements
from pyro_lvm.vectorize import repeat

Draws = dict[str, Tensor]


class Result:
    """A model and guide at fitted parameters.

    Attributes:
        params: Constrained values by name.
        num_steps: Optimisation steps taken.
        seconds: Wall-clock time of the fit.
        converged: Whether the objective had levelled off.
        seed: The seed of the fit; draws without a ``seed=`` of their own use it too.
    """

    def __init__(
        self, program: Program, values: Values, *, num_steps: int, seconds: float, converged: bool, seed: int
    ) -> None:
        self._program = program
        values = {**program.parameters.untrained(), **values}  # so that training the modules further changes no result
        self._values = {name: v.detach().clone() for name, v in values.items()}
        self.params = program.parameters.constrained(self._values)
        self.num_steps, self.seconds, self.converged, self.seed = num_steps, seconds, converged, seed

    @property
    def resamples(self) -> bool:
        """Whether draws are resampled towards the posterior by Pareto-smoothed importance weights."""
        return False

    @property
    def model(self) -> Bound:
        """The model with its parameters fixed at the fit."""
        return self._program.bind(self._values, self._program.model)

    @property
    def guide(self) -> Bound:
        """The guide with its parameters fixed at the fit."""
        return self._program.bind(self._values, self._program.guide)

    def sample(self, num_draws: int = 1_000, seed: int | None = None, correct: str | None = None) -> Draws:
        """Posterior draws of every latent of the fitted rows, enumerated sites included.

        Args:
            num_draws: S.
            seed: Of the draws; the fit's, if None.
            correct: "psis" to draw ten times as many, or a thousand, and resample them by Pareto-smoothed importance
                weights, which takes away the error of a guide that is near the posterior. Where every latent belongs
                to a row, rows are resampled one by one, and else all latents together, if the weights of five more
                runs allow it.

        Returns:
            For each latent site a tensor ``[S, ...]``.

        Raises:
            ValueError: if weights are asked for and the guide has no density, or their Pareto k is 0.7 or more.
        """
        num_draws = check_count("num_draws", num_draws)
        sites = self._program.sites
        if correct is not None:
            check_choice("correct", correct, ("psis",))
        args = self._arguments((), needs_rows=bool(sites.local_latent or sites.enumerated or correct))
        with self._quiet(seed):
            proposed = self._proposed(args, num_draws, self.resamples or correct is not None)
            return repeat(lambda given: self._latents(args, given)[0], num_draws, proposed)

    def posterior(self, *data: Any, num_draws: int = 1_000) -> dict[str, dist.Distribution]:
        """The posterior of each latent site as a distribution, where there is one in closed form.

        Guide sites come as the guide has them. Enumerated sites come with their responsibilities, exact where the model
        has no other latents or EM has integrated these out, else averaged over draws of those: as a Bernoulli or
        OneHotCategorical where they are one, else as a Categorical over the places in their support.

        Args:
            data: Rows to condition on; the fitted ones, if none are given.
            num_draws: How many draws of the other latents the responsibilities are averaged over.

        Returns:
            A distribution for each site.
        """
        num_draws = check_count("num_draws", num_draws)
        program, kwargs = self._program, self._program.model_kwargs
        args = self._arguments(data, needs_rows=bool(program.sites.local_latent or program.sites.enumerated))
        self._refuse_other_rows(args)
        with torch.no_grad(), self._quiet(None):
            trace = poutine.trace(self.guide).get_trace(*args, **kwargs)
            found = program.call(self._values, distributions, program.guide, trace, program.sites.latent)
            if program.sites.enumerated:
                self._refuse_missing_observations(args, "posterior")
                sites = sample_sites(prior_trace(self.model, *args, **kwargs))
                shares = self._responsibilities(args, num_draws)
                found |= {name: over_support(sites[name]["fn"], probs) for name, probs in shares.items()}
            return found

    def predict(self, *inputs: Any, num_draws: int = 1_000, seed: int | None = None) -> Draws:
        """Draws from the posterior predictive distribution of every observed site.

        Latents outside the row plate come from the posterior. Those inside it come from their posterior given the
        inputs if these hold the observations and the guide can take the rows, else from the model's prior. So do
        enumerated sites, wherever they are.

        Args:
            inputs: Arguments of the model, without the observations of a supervised model (``y=None``); the fitted
                data, if none are given.
            num_draws: S.
            seed: Of the draws; the fit's, if None.

        Returns:
            For each observed site a tensor ``[S, ...]``, but for those that hold a parameter and no data.
        """
        num_draws = check_count("num_draws", num_draws)
        args = self._arguments(inputs)
        with self._quiet(seed):
            proposed = self._proposed(self._program.data.args, num_draws, self.resamples)
            return repeat(lambda given: self._predict(args, given), num_draws, proposed)

    def score(self, *data: Any, num_draws: int = 1_000, seed: int | None = None) -> Estimate:
        """log p(x_i) of each row, in nats.

        Exact where every latent is enumerated; otherwise importance-sampled with the guide. Latents outside the row
        plate are averaged over the guide, so that a row's score is its log posterior predictive density.

        Args:
            data: Rows; the fitted ones, if none are given.
            num_draws: S.
            seed: Of the draws; the fit's, if None.

        Returns:
            Values and standard errors, each ``[N]``.

        Raises:
            ValueError: if the model has no row plate, or the guide cannot take rows one by one.
        """
        num_draws = check_count("num_draws", num_draws)
        args = self._arguments(data)
        self._refuse_other_rows(args)
        with self._quiet(seed):
            self._refuse_missing_observations(args, "score")
            return score(self._program, self._values, args, num_draws)

    def evidence(self, num_particles: int = 1_000, proposal: str = "guide", seed: int | None = None) -> Evidence:
        """log p(x) on all fitted rows, in nats, by importance sampling.

        Args:
            num_particles: Draws of the latents.
            proposal: "guide", or "prior" for naive Monte Carlo, which shows why one wants a guide.
            seed: Of the draws; the fit's, if None.

        Returns:
            The estimate and its standard error (a logarithm of a mean is biased down, the more so the larger the
            error), a lower bound with its own, and, where the weights allow it, an estimate of an upper bound.

        Raises:
            ValueError: for an unknown proposal, and for a MAP fit, which has no density to weight by.
        """
        num_particles = check_count("num_particles", num_particles)
        with self._quiet(seed):
            return evidence(self._program, self._values, self._arguments(()), num_particles, proposal)

    def _arguments(self, given: tuple[Any, ...], needs_rows: bool = True) -> tuple[Any, ...]:
        """The arguments that a call means: the fitted data if it was given none, or just these."""
        fitted = self._program.data
        if not given:
            if needs_rows and not fitted.complete:
                raise ValueError(
                    "the fit took its rows from a DataLoader and kept none of them: pass rows where a call takes them, "
                    "or save the result and load it with the rows as tensors, lvm.load(path, model, guide, *data)"
                )
            return fitted.args
        model = self._program.model
        args = Data(arguments_of(model, given)).args
        known = () if converts(model) else zip(args, fitted.args, fitted.has_rows, strict=False)
        for i, (new, old, has_rows) in enumerate(known):
            shapes = [list(a.shape[1:]) if isinstance(a, Tensor) and a.dim() else None for a in (new, old)]
            if has_rows and new is not None and shapes[0] != shapes[1]:
                got = list(new.shape) if isinstance(new, Tensor) else repr(new)
                raise ValueError(f"argument {i} must have rows of shape {shapes[1]}, as in the fit; got {got}")
        self._program.check_dtypes(args)
        return fitted.args if fitted.holds(args) else args

    def _refuse_missing_observations(self, args: tuple[Any, ...], call: str) -> None:
        """A model that draws what it does not observe would be weighed by its own draws."""
        run = prior_trace(self.model, *args, **self._program.model_kwargs)
        absent = [n for n in self._program.sites.observed if n not in run.nodes or not run.nodes[n]["is_observed"]]
        if absent:
            raise ValueError(f"{call} needs the observations of {absent[0]!r}, and these arguments have none")

    def _refuse_other_rows(self, args: tuple[Any, ...]) -> None:
        if args is not self._program.data.args and self._program.covers_fitted_rows_only:
            raise ValueError(
                f"the guide keeps parameters for the latents {list(self._program.sites.local_latent)} of the fitted "
                "rows alone: other rows need an amortized guide, a function of the rows"
            )

    def _quiet(self, seed: int | None) -> ExitStack:
        """Random numbers from a seed, and the user's modules in evaluation mode."""
        stack = ExitStack()
        stack.enter_context(randomness.seeded(self.seed if seed is None else check_seed(seed)))
        stack.enter_context(self._program.parameters.evaluating())
        return stack

    def _proposed(self, args: tuple[Any, ...], num_draws: int, resample: bool) -> Draws:
        """The sites of the guide ``[S, ...]`` at which draws are to be taken; none, if the guide is to draw them."""
        return resampled(self._program, self._values, args, num_draws, self.resamples) if resample else {}

    def _guide_at(self, args: tuple[Any, ...], given: Draws) -> poutine.Trace:
        """A run of the guide, some of its sites given."""
        guide = poutine.replay(self.guide, trace=held_at(given)) if given else self.guide
        return poutine.trace(guide).get_trace(*args, **self._program.model_kwargs)

    def _latents(self, args: tuple[Any, ...], given: Draws) -> tuple[Draws, poutine.Trace]:
        """One draw of the guide's sites, and of the enumerated ones given those; and the guide's trace."""
        trace = self._guide_at(args, given)
        values = {name: trace.nodes[name]["value"] for name in self._program.sites.latent}
        if self._program.sites.enumerated:
            values |= draw_enumerated(self._enumerated_trace(args, trace))
        return values, trace

    def _with_enumerated(self, args: tuple[Any, ...], latents: Draws) -> Draws:
        """The enumerated sites drawn beside given latents."""
        if not self._program.sites.enumerated:
            return latents
        return latents | draw_enumerated(self._enumerated_trace(args, held_at(latents)))

    def _enumerated_trace(self, args: tuple[Any, ...], latents: poutine.Trace) -> poutine.Trace:
        program = self._program
        return enumerate_model(self.model, args, program.model_kwargs, program.max_plate_nesting, latents)

    def _responsibilities(self, args: tuple[Any, ...], num_draws: int) -> Draws:
        """The posterior probabilities of the states of each enumerated site, in the last dimension."""

        def once() -> Draws:
            drawn = poutine.trace(self.guide).get_trace(*args, **self._program.model_kwargs)
            return responsibilities(self._enumerated_trace(args, drawn))

        means = repeat(once, num_draws if self._program.sites.latent else 1)
        return {name: probs.mean(0) for name, probs in means.items()}

    def _predict(self, args: tuple[Any, ...], given_sites: Draws) -> Draws:
        sites, kwargs, fitted = self._program.sites, self._program.model_kwargs, self._program.data.args
        blank = prior_trace(self.model, *args, **kwargs)
        absent = [name for name in sites.observed if name not in blank.nodes]
        if absent:
            raise ValueError(
                f"the model has no site {absent[0]!r} on these inputs: let it sample what it does not observe, as in "
                "pyro.sample('y', ..., obs=y) with y=None"
            )
        given = all(blank.nodes[name]["is_observed"] for name in sites.observed)
        amortized = given and bool(sites.local_latent) and not self._program.covers_fitted_rows_only
        guide_args = args if amortized else fitted
        trace = self._guide_at(guide_args, given_sites)
        for name in sites.local_latent if guide_args is not args else ():
            trace.remove_node(name)
        if given and sites.enumerated:
            for name, value in draw_enumerated(self._enumerated_trace(args, trace)).items():
                trace.add_node(name, name=name, type="sample", value=value, is_observed=False, infer={})
        values = {n: trace.nodes[n]["value"] for n in (*sites.latent, *sites.enumerated) if n in trace.nodes}
        with Uncondition(self._program.data_sites):
            drawn = prior_trace(poutine.condition(self.model, data=values), *args, **kwargs)
        return {name: drawn.nodes[name]["value"] for name in self._program.data_sites}

    def _state(self) -> dict[str, Any]:
        """What ``save`` writes: tensors and plain numbers."""
        return {
            "kind": "result",
            "data": fingerprint(self._program.data.args) if self._program.data.complete else None,
            "params": {name: v.detach() for name, v in self._values.items()},  # without marks that Pyro left
            "num_steps": self.num_steps,
            "seconds": self.seconds,
            "converged": self.converged,
            "seed": self.seed,
            "weighted": self._program.weighted,
        }

    def save(self, path: files.FilePath) -> None:
        """Write parameters and the record of the fit, to be read by :func:`pyro_lvm.load`."""
        files.write(self._state(), files.check_writable(path, "path"))


def prior_predictive(
    model: Callable, *inputs: Any, num_draws: int = 1_000, model_kwargs: dict[str, Any] | None = None, seed: int = 0
) -> Draws:
    """Draws of every site of a model, latent and observed, before any data is seen.

    Args:
        model: A Pyro model; its ``pyro.param`` statements give their initial values.
        inputs: Its arguments; observations among them fix shapes only.
        num_draws: S.
        model_kwargs: Its keyword arguments.
        seed: Of the draws.

    Returns:
        For each sample site a tensor ``[S, ...]``.

    Raises:
        ValueError: if a prior is improper.

    Example:
        >>> import pyro, pyro.distributions as dist, pyro_lvm as lvm
        >>> def model(y=None):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     return pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> {name: list(draws.shape) for name, draws in lvm.prior_predictive(model, num_draws=500).items()}
        {'mean': [500], 'y': [500]}
    """
    check_model(model, model_kwargs)
    num_draws, seed = check_count("num_draws", num_draws), check_seed(seed)
    data, kwargs = Data(inputs), model_kwargs or {}

    def once() -> Draws:
        with private_statements(model):
            sites = sample_sites(prior_trace(model, *data.args, **kwargs))
            refuse_improper_priors(sites)
            with Uncondition([name for name, site in sites.items() if is_observed(site)]):
                trace = poutine.trace(model).get_trace(*data.args, **kwargs)
        drawn = sample_sites(prune_subsample_sites(trace))
        return {name: site["value"] for name, site in drawn.items() if not isinstance(site["fn"], dist.Unit)}

    with randomness.seeded(seed):
        return repeat(once, num_draws)
