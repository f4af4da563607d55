"""What compiled fits are made of: which model, guide, estimator and optimizer are tried together."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch

import pyro_lvm as lvm
from pyro_lvm import elbo
from pyro_lvm.batches import ShuffledRows, WholeData
from pyro_lvm.data import Data
from pyro_lvm.svi.loop import EagerLoop

from .compiled_modules import PROGRAMS

SEED = 3


@dataclass(frozen=True)
class Cell:
    """A program and what it is fitted by.

    Attributes:
        numbers: How many random numbers each row takes, of a program whose short batches take fewer of them.
    """

    program: str
    elbo: Callable[[], Any] = lambda: None
    optim: Any = 0.02
    scheduler: Any = None
    clip: float | None = None
    batch_size: int | None = None
    weighted: bool = False
    dtype: torch.dtype = torch.float32
    numbers: int = 0

    @property
    def tight(self):
        """The tolerance of one step, relative to the greatest number of a tensor; of many, it is ten times that."""
        return 1e-10 if self.dtype == torch.float64 or self.program == "doubled" else 1e-5

    def make(self):
        """Model, guide, data and weights of rows, made anew."""
        model, guide, data = PROGRAMS[self.program]()
        weight = torch.linspace(0.0, 2.0, len(data[0])) if self.weighted else None
        return model, guide, data, weight

    @contextmanager
    def default_dtype(self):
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)

    def fit(self, num_steps, seed=SEED, **options):
        model, guide, data, weight = self.make()
        options |= {"scheduler": self.scheduler, "clip": self.clip, "batch_size": self.batch_size}
        options |= {"elbo": self.elbo(), "optim": self.optim, "sample_weight": weight}
        result = lvm.fit(model, guide, *data, num_steps=num_steps, compile=True, seed=seed, progress=False, **options)
        return result, (model, guide, data)

    def loop(self, seed=SEED):
        """The eager loop of such a fit, before its first step."""
        model, guide, data, weight = self.make()
        rows = Data(data)
        batch = self.batch_size
        objective = lvm.Objective(model, guide, self.elbo())
        objective.prepare(rows, rows.args if batch is None else rows.take(slice(0, batch)), weighted=self.weighted)
        batches = WholeData(rows, weight) if batch is None else ShuffledRows(rows, weight, batch, seed)
        start = objective.program.parameters.start()
        return EagerLoop(objective, start, batches, rows.num_rows, self.optim, self.scheduler, self.clip)


def opt(kind, **options):
    return lambda params: getattr(torch.optim, kind)(params, **options)


def by_name(name):
    return {"lr": 0.05 if "loc" in name else 0.005, "betas": (0.8, 0.99) if "scale" in name else (0.9, 0.999)}


def two_groups(params):
    groups = [{"params": params[::2], "lr": 0.05, "weight_decay": 0.1}, {"params": params[1::2], "lr": 0.001}]
    return torch.optim.AdamW(groups)


def schedule(kind, **options):
    return lambda optimizer: getattr(torch.optim.lr_scheduler, kind)(optimizer, **options)


def warm_up_and_decay(optimizer):
    parts = [schedule("LinearLR", total_iters=30)(optimizer), schedule("ExponentialLR", gamma=0.98)(optimizer)]
    return torch.optim.lr_scheduler.SequentialLR(optimizer, parts, milestones=[30])


E = elbo
PyroTrace = pyro.infer.Trace_ELBO
QUICK = {
    "minibatches, a short one": Cell("logistic", batch_size=10),
    "mixture, two groups": Cell("mixture", optim=two_groups),
    "autoencoder, weighted minibatches": Cell(
        "autoencoder", lambda: E.TraceMeanField_ELBO(), batch_size=11, weighted=True
    ),
    "batch norm": Cell("autoencoder_batch_norm", batch_size=11, optim=opt("RMSprop", lr=0.01, momentum=0.5)),
    "PPCA, float64": Cell("ppca", dtype=torch.float64, optim=opt("RAdam", lr=0.01)),
    "discrete, score": Cell("discrete", lambda: E.TraceScore_ELBO(2), optim=opt("SGD", lr=0.01, momentum=0.9)),
    "discrete, VIMCO": Cell("discrete", lambda: E.TraceVIMCO_ELBO(3)),
    "rejection": Cell("rejection"),
    "IWAE, dreg, warm-up": Cell("local", lambda: E.Beta(E.TraceIWAE_ELBO(3, "dreg"), 0.7, warm_up=90), batch_size=7),
    "Pyro's optimizer": Cell("logistic", optim=pyro.optim.Adam(by_name, clip_args={"clip_norm": 2.0})),
    "idle": Cell("idle", optim=opt("Adam", lr=0.05, weight_decay=0.2)),
}

SLOW = {
    "float64, written out": Cell("doubled", optim=opt("Adagrad", lr=0.1, lr_decay=0.01)),
    "minibatches": Cell("logistic", batch_size=5),
    "mean field": Cell("logistic"),
    "constraints": Cell("constrained", lambda: E.TraceSTL_ELBO(2), optim=opt("NAdam", lr=0.01)),
    "eight schools, AMSGrad": Cell("eight_schools", optim=opt("AdamW", lr=0.02, amsgrad=True, weight_decay=0.1)),
    "scale, masks and a hidden site": Cell("adorned"),
    "HMM, schedule": Cell("hmm", scheduler=schedule("ExponentialLR", gamma=0.99)),
    "groups, clipped": Cell("grouped", clip=1.0, scheduler=schedule("CosineAnnealingLR", T_max=150)),
    "Pyro modules": Cell("pyro_autoencoder"),
    "PyroSample": Cell("pyro_sample"),
    "dropout": Cell("autoencoder_dropout"),
    "subsample_size": Cell("subsampled"),
    "subsample_size, 3 particles": Cell("subsampled", lambda: E.Trace_ELBO(3)),
    "rejection, float64": Cell("rejection", lambda: E.Trace_ELBO(2), dtype=torch.float64),
    "enumerated, Dirichlet": Cell("bayesian_mixture"),
    "enumerated, minibatches": Cell("bayesian_mixture", lambda: E.Trace_ELBO(2), batch_size=10),
    "mixture, short batch, float64": Cell("mixture", dtype=torch.float64, batch_size=8),
    "HMM, minibatches, weighted": Cell("hmm", batch_size=3, weighted=True),
    "autoencoder, short batch, weighted": Cell("autoencoder", batch_size=8, weighted=True, numbers=2),
    "autoencoder, IWAE": Cell("autoencoder", lambda: E.TraceIWAE_ELBO(3), batch_size=11),
    "autoencoder, dreg": Cell("autoencoder", lambda: E.TraceIWAE_ELBO(3, "dreg")),
    "autoencoder, float64": Cell("autoencoder", dtype=torch.float64),
    "batch norm, float64": Cell("autoencoder_batch_norm", dtype=torch.float64),
    "batch norm, STL": Cell("autoencoder_batch_norm", lambda: E.TraceSTL_ELBO()),
    "PPCA": Cell("ppca", batch_size=11),
    "VAE": Cell("vae", batch_size=11, weighted=True),
    "VAE, short batch": Cell("vae", batch_size=8, numbers=2),
    "Gaussian mixture": Cell("gaussian_mixture", optim=opt("Adam", lr=0.02)),
    "logistic regression of classes": Cell("logistic_classes", batch_size=8, dtype=torch.float64),
    "Pyro's Trace_ELBO": Cell("local", lambda: PyroTrace(num_particles=3), batch_size=7),
    "Pyro's Trace_ELBO, vectorized": Cell("logistic", lambda: PyroTrace(num_particles=2, vectorize_particles=True)),
    "Pyro's TraceMeanField_ELBO": Cell("autoencoder", lambda: pyro.infer.TraceMeanField_ELBO()),
    "Pyro's TraceEnum_ELBO": Cell("mixture", lambda: pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)),
    "pyro_autoencoder, short batch": Cell("pyro_autoencoder", lambda: E.TraceIWAE_ELBO(2), batch_size=8, numbers=2),
    "PPCA, weighted": Cell("ppca", weighted=True),
    "discrete, short batch": Cell("discrete", lambda: E.TraceScore_ELBO(2), batch_size=5, weighted=True, numbers=1),
    "categorical, score": Cell("categorical", lambda: E.TraceScore_ELBO(3)),
    "categorical, VIMCO": Cell("categorical", lambda: E.TraceVIMCO_ELBO(2)),
    "adorned, free bits": Cell("adorned", lambda: E.FreeBits(E.Trace_ELBO(), 0.3)),
    "adorned, 2 particles": Cell("adorned", lambda: E.TraceSTL_ELBO(2)),
    "two groups, cosine, clipped": Cell(
        "constrained", optim=two_groups, scheduler=schedule("CosineAnnealingLR", T_max=80), clip=2.0
    ),
    "groups, SGD, warm restarts": Cell(
        "grouped",
        optim=opt("SGD", lr=1e-3, momentum=0.9, nesterov=True),
        scheduler=schedule("CosineAnnealingWarmRestarts", T_0=30),
        clip=5.0,
    ),
    "LambdaLR": Cell("eight_schools", scheduler=schedule("LambdaLR", lr_lambda=lambda t: min(1.0, (t + 1) / 50))),
    "LambdaLR of two groups": Cell(
        "mixture",
        optim=two_groups,
        scheduler=schedule("LambdaLR", lr_lambda=[lambda t: 0.99**t, lambda t: 1 / (1 + t)]),
    ),
    "StepLR": Cell("logistic", scheduler=schedule("StepLR", step_size=40, gamma=0.5), batch_size=10),
    "MultiStepLR": Cell("logistic", scheduler=schedule("MultiStepLR", milestones=[20, 150], gamma=0.1), clip=3.0),
    "OneCycleLR": Cell("grouped", scheduler=schedule("OneCycleLR", max_lr=0.05, total_steps=210, cycle_momentum=False)),
    "PolynomialLR, float64": Cell(
        "mixture", scheduler=schedule("PolynomialLR", total_iters=150, power=2.0), dtype=torch.float64
    ),
    "SequentialLR": Cell("logistic", scheduler=warm_up_and_decay),
    "clip_value": Cell("logistic", optim=pyro.optim.Adam({"lr": 0.02}, clip_args={"clip_value": 0.5})),
    "clip_args and clip": Cell("grouped", optim=pyro.optim.Adam({"lr": 0.02}, {"clip_norm": 0.5}), clip=0.7),
    "pyro.optim.SGD by name": Cell("local", optim=pyro.optim.SGD(lambda n: {"lr": 0.01 if n == "loc" else 0.001})),
    "idle, SGD": Cell("idle", optim=opt("SGD", lr=0.01, weight_decay=0.2, momentum=0.5)),
    "idle, AdamW in groups": Cell("idle", optim=two_groups),
}

for name, make in {
    "Adam": {"lr": 0.02, "weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-6},
    "AdamW": {"lr": 0.02, "weight_decay": 0.3},
    "NAdam": {"lr": 0.02, "weight_decay": 0.1, "decoupled_weight_decay": True},
    "RAdam": {"lr": 0.02, "weight_decay": 0.1},
    "Adamax": {"lr": 0.02, "weight_decay": 0.1},
    "SGD": {"lr": 0.01},
    "RMSprop": {"lr": 0.01, "centered": True, "weight_decay": 0.1, "alpha": 0.9},
    "Adagrad": {"lr": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.2},
    "Adadelta": {"lr": 1.0, "rho": 0.8, "weight_decay": 0.1},
    "ASGD": {"lr": 0.01, "t0": 50, "weight_decay": 0.1},
    "Rprop": {"lr": 0.01},
}.items():
    SLOW[f"optimizer {name}"] = Cell("logistic", optim=opt(name, **make), batch_size=5)
    SLOW[f"optimizer {name}, scheduled, float64"] = Cell(
        "autoencoder", optim=opt(name, **make), scheduler=schedule("ExponentialLR", gamma=0.99), dtype=torch.float64
    )
for name, options in {
    "momentum, dampening": {"momentum": 0.8, "dampening": 0.3},
    "momentum, weight decay": {"momentum": 0.8, "weight_decay": 0.1},
    "nesterov": {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
    "maximize": {"maximize": True, "lr": 1e-6},
}.items():
    SLOW[f"SGD, {name}"] = Cell("logistic", optim=opt("SGD", **{"lr": 0.01} | options))
for name in PROGRAMS:
    if name.startswith("logistic") and name != "logistic":
        SLOW[name] = Cell(name)
for name in ("logistic, AutoNormal", "logistic_by_name_full_rank", "logistic, AutoIAFNormal"):
    SLOW[f"{name}, float64"] = Cell(name, dtype=torch.float64, batch_size=10)

ESTIMATORS = {
    "Trace_ELBO": lambda k: E.Trace_ELBO(k),
    "TraceMeanField_ELBO": lambda k: E.TraceMeanField_ELBO(k),
    "TraceSTL_ELBO": lambda k: E.TraceSTL_ELBO(k),
    "TraceScore_ELBO": lambda k: E.TraceScore_ELBO(k, None if k == 1 else "leave_one_out"),
    "TraceIWAE_ELBO": lambda k: E.TraceIWAE_ELBO(k),
    "TraceIWAE_ELBO, stl": lambda k: E.TraceIWAE_ELBO(k, "stl"),
    "TraceIWAE_ELBO, dreg": lambda k: E.TraceIWAE_ELBO(k, "dreg"),
    "TraceVIMCO_ELBO": lambda k: E.TraceVIMCO_ELBO(max(k, 2)),
    "TraceRenyi_ELBO": lambda k: E.TraceRenyi_ELBO(0.5, k),
    "TraceCUBO": lambda k: E.TraceCUBO(k, shift=-1.5),
    "TraceWakePhi": lambda k: E.TraceWakePhi(k),
    "Beta": lambda k: E.Beta(E.Trace_ELBO(k), 2.0, warm_up=40),
    "FreeBits": lambda k: E.FreeBits(E.TraceMeanField_ELBO(k), 0.4),
    "Beta of FreeBits": lambda k: E.Beta(E.FreeBits(E.TraceSTL_ELBO(k), 0.4), 0.5, warm_up=40),
}
for name, make in ESTIMATORS.items():
    for k in (1, 4):
        SLOW[f"{name} of {k}, rows"] = Cell("local", lambda make=make, k=k: make(k), batch_size=7)
        if name != "TraceVIMCO_ELBO":
            SLOW[f"{name} of {k}, shared"] = Cell("logistic", lambda make=make, k=k: make(k))
    SLOW[f"{name} of 3, float64"] = Cell(
        "local", lambda make=make: make(3), batch_size=5, dtype=torch.float64, weighted=True, numbers=1
    )
