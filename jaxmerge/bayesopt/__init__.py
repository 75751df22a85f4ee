"""The search itself: weights and scores in, the next weights out."""
