"""S0: handwritten exercise notes on RNN gradients (000_b8c8704d28633358)."""
