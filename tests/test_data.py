import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader

from pyro_lvm.batches import LoaderRows, ShuffledRows
from pyro_lvm.data import Data, as_tensor, check_weight, fingerprint


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.array([1.5, 2.0]), torch.float32),
        (np.array([1.5, 2.0], np.float16), torch.float32),
        (np.array([1.5, 2.0], np.longdouble), torch.float32),
        (np.array([1.5, 2.0], ">f8"), torch.float32),
        (np.array([1, 2], np.uint8), torch.int64),
        (np.array([1, 2], ">i4"), torch.int64),
        (np.array([True, False]), torch.bool),
        (pd.Series([1.5, 2.0]), torch.float32),
        (pd.Series([1, 2], dtype="int8"), torch.int64),
        (pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5]}), torch.float32),
        (pd.Series([1, 2], dtype="Int64"), torch.int64),
        (pd.DataFrame({"a": [1, 2], "b": [3, 4]}, dtype="Int64"), torch.int64),
        (pd.DataFrame({"a": [True, False]}, dtype="boolean"), torch.bool),
        (pd.DataFrame({"a": pd.array([1, 2], "Int64"), "b": [0.5, 1.5]}), torch.float32),
        ([1, 2.5], torch.float32),
        ([1, np.int64(2)], torch.int64),
        ([True, False], torch.bool),
        (torch.tensor([1.0], dtype=torch.float16), torch.float16),
        (np.float64(2.0) * np.ones(()), None),
    ],
    ids=str,
)
def test_numbers_keep_their_kind(value, dtype):
    tensor = as_tensor(value)
    if dtype is None:
        assert float(tensor) == 2.0
        return
    assert tensor.dtype == dtype
    np.testing.assert_array_equal(tensor.numpy(), np.asarray(value).astype(tensor.numpy().dtype))


def test_floats_become_the_default_dtype():
    with torch.device("cpu"):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            assert as_tensor(np.ones(2, np.float32)).dtype == torch.float64
        finally:
            torch.set_default_dtype(before)


def test_tensors_and_strangers_are_passed_as_they_are():
    tensor, thing = torch.ones(2, requires_grad=True), object()
    assert as_tensor(tensor) is tensor
    assert as_tensor(thing) is thing
    assert as_tensor(None) is None
    assert as_tensor(3) == 3


@pytest.mark.parametrize("value", [[], ["a"], [1.0, "a"], [[1.0], [2.0]], [torch.ones(2)], (1.0, 2.0)], ids=str)
def test_other_lists_pass_whole(value):
    assert as_tensor(value) is value


def test_missing_entries_of_a_nullable_frame_are_named():
    frame = pd.DataFrame({"a": pd.array([1, 2], "Int64"), "b": pd.array([0.5, None], "Float64")})
    with pytest.raises(ValueError, match=r"data argument 0 is not finite: nan in row 1, entry \[1\] \(1 in all\)"):
        Data((frame,))


def test_a_tensor_does_not_share_the_arrays_memory():
    array = np.ones(3, np.float32)
    tensor = as_tensor(array)
    array[:] = 7
    assert tensor.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "value", [np.array(["a"]), pd.DataFrame({"a": ["x"], "b": [1]}), np.array([None]), pd.Series(["b"])]
)
def test_what_holds_no_numbers_is_refused(value):
    with pytest.raises(TypeError, match=r"the data has dtype .*encode text and categories as numbers"):
        as_tensor(value)


@pytest.mark.parametrize(
    ("bad", "place"),
    [(float("nan"), "nan in row 2, entry \\[1\\]"), (float("-inf"), "-inf in row 2, entry \\[1\\]")],
)
def test_an_entry_that_is_not_finite_is_named(bad, place):
    x = torch.zeros(4, 3)
    x[2, 1] = x[3, 0] = bad
    with pytest.raises(ValueError, match=rf"data argument 1 is not finite: {place} \(2 in all\)"):
        Data((torch.zeros(4), x))


def test_rows_are_what_follows_the_first_argument():
    data = Data((torch.zeros(4, 2), torch.zeros(4), torch.zeros(2), 5, torch.zeros(()), None))
    assert data.has_rows == (True, True, False, False, False, False)
    assert data.num_rows == 4
    taken = data.take(torch.tensor([3, 0]))
    assert [len(t) for t in taken[:3]] == [2, 2, 2]
    assert taken[3:] == (5, torch.zeros(()), None)


