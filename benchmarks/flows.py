"""Milliseconds of what flows do, by `pyro_lvm` and by zuko, nflows, Pyro and FlowJAX in the same run.

    python benchmarks/flows.py [--flows MAF NSF "NSF coupling" RealNVP] [--features 8 32 128] [--threads 1]

For batches of 512 rows: a training step by maximum likelihood with Adam, the log-densities of rows, draws, and the
gradient of a reverse divergence through draws with their log-densities. MAF and NSF are slow in the last two. All
packages have flows of the same sizes and take turns; a figure is the best of several, for a busy machine only adds to
them. FlowJAX is jitted. "compiled" is `torch.compile` of the function that is timed, and for training steps of ours
the compiled loop of `lvm.fit`; a program that is not compiled within the limit has no figure.
"""

import argparse
import os
import signal
import time
import warnings

import torch
from flow_models import BATCH, FLOWS, TASKS, flowjax, nflows, ours, pyro, step_of_fit, zuko

ROUNDS, SECONDS = 4, 0.4  # of each package, and of each of its rounds, at least one call


class TooLong(BaseException):
    """A compiler has had its time."""


def packages(compile_limit):
    found = {"ours": ours, "zuko": zuko, "nflows": nflows, "pyro": pyro, "flowjax": flowjax}
    if compile_limit:
        found["ours compiled"] = lambda *args: ours(*args, compiled=True)
        found["zuko compiled"] = lambda *args: zuko(*args, compiled=True)
    return found


def ready(make, task, name, D, x, limit):
    """A function to time, once called; or why there is none."""
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        function = getattr(make(name, D, x), task)
        function()
        return function
    except TooLong:
        return "-"
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def milliseconds(functions):
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(ROUNDS):
        for key, function in functions.items():
            began = time.perf_counter()
            while (start := time.perf_counter()) < began + SECONDS:
                function()
                best[key] = min(best[key], time.perf_counter() - start)
    return {key: 1e3 * seconds for key, seconds in best.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", nargs="+", default=FLOWS, choices=FLOWS)
    parser.add_argument("--features", nargs="+", type=int, default=(8, 32, 128))
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile-limit", type=float, default=120.0, help="seconds for each program; 0 for none")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])  # JAX takes as many threads
    warnings.filterwarnings("ignore")

    def stop(*_):
        raise TooLong

    signal.signal(signal.SIGALRM, stop)
    makers = packages(args.compile_limit)
    print(f"batch {BATCH}, {args.threads} thread(s), milliseconds (times ours, eager)")
    for name in args.flows:
        for D in args.features:
            for task in args.tasks:
                torch.manual_seed(0)
                torch._dynamo.reset()
                x = torch.randn(BATCH, D)
                found = {
                    key: ready(make, task, name, D, x, args.compile_limit if "compiled" in key else 0)
                    for key, make in makers.items()
                    if (key, task) != ("ours compiled", "train")
                }
                times = milliseconds({key: f for key, f in found.items() if callable(f)})
                if "ours compiled" in makers and task == "train":
                    times["ours compiled"] = 1e3 * step_of_fit(name, D, x)
                cells = [
                    f"{key} {times[key]:.2f} ({times[key] / times['ours']:.2f})"
                    if key in times
                    else f"{key} {found[key]}"
                    for key in makers
                ]
                print(f"{name} D={D} {task}: " + ", ".join(cells), flush=True)


if __name__ == "__main__":
    main()
