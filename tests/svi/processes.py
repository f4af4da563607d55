"""Fits in processes of their own, which can be killed."""

import multiprocessing
import os
import runpy
import time
from pathlib import Path


class Process:
    """The script in a process of its own, forked from a server that has imported torch already."""

    def __init__(self, script, kind, pause, checkpoint, out):
        self.steps = Path(f"{out}.steps")
        self.steps.unlink(missing_ok=True)
        arguments = {"kind": kind, "path": str(checkpoint), "out": str(out), "pause": pause}
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["pyro_lvm", "torch._dynamo", "torch._inductor.compile_fx"])
        self.process = context.Process(target=runpy.run_path, args=(str(script), arguments))
        self.process.start()

    def wait_for_a_block(self):
        limit = time.monotonic() + 120
        while not self.steps.exists():
            assert time.monotonic() < limit
            assert self.process.exitcode is None
            time.sleep(0.005)

    def end(self, number=None):
        """The exit code, after a signal if one is given."""
        if number is not None:
            os.kill(self.process.pid, number)
        self.process.join(120)
        return self.process.exitcode