@pytest.mark.parametrize(("rows", "has_rows", "count"), [([1], (False, True), 3), ((), (False, False), None)])
def test_rows_may_be_named(rows, has_rows, count):
    data = Data((torch.zeros(4), torch.zeros(3)), rows)
    assert (data.has_rows, data.num_rows) == (has_rows, count)


def test_named_rows_must_agree():
    with pytest.raises(ValueError, match=r"differ in length: \[4, 3\]"):
        Data((torch.zeros(4), torch.zeros(3)), [0, 1])
    with pytest.raises(ValueError, match="rows names position -1"):
        Data((torch.zeros(4),), [-1])
    with pytest.raises(TypeError, match="rows must list the positions"):
        Data((torch.zeros(4),), [True])


def test_fingerprints_tell_data_apart():
    x = torch.arange(6.0)
    same = [Data((x,)), Data((x.clone(),)), Data((x.numpy(),)), Data((x.repeat(2)[:6],))]
    assert len({fingerprint(d.args) for d in same}) == 1
    others = [x + 0.5, x.reshape(2, 3), x.double(), x.flip(0), x[:5], x.long()]
    assert len({fingerprint(o) for o in [x, *others]}) == 7
    assert fingerprint((x, 1)) != fingerprint((x, 2))


def test_a_transposed_tensor_hashes_by_its_values():
    x = torch.arange(6.0).reshape(2, 3)
    assert fingerprint(x.T) == fingerprint(x.T.contiguous())


def test_fingerprints_see_every_entry_of_what_is_nested_and_no_address():
    def options(last):
        x = torch.zeros(5000)
        x[2500] = last
        return {"tensor": x, "list": [x.numpy()], "frame": pd.DataFrame({"a": x.numpy()}), "prior": dist.Normal(x, 1.0)}

    one, other = options(0.0), options(1.0)
    assert fingerprint(one) == fingerprint(options(0.0))
    for name in one:
        assert fingerprint(one[name]) != fingerprint(other[name]), name
    assert "0x" not in fingerprint([object, options, torch.nn.Linear(1, 1), ShuffledRows])


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_rows_of_all_arguments_stay_together(batch_size):
    data = Data((torch.arange(7), torch.arange(7) * 10, torch.tensor([1.0, 2.0])))
    batches = ShuffledRows(data, torch.arange(7.0), batch_size, seed=1)
    for step in range(20):
        (x, y, whole), weight = batches.get(step)
        assert torch.equal(x * 10, y)
        assert torch.equal(x.float(), weight)
        assert whole.tolist() == [1.0, 2.0]


class ReadsLate(torch.utils.data.Dataset):
    """Makes its tensors when it is asked for them."""

    def __len__(self):
        return 7

    def __getitem__(self, i):
        return torch.tensor(float(i))


@pytest.mark.parametrize("generator", [None, torch.Generator()])
def test_rows_are_drawn_on_the_cpu_whatever_the_device_of_a_fit(generator):
    x = torch.arange(7.0)
    loader = DataLoader(ReadsLate(), batch_size=3, shuffle=True, generator=generator)
    with torch.device("meta"):  # stands for a device whose numbers a generator of the CPU cannot draw
        shuffled = ShuffledRows(Data((x,)), x, 3, seed=1)
        loaded, again = LoaderRows(loader, "cpu", None), LoaderRows(loader, "cpu", None)
        assert set(loaded.first()[0].tolist()) < set(range(7))
        for batches in (shuffled, loaded):
            epoch = torch.cat([batches.get(step)[0][0] for step in range(3)], 0)
            assert torch.equal(epoch.sort().values, x)
        loaded.get(3)
        again.load_state_dict(loaded.state_dict())
        assert torch.equal(again.get(4)[0][0], loaded.get(4)[0][0])


def test_weights_become_floats():
    assert check_weight([1, 2], 2).dtype == torch.float32
    assert check_weight(None, 2) is None
    assert check_weight(torch.ones(2).double(), 2).dtype == torch.float64
