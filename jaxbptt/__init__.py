"""Recurrent gradients proved, and shown where they go."""
