"""Tensors in storage and what is recorded of them."""
