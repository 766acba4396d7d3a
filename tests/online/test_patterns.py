"""Which entries of a sensitivity are kept, and how they are grouped."""

import numpy as np

from jaxbptt.online import patterns


def test_reach_and_groups_on_a_chain():
    chain = np.eye(4, k=-1, dtype=bool)  # 0 → 1 → 2 → 3
    direct = np.repeat(np.eye(4, dtype=bool), 2, axis=1)
    for steps in range(5):
        expected = sum(np.linalg.matrix_power(chain.astype(int), k) for k in range(steps + 1)) > 0
        np.testing.assert_array_equal(patterns.reach(chain, direct, steps), np.repeat(expected, 2, axis=1))
    groups = patterns.group_columns(patterns.reach(chain, direct, 1))
    np.testing.assert_array_equal(np.sort(groups.columns, axis=None), np.arange(8))
    assert sorted(map(tuple, groups.rows)) == [(0, 1), (1, 2), (2, 3), (3, -1)]
