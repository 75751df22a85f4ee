"""Pretraining: optimiser, state, one jitted step, the loop and its metrics."""
