"""What a program holds beside the values of tensors is found by name, so that a change of it is seen."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from pyro_lvm.modules import _FEW, Sealed, python_values

LEVEL = 1.5
NAMED = {"depth": 3, "inner": {"width": 7}}
UNUSED = 11


def of_globals(x):
    return LEVEL * x + NAMED["depth"]


def nested_code(x):
    return [LEVEL * v for v in x]


def values(*programs):
    return python_values(*programs)


def changes(program, change, back=None):
    """The names under which a change of the user's is seen."""
    before = values(program)
    change()
    after = values(program)
    if back is not None:
        back()
        assert differing(before, values(program)) == []
    return differing(before, after)


def differing(before, after):
    """The names of other numbers, and of other tensors, whatever is in them."""

    def same(one, other):
        return one is other or (not isinstance(one, torch.Tensor) and type(one) is type(other) and one == other)

    def equal(ours, theirs):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))

    return sorted(n for n in before.keys() | after.keys() if not equal(before.get(n, []), after.get(n, [])))


def test_numbers_in_globals(monkeypatch):
    found = values(of_globals)
    assert found["LEVEL"] == [1.5]
    assert found["depth"] == [3]
    assert found["width"] == [7]
    assert "UNUSED" not in found
    assert changes(of_globals, lambda: monkeypatch.setitem(globals(), "LEVEL", 2.5)) == ["LEVEL"]
    monkeypatch.undo()
    assert values(nested_code)["LEVEL"] == [1.5]


def test_numbers_in_nested_dicts():
    inner = NAMED["inner"]
    seen = changes(of_globals, lambda: inner.update(width=8), lambda: inner.update(width=7))
    assert len(seen) == 1
    assert "width" in seen[0]
    seen = changes(of_globals, lambda: NAMED.update(new=1), lambda: NAMED.pop("new"))
    assert len(seen) == 1
    assert "new" in seen[0]


def test_numbers_in_closures():
    factor, listed, deep = 2.0, [1, [2, 3]], {"a": [{"b": 4}]}

    def program(x):
        return factor * listed[0] * deep["a"][0]["b"] * x

    def rebind(value):
        nonlocal factor
        factor = value

    def put(value):
        listed[1][1] = value

    def put_deep(value):
        deep["a"][0]["b"] = value

    assert values(program)["factor"] == [2.0]
    assert changes(program, lambda: rebind(3.0), lambda: rebind(2.0)) == ["factor"]
    assert changes(program, lambda: put(9), lambda: put(3)) == ["listed.1.1"]
    seen = changes(program, lambda: put_deep(5), lambda: put_deep(4))
    assert len(seen) == 1
    assert "b" in seen[0]
    assert changes(program, lambda: listed.append(0.5), listed.pop) == ["listed.2"]


def test_the_same_key_in_two_dicts():
    one, other = {"scale": 1.0}, {"scale": 2.0}

    def program(x):
        return one["scale"] * other["scale"] * x

    for held in (one, other):
        old = held["scale"]
        seen = changes(program, lambda held=held: held.update(scale=9.0), lambda h=held, o=old: h.update(scale=o))
        assert len(seen) == 1, held
        assert "scale" in seen[0]


def test_two_defaults():
    def program(x, first=1.0, second=2.0, *, third=3.0):
        return first * second * third * x

    def put(*defaults, third=3.0):
        program.__defaults__ = defaults
        program.__kwdefaults__ = {"third": third}

    assert values(program)["third"] == [3.0]
    assert changes(program, lambda: put(1.0, 9.0), lambda: put(1.0, 2.0))
    assert changes(program, lambda: put(9.0, 2.0), lambda: put(1.0, 2.0))
    assert changes(program, lambda: put(1.0, 2.0, third=9.0), lambda: put(1.0, 2.0)) == ["third"]


class Plain:
    level = 4.0

    def __init__(self):
        self.rate = 0.5
        self.parts = [Part(), Part()]
        self.table = {"temperature": 1.0}

    def model(self, x):
        return self.rate * x * self.parts[0].size


class Part:
    def __init__(self):
        self.size = 3


