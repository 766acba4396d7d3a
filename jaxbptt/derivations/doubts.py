"""What the numbers cannot tell: leaves whose own size is below what rounding may do to them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxbptt.derivations.matching import Piece, is_wrong


def settle_doubts(pieces: Mapping[str, Piece], dtype: Any) -> tuple[dict[str, Piece], tuple[str, ...]]:
    """(the pieces, notes). A piece that is zero where the reference is not is judged by the reference's own response
    to rounding, not by the size of what is added up; where even that cannot tell it from zero, a note says so.
    """
    settled, notes = dict(pieces), []
    elsewhere = "" if dtype == np.float64 else ": check in float64"
    for name, piece in pieces.items():
        size = np.max(np.abs(piece.expected).reshape(len(piece.expected), -1), axis=1, initial=0)
        if isinstance(piece.actual, str) or is_wrong(piece) or not np.any(size) or np.any(size > piece.tolerance):
            continue
        norm = f"{name}, of norm {np.linalg.norm(piece.expected):.1e},"
        if not np.any(piece.actual) and piece.response is not None:
            own = piece._replace(tolerance=piece.response)
            if is_wrong(own):
                settled[name] = own
                continue
        if not np.any(piece.actual):
            notes.append(f"{dtype} cannot tell {norm} from zero{elsewhere}")
        else:
            notes.append(f"{norm} is smaller than what rounding may do to it: {dtype} cannot prove it{elsewhere}")
    return settled, tuple(notes)
