"""Trackers, a file each, that registers its record."""
