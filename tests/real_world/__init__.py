"""Directories as other tools leave them."""
