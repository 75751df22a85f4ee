"""A corpus from the `data` section of a config or of a checkpoint."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxmerge.data import corpora
from jaxmerge.data.cache import TokenizedCorpus, prepare
from jaxmerge.files import cache_root


def open_corpus(
  settings: Mapping[str, Any],
  *,
  tokenizer_path: str = "",
  progress: Callable[[str], None],
) -> TokenizedCorpus:
  """Prepares the corpus that the settings describe, or opens its cache.

  Args:
    settings: exactly the keys of sections.SCHEMA.
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


def content_hash(settings: Mapping[str, Any]) -> str:
  """A hash of the text that the settings name; see corpora.content_hash."""
  return corpora.content_hash(
    settings["source"],
    globs=tuple(settings["globs"]),
    data_dir=settings["data_dir"] or None,
    split=settings["split"],
    text_feature=settings["text_feature"],
    max_documents=settings["max_documents"] or None,
  )
