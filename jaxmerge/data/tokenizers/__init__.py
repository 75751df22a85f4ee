"""Tokenizers of several libraries behind one protocol."""
