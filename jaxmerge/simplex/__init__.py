"""Plain algebra of the weights of a merge, for all that weigh."""
