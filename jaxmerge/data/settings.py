"""A corpus from the `data` section of a config or of a checkpoint."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxmerge.data.cache import TokenizedCorpus, prepare
from jaxmerge.files import cache_root

# The keys of the section. "", () and 0 mean: not given.
SCHEMA: Mapping[str, type] = {
  "source": str,
  "globs": tuple,
  "data_dir": str,
  "split": str,
  "text_feature": str,
  "max_documents": int,
  "vocab_size": int,
  "tokenizer_path": str,
  "cache_dir": str,
}


# Of a config that may name a corpus for a model that has its own tokenizer.
OTHER_CORPUS: Mapping[str, type] = {
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


def open_corpus(
  settings: Mapping[str, Any],
  *,
  tokenizer_path: str = "",
  progress: Callable[[str], None],
) -> TokenizedCorpus:
  """Prepares the corpus that the settings describe, or opens its cache.

  Args:
    settings: exactly the keys of SCHEMA.
    tokenizer_path: used instead of the settings' own tokenizer.
    progress: called with a line of text as the work goes on.

  Raises:
    InputError: as `prepare`.
  """
  return prepare(
    settings["source"],
    globs=tuple(settings["globs"]),
    data_dir=settings["data_dir"] or None,
    split=settings["split"],
    text_feature=settings["text_feature"],
    max_documents=settings["max_documents"] or None,
    vocab_size=settings["vocab_size"],
    tokenizer_path=tokenizer_path or settings["tokenizer_path"] or None,
    cache_dir=settings["cache_dir"] or cache_root() / "data",
    progress=progress,
  )
