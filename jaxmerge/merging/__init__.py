"""Averages of parameter trees, on device."""
