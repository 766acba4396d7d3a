"""A long chain over real processes on the loopback address finds what one process finds."""

import numpy as np
import pytest

from tests import processes

PROGRAM = ("-m", "tests.sharded.long_chain")


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "found.npz"
    (ended,) = processes.run(lambda i, n, address: [*PROGRAM, address, str(i), str(n), str(out)], 1)
    assert ended.code == 0, ended.error
    return dict(np.load(out))


@pytest.mark.sweep
@pytest.mark.parametrize("count", [2, 4])
def test_processes_find_what_one_finds(count, expected, tmp_path):
    out = tmp_path / "found.npz"
    every = processes.run(lambda i, n, address: [*PROGRAM, address, str(i), str(n), str(out)], count)
    assert [ended.code for ended in every] == [0] * count, [ended.error[-2000:] for ended in every]
    found = dict(np.load(out))
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_allclose(found[name], leaf, rtol=0, atol=1e-12 * np.abs(leaf).max())
