"""Metadata and provenance of a checkpoint."""
