"""Merges of parameter trees: on device, or streamed through memory."""
