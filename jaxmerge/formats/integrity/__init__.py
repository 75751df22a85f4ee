"""Digests, norms and checksums of parameters."""
