"""What a step of variational inference takes in ``lvm.fit``, stock Pyro, NumPyro and plain torch, on nine problems.

    python benchmarks/svi.py [--rows a d h] [--columns pyro compiled] [--repeats 5] [--threads 1]
    python benchmarks/svi.py --start-up    # what 5,000 steps take from nothing, compilation included
    python benchmarks/svi.py --auto        # whether compile="auto" chooses well

All columns fit the same model with the same guide from the same start (flows draw theirs), with Adam (rate 0.001) and
one particle, in float32. A run of each goes before, and its ELBO is printed. Then blocks of about half a second are
timed, one of each column in turn, and medians printed. Nothing is written.
"""

import argparse
import math
import statistics
import tempfile
from contextlib import ExitStack
from importlib.metadata import version

from svi_models.problems import ROWS
from svi_models.worker import Cell, Failed, blocks, whole

COLUMNS = {
    "pyro": "Pyro",
    "jit": "Pyro jit",
    "eager": "eager",
    "compiled": "compiled",
    "numpyro": "NumPyro",
    "torch": "torch",
}
NOTES = """\
Pyro: SVI.step with Trace_ELBO or TraceEnum_ELBO. Pyro jit: their Jit counterparts.
eager, compiled: lvm.fit with compile=False and True, the default ELBO; row b with guide="full_rank".
NumPyro: blocks of steps as one jitted scan; rows e and f by MixtureSameFamily.
torch: the reparametrised ELBO written by hand, Adam with fused=True."""
PEERS = {"pyro": "stock Pyro", "numpyro": "NumPyro", "torch": "plain torch"}
START_UP_STEPS = 5_000
AUTO_STEPS = (100, 1_000, 10_000)
AUTO_ROWS = ("a", "d", "h")
TOLERANCE = 0.005  # of the ELBO, beside four standard errors: no run has quite converged
WIDTH = 56


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="all, if not given; with --auto a, d and h")
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=list(COLUMNS), help="of the first table")
    parser.add_argument("--repeats", type=int, default=5, help="blocks whose median is printed")
    parser.add_argument("--seconds", type=float, default=0.5, help="what a block takes, about")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch and of XLA")
    tables = parser.add_mutually_exclusive_group()
    tables.add_argument("--start-up", action="store_true", help="print the table of whole runs of 5,000 steps")
    tables.add_argument("--auto", action="store_true", help='print the table of compile=False, True and "auto"')
    options = parser.parse_args()
    print(", ".join(f"{name} {version(name)}" for name in ("torch", "pyro-ppl", "numpyro", "jax")), end="; ")
    cores = "pinned to as many cores" if not (options.start_up or options.auto) else "not pinned"
    print(f"CPU, {options.threads} thread(s) of torch and of XLA, processes {cores}")
    table = print_start_up if options.start_up else print_auto if options.auto else print_steps
    table(options)


def print_steps(options):
    """Microseconds a step, the ELBOs that were reached, and ratios."""
    print(NOTES)
    print(f"\n{'microseconds a step':<{WIDTH}}" + "".join(f"{COLUMNS[c]:>10}" for c in options.columns), flush=True)
    times, elbos, reasons = {}, {}, {}
    for key in options.rows or ROWS:
        times[key], elbos[key], failed = steps_of_row(key, options)
        for column, reason in failed.items():
            reasons.setdefault((COLUMNS[column], reason), []).append(key)
        cells = "".join(f"{_number(times[key].get(c), 1):>10}" for c in options.columns)
        print(f"{_title(key):<{WIDTH}}{cells}", flush=True)
    _print_reasons(reasons)

    print(f"\n{'ELBO, last quarter of the steps':<{WIDTH}}" + "".join(f"{COLUMNS[c]:>14}" for c in options.columns))
    for key, values in elbos.items():
        reference = next(iter(values.values()), None)
        cells = "".join(f"{_elbo(values.get(c), reference):>14}" for c in options.columns)
        print(f"{f'{_title(key)}; {ROWS[key].check_steps:,}':<{WIDTH}}{cells}")
    print(f"Beyond four standard errors and {TOLERANCE:.1%} of the row's first: " + ", ".join(_strays(elbos)))

    letters = "".join(f"{key:>8}" for key in times)
    print(f"\n{'times as long as compiled':<{WIDTH}}{letters}")
    for column, name in PEERS.items():
        ratios = [_ratio(t.get(column), t.get("compiled")) for t in times.values()]
        print(f"{name:<{WIDTH}}" + "".join(f"{ratio:>8}" for ratio in ratios))


