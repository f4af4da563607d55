"""Microseconds of one gradient by each estimator, and by Pyro's estimators on the same models and guides.

All estimators of a model take turns, in random order, and medians are printed, so that a busy machine slows all alike.
Ratios are to the peer named in the head of the table: Pyro's estimator, with all particles at a time where there are
several.

    python benchmarks/bench_elbo.py [--threads 1] [--repeats 50]
"""

import argparse
import random
import statistics
import time

import pyro
import torch
from pyro import infer
from pyro.infer.autoguide import AutoNormal
from sklearn.datasets import load_breast_cancer, load_iris

import pyro_lvm as lvm
from pyro_lvm import elbo

WARM_UP = 3


def logistic_regression():
    X, y = load_breast_cancer(return_X_y=True)
    X = torch.tensor((X - X.mean(0)) / X.std(0), dtype=torch.float32)

    def model(X, y):  # the products are written so that Pyro's plate of particles can stand to their left
        weights = pyro.sample("weights", pyro.distributions.Normal(X.new_zeros(30), 1.0).to_event(1))
        intercept = pyro.sample("intercept", pyro.distributions.Normal(0.0, 1.0))
        with pyro.plate("rows", len(X)):
            logits = (weights * X).sum(-1) + intercept
            pyro.sample("y", pyro.distributions.Bernoulli(logits=logits), obs=y)

    return model, AutoNormal(model), (X, torch.tensor(y, dtype=torch.float32))


def mixture():
    x = torch.tensor(load_iris().data, dtype=torch.float32)

    def model(x):  # the locations have a posterior, the components are summed out
        with pyro.plate("components", 3):
            loc = pyro.sample("loc", pyro.distributions.Normal(x.mean(0), 2.0).to_event(1))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", pyro.distributions.Categorical(torch.ones(3) / 3), infer={"enumerate": "parallel"})
            near = (torch.arange(3) == z.unsqueeze(-1)).float().unsqueeze(-1)  # takes dimensions to its left
            pyro.sample("x", pyro.distributions.Normal((near * loc.unsqueeze(-3)).sum(-2), 0.5).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc_loc", x[[0, 60, 120]])
        scale = pyro.param("loc_scale", 0.1 * torch.ones(3, 4), constraint=pyro.distributions.constraints.positive)
        with pyro.plate("components", 3):
            pyro.sample("loc", pyro.distributions.Normal(loc, scale).to_event(1))

    return model, guide, (x,)


def ours(num_particles, enumerated):
    K = num_particles
    found = {"Trace_ELBO": elbo.Trace_ELBO(K), "TraceSTL_ELBO": elbo.TraceSTL_ELBO(K)}
    if not enumerated:
        found["TraceMeanField_ELBO"] = elbo.TraceMeanField_ELBO(K)
    found["TraceScore_ELBO, no baseline"] = elbo.TraceScore_ELBO(K, baseline=None)
    if K > 1:
        found["TraceScore_ELBO"] = elbo.TraceScore_ELBO(K)
        found["TraceVIMCO_ELBO"] = elbo.TraceVIMCO_ELBO(K)
    for gradient in ("total", "stl", "dreg"):
        found[f"TraceIWAE_ELBO, {gradient}"] = elbo.TraceIWAE_ELBO(K, gradient)
    found["TraceRenyi_ELBO, 0.5"] = elbo.TraceRenyi_ELBO(0.5, K)
    found["TraceCUBO"] = elbo.TraceCUBO(K, shift=-100.0)
    found["TraceWakePhi"] = elbo.TraceWakePhi(K)
    found["Beta(Trace_ELBO)"] = elbo.Beta(elbo.Trace_ELBO(K), beta=2.0)
    found["FreeBits(Trace_ELBO)"] = elbo.FreeBits(elbo.Trace_ELBO(K), nats=0.5)
    return found


def pyros(num_particles, enumerated):
    """The first is the peer to which ratios are taken."""
    found = {}
    for vectorized in (True, False) if num_particles > 1 else (True,):
        options = {"num_particles": num_particles, "vectorize_particles": vectorized}
        options["max_plate_nesting"] = 1 + (vectorized and num_particles > 1)
        how = "" if num_particles == 1 else ", vectorised" if vectorized else ", in a loop"
        if enumerated:
            found[f"Pyro TraceEnum_ELBO{how}"] = infer.TraceEnum_ELBO(**options)
            continue
        found[f"Pyro Trace_ELBO{how}"] = infer.Trace_ELBO(**options)
        found[f"Pyro TraceMeanField_ELBO{how}"] = infer.TraceMeanField_ELBO(**options)
        found[f"Pyro RenyiELBO{how}"] = infer.RenyiELBO(alpha=0.5, **options)
    return found


def microseconds_of_gradients(estimators, model, guide, data, repeats):
    """The median of each estimator's, of a loss and its gradient by Pyro's own interface."""
    guide(*data)
    times = {name: [] for name in estimators}
    order = random.Random(0)
    for turn in range(-WARM_UP, repeats):
        for name in order.sample(list(estimators), len(estimators)):  # what a loop leaves in caches hits all alike
            began = time.perf_counter()
            estimators[name].loss_and_grads(model, guide, *data)
            if turn >= 0:
                times[name].append(1e6 * (time.perf_counter() - began))
            for value in pyro.get_param_store().values():
                value.grad = None
    return {name: statistics.median(taken) for name, taken in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--repeats", type=int, default=50, help="gradients of each estimator, whose median is printed")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, Pyro {pyro.__version__}, {options.threads} thread(s), eager")
    cases = {"logistic regression": (logistic_regression, False), "mixture on iris, enumerated": (mixture, True)}
    for case, (make, enumerated) in cases.items():
        for num_particles in (1, 10):
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            theirs = pyros(num_particles, enumerated)
            estimators = theirs | ours(num_particles, enumerated)
            found = microseconds_of_gradients(estimators, *make(), options.repeats)
            peer = next(iter(theirs))
            print(f"\n{case}, K={num_particles}: microseconds of a gradient, ratio to {peer}")
            for name, taken in found.items():
                print(f"{name:<40}{taken:>8.0f}{taken / found[peer]:>7.2f}", flush=True)

    pyro.clear_param_store()
    X, y = load_breast_cancer(return_X_y=True)
    X = torch.tensor((X - X.mean(0)) / X.std(0), dtype=torch.float32)
    began = time.perf_counter()
    lvm.compare_elbos(lvm.models.BayesianLogisticRegression(30), "mean_field", X, torch.tensor(y), num_repeats=100)
    seconds = time.perf_counter() - began
    print(f"\ncompare_elbos, logistic regression, 100 gradients of 8 estimators and references: {seconds:.1f} s")


if __name__ == "__main__":
    main()
