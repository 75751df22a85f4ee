"""The `data` section of a config: its keys, and what is wrong with it."""

from collections.abc import Mapping
from typing import Any

# The keys of the section. "", () and 0 mean: not given.
SCHEMA: Mapping[str, Any] = {
  "source": str,
  "globs": tuple[str, ...],
  "data_dir": str,
  "split": str,
  "text_feature": str,
  "max_documents": int,
  "vocab_size": int,
  "tokenizer_path": str,
  "cache_dir": str,
}


# Of a config that may name a corpus for a model that has its own tokenizer.
OTHER_CORPUS: Mapping[str, Any] = {
  key: kind
  for key, kind in SCHEMA.items()
  if key not in ("vocab_size", "tokenizer_path")
}


def other_corpus(settings: Mapping[str, Any]) -> dict[str, Any] | None:
  """Settings for open_corpus from such a section; None where it names none."""
  if not settings["source"]:
    return None
  return {**settings, "vocab_size": 0, "tokenizer_path": ""}


def other_corpus_problems(settings: Mapping[str, Any]) -> list[str]:
  """What is given without a source, where it means nothing."""
  unused = ("globs", "data_dir", "split", "max_documents", "cache_dir")
  return [
    f"config.data.{key} means nothing without config.data.source"
    for key in unused
    if settings[key] and not settings["source"]
  ]
