"""Scores with paired, clustered errors, and searches of weights by them."""
