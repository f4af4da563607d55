"""Where gradients stop: samples of a guide, or the parameters of a program, taken as constants."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_lvm.guides import is_delta
from pyro_lvm.params import Place
from pyro_lvm.sites import Site, sample_sites
from pyro_lvm.statements import calling_pyro_module


class DetachSamples(Messenger):
    """Samples come without a path to the parameters; points (``Delta``) keep it, for they are no samples."""

    def _pyro_post_sample(self, msg: Site) -> None:
        if not msg["is_observed"] and not is_delta(msg):
            msg["value"] = msg["value"].detach()


def detached(trace: poutine.Trace, names: Collection[str] = ()) -> poutine.Trace:
    """A copy of a trace to replay, in which the named values are constants.

    All values are new tensors, so that no transform takes what it has kept of an earlier run for an answer.
    """
    copy = trace.copy()
    for name, site in sample_sites(trace).items():
        value = site["value"]
        copy.nodes[name] = {**site, "value": value.detach() if name in names else value.view_as(value)}
    return copy


def without_points(trace: poutine.Trace) -> poutine.Trace:
    """A copy of a trace to replay, without its points: a guide finds them anew from what it draws."""
    copy = trace.copy()
    for name, site in sample_sites(trace).items():
        if is_delta(site):
            copy.remove_node(name)
    return copy


@contextmanager
def detached_parameters(places: Iterable[Place]) -> Iterator[None]:
    """Programs see their parameters as constants inside.

    Args:
        places: Where modules hold theirs; ``pyro.param`` statements are found as they run.
    """
    before = [(tensors, name, tensors[name]) for tensors, name in places]
    with warnings.catch_warnings(), _DetachStatements():
        warnings.filterwarnings("ignore", ".*was not registered in the param store", UserWarning)
        try:
            for tensors, name, value in before:
                tensors[name] = value.detach()
            yield
        finally:
            for tensors, name, value in before:
                tensors[name] = value


@contextmanager
def copied_buffers(places: Iterable[Place]) -> Iterator[None]:
    """A second run on the same draws counts for nothing in the buffers of modules, such as the means of batch norm."""
    before = [(tensors, name, tensors[name]) for tensors, name in places]
    try:
        for tensors, name, value in before:
            tensors[name] = value.clone()
        yield
    finally:
        for tensors, name, value in before:
            tensors[name] = value


class _DetachStatements(Messenger):
    """``pyro.param`` gives constants."""

    def _pyro_param(self, msg: dict[str, Any]) -> None:
        if calling_pyro_module() is not None:  # which would keep what it is given, and has constants already
            msg["value"], msg["done"], msg["stop"] = msg["args"][1], True, True

    def _pyro_post_param(self, msg: dict[str, Any]) -> None:
        if isinstance(msg["value"], Tensor):
            msg["value"] = msg["value"].detach()
