"""S1: chain-rule bookkeeping (001_719220d52c62b28b).

The note takes C = Σ_t L_t and writes ∂ for total and direct derivatives alike; it is scalar in style, so a product of
two derivatives in θ is read entry by entry.
"""