def test_attributes_of_an_object():
    plain = Plain()
    assert values(plain.model)["rate"] == [0.5]
    assert values(plain.model)["temperature"] == [1.0]
    assert changes(plain.model, lambda: setattr(plain, "rate", 0.7), lambda: setattr(plain, "rate", 0.5)) == ["rate"]
    assert changes(
        plain.model, lambda: plain.table.update(temperature=2.0), lambda: plain.table.update(temperature=1.0)
    )
    assert changes(plain.model, lambda: setattr(plain, "fresh", 1), lambda: delattr(plain, "fresh")) == ["fresh"]


@pytest.mark.parametrize("which", [0, 1])
def test_attributes_of_objects_in_a_list(which):
    plain = Plain()
    part = plain.parts[which]
    seen = changes(plain.model, lambda: setattr(part, "size", 5), lambda: setattr(part, "size", 3))
    assert len(seen) == 1
    assert "size" in seen[0]


def test_attributes_of_a_class(monkeypatch):
    class Own(Plain):
        level = 4.0

        def model(self, x):
            return self.level * x

    own = Own()
    assert changes(own.model, lambda: setattr(Own, "level", 5.0)) != []


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.drop = nn.Dropout(0.1)
        self.register_buffer("weight", torch.ones(2))
        self.beta = 1.0
        self.name = "net"
        self.options = {"depth": 2}

    def model(self, x):
        return self.beta * self.drop(self.norm(self.linear(x)))


def test_attributes_of_a_module_and_its_parts():
    net = Net()
    assert changes(net.model, lambda: setattr(net, "beta", 2.0), lambda: setattr(net, "beta", 1.0)) == ["beta"]
    assert changes(net.model, lambda: setattr(net, "name", "x"), lambda: setattr(net, "name", "net")) == ["name"]


def test_numbers_of_torchs_modules():
    net = Net()
    assert changes(net.model, lambda: setattr(net.drop, "p", 0.2), lambda: setattr(net.drop, "p", 0.1)) == ["p"]
    seen = changes(net, lambda: setattr(net.norm, "momentum", 0.3), lambda: setattr(net.norm, "momentum", 0.1))
    assert seen == ["momentum"]


def test_lists_and_dicts_of_a_module():
    net = Net()
    assert changes(net.model, lambda: net.options.update(depth=3), lambda: net.options.update(depth=2)) != []


def test_training_flags():
    net = Net()
    assert values(net.model)["training"] == [True] * 4
    assert changes(net.model, net.eval, net.train) == ["training"]
    for part in net.modules():
        assert changes(net.model, lambda part=part: setattr(part, "training", False), net.train) == ["training"]

    def program(x):
        return net(x)

    assert changes(program, net.drop.eval, net.drop.train) == ["training"]


def test_a_tensor_in_the_place_of_another():
    net = Net()
    held = {"prior": torch.ones(2)}
    listed = [torch.ones(2)]

    def program(x):
        return net.model(x) + held["prior"] + listed[0]

    def put(tensor):
        listed[0] = tensor

    old, first = held["prior"], listed[0]
    weight, parameter = net.weight, net.linear.weight
    assert changes(program, lambda: held.update(prior=torch.ones(2)), lambda: held.update(prior=old)) == ["prior"]
    assert changes(program, lambda: put(torch.ones(2)), lambda: put(first)) == ["listed.0"]
    seen = changes(program, lambda: setattr(net, "weight", torch.ones(2)), lambda: setattr(net, "weight", weight))
    assert seen == ["weight"]
    seen = changes(
        program,
        lambda: setattr(net.linear, "weight", nn.Parameter(torch.ones(2, 2))),
        lambda: setattr(net.linear, "weight", parameter),
    )
    assert seen == ["weight"]


def test_a_tensor_changed_in_place_is_the_same_tensor():
    net = Net()
    held = [torch.ones(2)]

    def program(x):
        return net.model(x) + held[0]

    def change():
        with torch.no_grad():
            for tensor in (held[0], net.weight, net.linear.weight, net.norm.running_mean):
                tensor.add_(1.0)

    assert changes(program, change) == []
    assert changes(program, lambda: net.norm(torch.randn(4, 2))) == []  # batch norm counts its calls in a tensor


