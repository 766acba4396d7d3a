"""One vector–Jacobian product for many rows: rows that share no column of a sparse matrix share a seed."""

import numpy as np


def colour_rows(pattern: np.ndarray) -> np.ndarray:
    """The colour 0, 1, … of each row of a boolean [N, C], [N]: no two rows of one colour meet in a column."""
    wide = pattern.astype(np.float32)
    meets = wide @ wide.T > 0
    colours = np.zeros(len(pattern), np.int32)
    for row in range(1, len(pattern)):
        taken = set(colours[:row][meets[row, :row]].tolist())
        colours[row] = next(colour for colour in range(row + 1) if colour not in taken)
    return colours


def seeds(colours: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """[colours, N]: 1 in the rows of each colour, else 0."""
    return (np.arange(colours.max() + 1)[:, None] == colours[None, :]).astype(dtype)