def steps_of_row(key, options):
    """Microseconds a step, the ELBO with its standard error, and what went wrong, by column."""
    cells, elbos, reasons = {}, {}, {}
    with ExitStack() as stack:
        cache = stack.enter_context(tempfile.TemporaryDirectory())
        for column in options.columns:
            try:
                cell = Cell(column, key, options.threads, True, cache, blocks, seconds=options.seconds)
                stack.enter_context(cell)
                elbos[column] = cell.receive()
                cell.receive()  # the first block, in which all is compiled
                cells[column] = cell
            except Failed as error:
                reasons[column] = str(error)
        times = {column: [] for column in cells}
        for _ in range(options.repeats):
            for column, cell in cells.items():
                times[column].append(cell.microseconds())
    return {column: statistics.median(t) for column, t in times.items()}, elbos, reasons


def print_start_up(options):
    """Whole runs from nothing. Imports are not counted, that of torch's compiler neither; it may use all cores."""
    print(
        f"compile: what a run of {START_UP_STEPS:,} steps takes beyond so many steps later on. MB: peak of the process."
    )
    print("cold, warm: lvm.fit with compile=True, without and with torch's compiled programs of an earlier process.")
    print("Pyro: the first step, and 5,000 extrapolated from a shorter run.")
    columns = {"cold": "compiled", "warm": "compiled", "NumPyro": "numpyro", "Pyro": "pyro"}
    print(f"\n{'':<{WIDTH}}" + "".join(f"{name:^24}" for name in columns))
    print(
        f"{f'{START_UP_STEPS:,} steps':<{WIDTH}}" + f"{'total s':>9}{'compile':>8}{'MB':>7}" * len(columns), flush=True
    )
    reasons = {}
    for key in options.rows or ROWS:
        line = f"{_title(key):<{WIDTH}}"
        with tempfile.TemporaryDirectory() as cache:
            for name, column in columns.items():
                measured = 1 if column == "pyro" else START_UP_STEPS
                try:
                    seconds, memory, per_step = whole_run(column, key, options, cache, START_UP_STEPS, measured, True)
                    line += f"{seconds:>9.1f}{max(0, seconds - START_UP_STEPS * per_step):>8.1f}{memory:>7.0f}"
                except Failed as error:
                    reasons.setdefault((name, str(error)), []).append(key)
                    line += f"{'-':>9}{'-':>8}{'-':>7}"
        print(line, flush=True)
    _print_reasons(reasons)


def print_auto(options):
    """Whole runs of three lengths, each with a cold cache."""
    columns = {"eager": "False", "compiled": "True", "auto": '"auto"'}
    print(f"\n{'seconds of lvm.fit, cold; compile=':<{WIDTH}}{'steps':>8}", end="")
    print("".join(f"{name:>9}" for name in columns.values()) + f"{'auto over the better':>22}", flush=True)
    reasons = {}
    for key in options.rows or AUTO_ROWS:
        for steps in AUTO_STEPS:
            seconds = {}
            for column, name in columns.items():
                try:
                    with tempfile.TemporaryDirectory() as cache:
                        seconds[column], _, _ = whole_run(column, key, options, cache, steps, steps, False)
                except Failed as error:
                    reasons.setdefault((f"compile={name}", str(error)), []).append(f"{key} {steps:,}")
            better = min((seconds[c] for c in ("eager", "compiled") if c in seconds), default=None)
            cells = "".join(f"{_number(seconds.get(c), 2):>9}" for c in columns)
            print(f"{_title(key):<{WIDTH}}{steps:>8,}{cells}{_ratio(seconds.get('auto'), better):>22}", flush=True)
    _print_reasons(reasons)


def whole_run(column, key, options, cache, steps, measured, steady):
    work = {"steps": steps, "measured_steps": measured, "steady": steady}
    with Cell(column, key, options.threads, False, cache, whole, **work) as cell:
        return cell.receive()


def _title(key):
    return f"{key} {ROWS[key].title}"


def _number(value, digits=0):
    return "-" if value is None else f"{value:,.{digits}f}"


def _ratio(value, reference):
    return "-" if value is None or reference is None else f"{value / reference:.2f}"


def _elbo(value, reference):
    if value is None:
        return "-"
    digits = 2 if abs(value[0]) < 10_000 else 0
    return _number(value[0], digits) + ("!" if _strays_from(value, reference) else " ")


def _strays_from(value, reference):
    (mean, error), (expected, its_error) = value, reference
    return not abs(mean - expected) <= 4 * math.hypot(error, its_error) + TOLERANCE * abs(expected)


def _strays(elbos):
    """Cells whose ELBO is not that of the first column, or "none"."""
    found = []
    for key, values in elbos.items():
        reference = next(iter(values.values()), None)
        found += [f"{COLUMNS[c]} in row {key}" for c, value in values.items() if _strays_from(value, reference)]
    return found or ["none"]


def _print_reasons(reasons):
    for (column, reason), keys in reasons.items():
        print(f"- {column}, {', '.join(keys)}: {reason}")


if __name__ == "__main__":
    main()
