"""Flags, config files, messages and progress of all verbs."""
