"""Evaluators: a file each, which registers a record by name."""
