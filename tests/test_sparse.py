"""Rows of sparse tables are those of the dense ones."""

import numpy as np
import pytest
import torch
from scipy import sparse as scipy_sparse

from pyro_lvm import sparse
from pyro_lvm.data import Data, as_tensor, fingerprint

DENSE = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 3.0], [4.0, 5.0, 6.0]])
TABLE = sparse.from_dense(DENSE)


@pytest.mark.parametrize(
    "index", [slice(0, 2), slice(1, 4, 2), torch.tensor([3, 0, 0]), torch.tensor([], dtype=torch.long), DENSE[:, 0] > 0]
)
def test_rows_are_those_of_the_dense_table(index):
    assert torch.equal(sparse.take(TABLE, index).to_dense(), DENSE[index])


def test_tables_are_joined():
    assert torch.equal(sparse.concatenate([TABLE, sparse.take(TABLE, slice(2, 3))]).to_dense(), DENSE[[0, 1, 2, 3, 2]])


def test_entries_know_their_rows():
    assert sparse.row_of_entries(TABLE).tolist() == [0, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("kind", [scipy_sparse.csr_matrix, scipy_sparse.coo_array, scipy_sparse.csc_matrix])
def test_matrices_of_scipy_are_data(kind):
    data = Data([kind(DENSE.numpy()), torch.arange(4)])
    assert data.has_rows == (True, True)
    assert torch.equal(data.args[0].to_dense(), DENSE)
    assert data.take(torch.tensor([2, 0]))[0].to_dense().tolist() == DENSE[[2, 0]].tolist()
    assert data.holds((as_tensor(kind(DENSE.numpy())), torch.arange(4)))
    assert not data.holds((sparse.from_dense(2 * DENSE), torch.arange(4)))
    assert (
        fingerprint(data.args[0]) == fingerprint(sparse.from_dense(DENSE)) != fingerprint(sparse.from_dense(2 * DENSE))
    )


def test_duplicate_entries_are_added():
    twice = scipy_sparse.coo_matrix(([1.0, 2.0], ([0, 0], [1, 1])), shape=(1, 3))
    assert as_tensor(twice).to_dense().tolist() == [[0.0, 3.0, 0.0]]


def test_entries_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="is not finite"):
        Data([scipy_sparse.csr_matrix(np.array([[0.0, np.nan]]))])
