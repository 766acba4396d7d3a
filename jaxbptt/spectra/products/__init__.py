"""Products of many Jacobians in graded factors, and the singular values of those."""
