"""Hand-derived local derivatives: the pair a cell carries, and its factored form."""

from jaxbptt.cells.derivation import Derivation, FactoredPullback, Outer

__all__ = ["Derivation", "FactoredPullback", "Outer"]
