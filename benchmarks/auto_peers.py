"""Nine posteriors of posteriordb by guide="auto", by PyMC's ADVI and by NumPyro's AutoBNAFNormal: errors and seconds.

    python benchmarks/auto_peers.py FOLDER [--names kidiq ...] [--columns auto pymc numpyro]

The folder has one of posteriordb's posteriors in each of its folders: see `posteriordb_files.py`. Errors are the
largest of a mean, in posterior standard deviations, and of a standard deviation, over 10,000 draws. Seconds are of the
fit, compilation included. "auto" and ADVI are at their defaults; AutoBNAFNormal has its own too, and the optimiser of
NumPyro's example with it: Adam at 0.003, 10,000 steps. "failed" is a fit that came to NaN.

NumPyro is in the `bench` extra. PyMC needs an environment of its own, in which neither torch nor pyro_lvm need be: run
its column there. `--columns auto numpyro` here and `--columns pymc` there print parts of the same table. PyTensor keeps
on disk what it compiles: a first run takes longer.
"""

import argparse
import logging
import time

import numpy as np
from posteriordb_files import read
from posteriordb_peers import NUMPYRO, PYMC, arrays

NUM_DRAWS = 10_000


def errors(draws, reference):
    """The largest error of a mean and of a standard deviation, over the numbers of the variables that both have."""
    both = [
        (np.asarray(draws[name], dtype=float), reference[name].astype(float)) for name in reference if name in draws
    ]
    x, y = (np.concatenate([array.reshape(len(array), -1) for array in side], 1) for side in zip(*both, strict=True))
    if not np.isfinite(x).all():
        raise FloatingPointError
    mean_errors = np.abs(x.mean(0) - y.mean(0)) / y.std(0, ddof=1)
    return mean_errors.max(), np.abs(x.std(0, ddof=1) / y.std(0, ddof=1) - 1).max()


def by_auto(folder, name):
    import torch
    from posteriordb_models import load

    import pyro_lvm as lvm

    torch.set_num_threads(1)
    model, data, reference = load(folder, name)
    began = time.perf_counter()
    try:
        result = lvm.fit(model, "auto", *data, progress=False)
    except lvm.NonFiniteError as error:
        raise FloatingPointError from error
    seconds = time.perf_counter() - began
    found = lvm.against(result, reference, num_draws=NUM_DRAWS)
    return found.largest_mean_error, found.largest_sd_error, seconds


def by_pymc(folder, name):
    import pymc as pm

    logging.getLogger("pymc").setLevel(logging.ERROR)
    data, reference = read(folder, name)
    began = time.perf_counter()
    with pm.Model():
        PYMC[name](*arrays(name, data))
        approximation = pm.fit(method="advi", random_seed=0, progressbar=False)
    seconds = time.perf_counter() - began
    posterior = approximation.sample(NUM_DRAWS, random_seed=0).posterior
    return *errors({str(key): value[0] for key, value in posterior.items()}, reference), seconds


def by_numpyro(folder, name):
    import jax
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoBNAFNormal
    from numpyro.optim import Adam

    data, reference = read(folder, name)
    model, data = NUMPYRO[name], [jax.numpy.asarray(array) for array in arrays(name, data)]
    began = time.perf_counter()
    guide = AutoBNAFNormal(model)
    found = SVI(model, guide, Adam(0.003), Trace_ELBO()).run(jax.random.key(0), 10_000, *data, progress_bar=False)
    jax.block_until_ready(found.params)
    seconds = time.perf_counter() - began
    draws = guide.sample_posterior(jax.random.key(1), found.params, *data, sample_shape=(NUM_DRAWS,))
    return *errors(draws, reference), seconds


COLUMNS = {"auto": by_auto, "pymc": by_pymc, "numpyro": by_numpyro}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--names", nargs="+", default=list(PYMC), choices=list(PYMC))
    parser.add_argument("--columns", nargs="+", default=list(COLUMNS), choices=list(COLUMNS))
    args = parser.parse_args()
    print(f"{'':18}" + "".join(f"  {column:>24}" for column in args.columns))
    print(f"{'':18}" + f"  {'mean (sd)':>9} {'sd':>7} {'time':>6}" * len(args.columns))
    for name in args.names:
        print(f"{name:18}", end="", flush=True)
        for column in args.columns:
            try:
                mean_error, sd_error, seconds = COLUMNS[column](args.folder, name)
                print(f"  {mean_error:9.3f} {sd_error:7.1%} {seconds:5.0f}s", end="", flush=True)
            except FloatingPointError:
                print(f"  {'failed':>24}", end="", flush=True)
        print()


if __name__ == "__main__":
    main()
