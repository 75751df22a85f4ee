"""Tests, and what they share: pytest has the repository's root on its path."""
