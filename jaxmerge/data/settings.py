"""A corpus from the `data` section of a config or of a checkpoint."""

from collections.abc import Callable

from jaxmerge.data import corpora
from jaxmerge.data.cache import TokenizedCorpus, prepare
from jaxmerge.data.config import CorpusConfig, DataConfig
from jaxmerge.files import cache_root


def open_corpus(
  config: DataConfig, *, progress: Callable[[str], None]
) -> TokenizedCorpus:
  """Prepares the corpus that a config describes, or opens its cache.

  Args:
    config: of the corpus.
    progress: called with a line of text as the work goes on.

  Raises:
    InputError: as `prepare`.
  """
  return prepare(
    config.source,
    globs=config.globs,
    data_dir=config.data_dir or None,
    split=config.split,
    text_feature=config.text_feature,
    max_documents=config.max_documents or None,
    vocab_size=config.vocab_size,
    tokenizer_path=config.tokenizer_path or None,
    cache_dir=config.cache_dir or cache_root() / "data",
    progress=progress,
  )


def content_hash(config: CorpusConfig) -> str:
  """A hash of the text that a config names; see corpora.content_hash."""
  return corpora.content_hash(
    config.source,
    globs=config.globs,
    data_dir=config.data_dir or None,
    split=config.split,
    text_feature=config.text_feature,
    max_documents=config.max_documents or None,
  )
