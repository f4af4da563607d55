"""Each cell of a table has a process of its own, so that no library finds what another one has set or left."""

import functools
import importlib.util
import math
import multiprocessing
import os
import resource
import sys
import time
import traceback
import warnings
from multiprocessing.connection import Connection

import numpy as np

from svi_models.problems import ROWS

RUNS = {
    "pyro": ("in_pyro", "run_pyro", {}),
    "jit": ("in_pyro", "run_jit", {}),
    "eager": ("in_pyro", "run_fit", {"compile": False}),
    "compiled": ("in_pyro", "run_fit", {"compile": True}),
    "auto": ("in_pyro", "run_fit", {"compile": "auto"}),
    "numpyro": ("in_numpyro", "run_numpyro", {}),
    "torch": ("in_torch", "run_torch", {}),
}
"""Module, function and options by name of a column. ``run(row, steps, every, between)`` returns the losses of a run.

It calls ``between()`` after every block of ``every`` steps and ends when that is true. Without them it runs as for a
user who only wants the result.
"""


class Failed(RuntimeError):
    """What went wrong in the process of a cell, in a line."""


class Cell:
    """One column of one row, in a new process.

    Args:
        column: A name of ``RUNS``.
        key: A name of ``ROWS``.
        threads: How many threads the libraries may use.
        pinned: Whether the process has no more cores than that.
        cache: The directory of torch's compiled programs.
        work: A function of this module, which gets the pipe, the run, the row and ``options``.
        options: Passed to ``work``.
    """

    def __init__(self, column, key, threads, pinned, cache, work, **options):
        os.environ |= {"OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_CACHE_DIR": str(cache)}
        if threads == 1:
            os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_main, args=(theirs, column, key, threads, pinned, work, options))
        self.process.start()
        theirs.close()

    def receive(self):
        """What the process sends next."""
        try:
            message = self.pipe.recv()
        except EOFError:
            self.process.join()
            raise Failed(f"the process ended with {self.process.exitcode}") from None
        if isinstance(message, Failed):
            raise message
        return message

    def microseconds(self):
        """Of a step, in one more block."""
        self.pipe.send("go")
        return self.receive()

    def close(self):
        self.pipe.close()
        self.process.join(10)
        self.process.terminate()
        self.process.join()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def _main(pipe: Connection, column, key, threads, pinned, work, options):
    warnings.simplefilter("ignore")
    if pinned:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    try:
        module, name, run_options = RUNS[column]
        run = getattr(importlib.import_module(f"svi_models.{module}"), name)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
        if name == "run_fit":
            importlib.import_module("pyro_lvm")
            importlib.import_module("torch._inductor.compile_fx")  # a second or two, once in a process
        work(pipe, functools.partial(run, ROWS[key], **run_options), ROWS[key], **options)
    except (EOFError, BrokenPipeError):
        pass  # the other side has seen enough
    except BaseException as error:
        text = str(error).strip() or traceback.extract_tb(error.__traceback__)[-1].line
        pipe.send(Failed(f"{type(error).__name__}: {text.splitlines()[0]}"))


def blocks(pipe, run, row, seconds):
    """A run whose final ELBO is sent, then blocks of about so many seconds, each when it is asked for."""
    losses, per_step = _timed(run, row)
    last = -losses[-row.check_steps // 4 :]
    means = np.array([part.mean() for part in np.array_split(last, 10)])
    pipe.send((last.mean(), means.std(ddof=1) / math.sqrt(len(means))))
    every = max(1, round(seconds / per_step))
    began = time.perf_counter()

    def between():
        nonlocal began
        pipe.send(1e6 * (time.perf_counter() - began) / every)  # the first one has the start-up in it
        try:
            pipe.recv()
        except EOFError:
            return True
        began = time.perf_counter()
        return False

    run(steps=1000 * every, every=every, between=between)


def whole(pipe, run, row, steps, measured_steps, steady):
    """Seconds of a whole run from nothing, peak memory in MB, and the seconds a step of a later one, if ``steady``.

    The steps after the first ``measured_steps`` are extrapolated.
    """
    began = time.perf_counter()
    run(steps=measured_steps)
    seconds = time.perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    per_step = _timed(run, row)[1] if steady else math.nan
    if measured_steps < steps:
        seconds += (steps - measured_steps) * per_step
    pipe.send((seconds, memory, per_step))


def _timed(run, row):
    every = row.check_steps // 4
    marks = []
    losses = run(steps=row.check_steps, every=every, between=lambda: marks.append(time.perf_counter()))
    return losses, (marks[3] - marks[2]) / every