def test_partial_programs_and_wrapped_ones():
    def program(x, scale, shift=0.0):
        return x * scale + shift

    assert values(functools.partial(program, scale=2.0))["scale"] == [2.0]
    one, other = functools.partial(program, scale=2.0), functools.partial(program, scale=3.0)
    assert values(one) != values(other)

    @functools.wraps(program)
    def wrapped(*args):
        return program(*args, scale=LEVEL)

    assert values(wrapped)["LEVEL"] == [1.5]


def test_partial_programs_that_differ_in_an_argument():
    def program(x, scale=1.0):
        return x * scale

    assert values(functools.partial(program, 1.0)) != values(functools.partial(program, 2.0))


def test_a_callable_object():
    class Model:
        def __init__(self):
            self.rate = 1.0

        def __call__(self, x):
            return x * self.rate * LEVEL

    model = Model()
    assert values(model)["rate"] == [1.0]
    assert values(model)["LEVEL"] == [1.5]
    assert changes(model, lambda: setattr(model, "rate", 2.0)) == ["rate"]


def test_values_of_all_kinds():
    held = {"i": 1, "f": 1.5, "c": 1j, "b": True, "s": "abc", "y": b"abc", "n": np.float32(2.0), "z": None}

    def program(x):
        return held and x

    found = values(program)
    assert {k: found[k] for k in "ifcbsyn"} == {k: [held[k]] for k in "ifcbsyn"}
    for key, new in {"i": 2, "f": 2.5, "c": 2j, "b": False, "s": "x", "y": b"x", "n": np.float32(3.0)}.items():
        old = held[key]
        assert changes(program, lambda k=key, v=new: held.update({k: v}), lambda k=key, v=old: held.update({k: v})) == [
            key
        ], key


@pytest.mark.parametrize("first", [None, 1.0])
def test_nothing_that_becomes_something_and_back(first):
    class Box:
        def __init__(self):
            self.limit = first

        def model(self, x):
            return x if self.limit is None else x.clamp(max=self.limit)

    box = Box()
    assert changes(box.model, lambda: setattr(box, "limit", None if first else 1.0)) == ["limit"]


def test_nan_is_no_change():
    held = [float("nan"), np.float64("nan")]

    def program(x):
        return x * held[0]

    assert changes(program, lambda: None) == []


def test_arrays_of_numpy():
    held = {"weights": np.ones(3)}

    def program(x):
        return x * torch.from_numpy(held["weights"])

    old = held["weights"]
    assert changes(program, lambda: held.update(weights=np.zeros(3)), lambda: held.update(weights=old)) != []


def test_circles_long_lists_and_sealed_programs():
    ring = [1.0]
    ring.append(ring)
    many = [float(i) for i in range(_FEW + 1)]
    few = [float(i) for i in range(_FEW)]

    class Fixed(Sealed):
        def __init__(self):
            self.rate = 1.0

    fixed = Fixed()

    def program(x):
        return ring, many, few, fixed, x

    found = values(program)
    assert found["ring.0"] == [1.0]
    assert "rate" not in found
    assert sum(name.startswith("many") for name in found) == 0
    assert sum(name.startswith("few") for name in found) == _FEW


def test_programs_together():
    net = Net()

    def model(x):
        return LEVEL * x

    def guide(x):
        return net(x)

    found = values(model, guide)
    assert found["LEVEL"] == [1.5]
    assert found["beta"] == [1.0]


def test_model_and_guide_may_hold_numbers_of_the_same_name():
    def make(scale):
        def program(x):
            return scale * x

        def put(value):
            nonlocal scale
            scale = value

        return program, put

    (model, first), (guide, second) = make(1.0), make(2.0)
    for put, old in ((first, 1.0), (second, 2.0)):
        before = values(model, guide)
        put(9.0)
        assert values(model, guide) != before
        put(old)
        assert values(model, guide) == before


def test_libraries_are_not_searched():
    def program(x):
        return torch.nn.functional.relu(x) + np.pi

    assert values(program) == {}
