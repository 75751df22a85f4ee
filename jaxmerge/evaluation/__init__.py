"""Held-out loss with paired, clustered standard errors, and the objective."""
