"""Saved trees: the Orbax store, its digests, its provenance, the trail."""
