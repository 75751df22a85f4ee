"""Merge methods: each file registers its records in merging/method.py."""
