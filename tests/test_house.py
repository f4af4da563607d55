"""The structure of the package: who may import whom, and that importing it changes nothing."""

import ast
import graphlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyro_lvm

PACKAGE = Path(pyro_lvm.__file__).parent

ORDER = (
    "version",
    "checks",
    "randomness",
    "files",
    "sparse",
    "newton",
    "interrupts",
    "warn",
    "data",
    "checkpoint",
    "batches",
    "modules",
    "statements",
    "params",
    "sites",
    "vectorize",
    "noise",
    "tracing",
    "graphs",
    "compiling",
    "nn",
    "transforms",
    "flows",
    "flow_guide",
    "guides",
    "families",
    "densities",
    "models",
    "program",
    "elbo",
    "psis",
    "importance",
    "resampling",
    "plots",
    "result",
    "draws",
    "verdict",
    "svi",
    "em",
    "load",
    "diagnostics",
)


def import_graph(package: Path) -> dict[str, set[str]]:
    """Maps each module of a package to the modules of the package that it imports, wherever in the file."""
    paths = {
        ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in package.rglob("*.py")
    }

    def imported(module, path):
        home = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                candidates = [(alias.name,) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = home.split(".")[: len(home.split(".")) - node.level + 1] if node.level else []
                base = ".".join([*above, *filter(None, [node.module])])
                # `from base import name` means the module base.name where there is one, else base itself.
                candidates = [(f"{base}.{alias.name}", base) for alias in node.names]
            else:
                continue
            for names in candidates:
                yield from [name for name in names if name in paths][:1]

    return {module: set(imported(module, path)) for module, path in paths.items()}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Returns modules that import each other in a circle, or an empty list."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def out_of_order(graph: dict[str, set[str]], order: tuple[str, ...]) -> list[str]:
    """Returns a sentence for each import that does not point upwards, and for each room without a place."""

    def room(module):
        return module.split(".")[1]

    inner = {module: imports for module, imports in graph.items() if "." in module}
    wrong = [f"{module} has no place in the order" for module in inner if room(module) not in order]
    if wrong:
        return wrong
    for module, imports in inner.items():
        for other in imports:
            if "." not in other:
                wrong.append(f"{module} imports the package's front, {other}")
            elif room(other) != room(module) and order.index(room(other)) > order.index(room(module)):
                wrong.append(f"{module} imports {other}, which stands below it")
    return wrong


def test_no_circle():
    assert circle(import_graph(PACKAGE)) == []


def test_imports_point_upwards():
    assert out_of_order(import_graph(PACKAGE), ORDER) == []


def test_the_design_describes_every_room_in_order():
    design = (PACKAGE.parent / "docs" / "design.md").read_text()
    described = re.findall(r"^\| `(\w+)(?:\.py|/)` \|", design, flags=re.MULTILINE)
    assert described == [room for room in ORDER if room in described]
    assert {module.split(".")[1] for module in import_graph(PACKAGE) if "." in module} <= set(described)


@pytest.fixture
def tree(tmp_path):
    """Writes a package `house` from the sources of its files, and returns its import graph."""

    def write(**files):
        for name, source in {"__init__": "", **files}.items():
            path = tmp_path / "house" / f"{name.replace('__in__', '/')}.py"
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_text(source)
        return import_graph(tmp_path / "house")

    return write


IMPORTS_OF_B = [
    "import house.b",
    "import os, house.b as other",
    "from house.b import thing",
    "from house import b",
    "from . import b",
    "from .b import thing",
    "def f():\n    from house.b import thing",
    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.b import thing",
]


@pytest.mark.parametrize("source", IMPORTS_OF_B)
def test_every_form_of_import_is_seen(tree, source):
    graph = tree(a=source, b="")
    assert graph["house.a"] == {"house.b"}
    assert out_of_order(graph, ("b", "a")) == []
    assert out_of_order(graph, ("a", "b")) == ["house.a imports house.b, which stands below it"]


def test_relative_imports_climb_from_a_subpackage(tree):
    graph = tree(a="", room__in____init__="from .x import y", room__in__x="from ..a import z\nfrom . import w")
    assert graph["house.room"] == {"house.room.x"}
    assert graph["house.room.x"] == {"house.a", "house.room"}


def test_a_circle_is_found(tree):
    assert set(circle(tree(a="import house.b", b="def f():\n    import house.a"))) == {"house.a", "house.b"}
    assert circle(tree(a="import house.b", b="")) == []


def test_a_circle_inside_a_room_is_found(tree):
    graph = tree(room__in____init__="from house.room.x import y", room__in__x="from house.room import z")
    assert set(circle(graph)) == {"house.room", "house.room.x"}
    assert out_of_order(graph, ("room",)) == []


def test_a_subpackage_counts_for_its_room(tree):
    graph = tree(room__in____init__="import house.late", late="")
    assert out_of_order(graph, ("room", "late")) == ["house.room imports house.late, which stands below it"]


def test_the_front_is_exempt_but_not_to_be_imported(tree):
    graph = tree(__init__="from house.b import thing\nfrom house.a import thing", a="import house", b="")
    assert out_of_order(graph, ("a", "b")) == ["house.a imports the package's front, house"]


def test_a_room_needs_a_place(tree):
    assert out_of_order(tree(a="", attic=""), ("a",)) == ["house.attic has no place in the order"]


SNAPSHOT = """
import json, sys, warnings
import matplotlib, numpy, pyro, scipy.cluster.vq, torch

def snapshot():
    return {
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "torch's random state": torch.get_rng_state().tolist(),
        "numpy's random state": str(numpy.random.get_state()),
        "gradients": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "matrix product precision": torch.get_float32_matmul_precision(),
        "Pyro settings": pyro.settings.get(),
        "torch validation": torch.distributions.Distribution._validate_args,
        "param store": sorted(pyro.get_param_store().keys()),
        "handlers": len(pyro.poutine.runtime._PYRO_STACK),
        "warning filters": [str(entry) for entry in warnings.filters],
        "matplotlib": str(dict.items(matplotlib.rcParams)),
        "pyplot": "matplotlib.pyplot" in sys.modules,
    }

before = snapshot()
import pyro_lvm
after = snapshot()
print(json.dumps([name for name in before if before[name] != after[name]]))
"""


@pytest.mark.parametrize(
    ("meddling", "changed"),
    [
        ("", []),
        ("torch.set_default_dtype(torch.float64)", ["default dtype"]),
        ("torch.rand(1); pyro.enable_validation(False)", ["torch's random state", "Pyro settings"]),
    ],
)
def test_importing_changes_no_global_state(meddling, changed):
    script = SNAPSHOT.replace("import pyro_lvm\n", f"import pyro_lvm\n{meddling}\n")
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert set(changed) <= set(json.loads(run.stdout))
    assert changed or json.loads(run.stdout) == []
