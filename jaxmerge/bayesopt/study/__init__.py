"""A study of exact budget: trials, journals, searchers."""
