"""Tokens of a corpus, made once.

A cache directory is named by everything that decides its content, and appears
whole or not at all; token_files.py says what lies in it.
"""

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from jaxmerge.data import splits as splits_lib
from jaxmerge.data.config import DataConfig
from jaxmerge.data.corpora import Corpus, Document, load_corpus
from jaxmerge.data.file_hashes import sha256_of_json
from jaxmerge.data.skipped import Skipped
from jaxmerge.data.splits import SPLIT_NAMES
from jaxmerge.data.token_files import (
  VERSION,
  SplitWriter,
  TokenizedCorpus,
  cache_problems,
  open_cache,
  write_meta,
)
from jaxmerge.data.tokenizers.hugging_face import SAMPLE_BYTES, train_tokenizer
from jaxmerge.data.tokenizers.load import load_tokenizer
from jaxmerge.data.tokenizers.protocol import Tokenizer
from jaxmerge.errors import InputError
from jaxmerge.files import make_directory, replace_directory, write_bytes

_BATCH_BYTES = 1 << 20
_SECONDS_BETWEEN_LINES = 2.0


def _batches(
  documents: Iterator[tuple[str, Document]],
) -> Iterator[list[tuple[str, Document]]]:
  """Groups about a mebibyte of text, which bounds the memory of encoding."""
  held: list[tuple[str, Document]] = []
  size = 0
  for item in documents:
    held.append(item)
    size += len(item[1].text)
    if size >= _BATCH_BYTES:
      yield held
      held, size = [], 0
  if held:
    yield held


def _write_splits(
  directory: Path,
  corpus: Corpus,
  tokenizer: Tokenizer,
  skipped: Skipped,
  progress: Callable[[str], None],
) -> dict[str, SplitWriter]:
  """Tokenizes the whole corpus; what is left out goes to `skipped`."""
  dtype = np.dtype("<u2" if tokenizer.size <= 2**16 else "<u4")
  done, said = 0, 0.0
  with contextlib.ExitStack() as files:
    writers = {
      name: SplitWriter(directory, name, dtype, files) for name in SPLIT_NAMES
    }
    for batch in _batches(splits_lib.assigned_documents(corpus, skipped)):
      texts = [document.text for _, document in batch]
      for (name, document), ids in zip(batch, tokenizer.encode_batch(texts)):
        writers[name].add(document.id, [tokenizer.end_of_text, *ids])
      done += sum(len(text) for text in texts)
      if time.monotonic() > said + _SECONDS_BETWEEN_LINES:
        said = time.monotonic()
        progress(f"tokenizing {corpus.source}: {done / 1e6:.1f} M characters")
  return writers


def _trained(
  home: Path,
  corpus: Corpus,
  vocab_size: int,
  progress: Callable[[str], None],
) -> Tokenizer:
  """Trains the BPE of the train split, or loads it as it was trained before."""
  key = _key(corpus, [vocab_size, SAMPLE_BYTES])
  path = home / "tokenizers" / f"{key}.json"
  if path.exists():
    try:
      return load_tokenizer(path)
    except InputError as damage:
      progress(f"training the tokenizer anew: {damage.problems[0]}")
  progress(f"training a tokenizer of {vocab_size} tokens")
  assigned = splits_lib.assigned_documents(corpus, Skipped())
  texts = (document.text for name, document in assigned if name == "train")
  tokenizer = train_tokenizer(texts, vocab_size=vocab_size)
  make_directory(path.parent)
  write_bytes(path, tokenizer.content)
  return tokenizer


def _build(
  directory: Path,
  corpus: Corpus,
  tokenizer: Tokenizer,
  progress: Callable[[str], None],
) -> None:
  with replace_directory(directory) as path:
    path.mkdir()
    temporary = Path(path)
    tokenizer.save(temporary)
    skipped = Skipped(corpus.skipped)
    writers = _write_splits(temporary, corpus, tokenizer, skipped, progress)
    documents = {name: writer.documents for name, writer in writers.items()}
    splits_lib.check_filled(corpus, documents, skipped)
    about = {
      "source": corpus.source,
      "corpus": corpus.identity,
      "skipped_documents": corpus.skipped.total,
      "tokenizer": tokenizer.hash,
      "fractions": list(splits_lib.FRACTIONS.values()),
      "splits": {name: writer.counts() for name, writer in writers.items()},
    }
    write_meta(temporary, tokenizer.file_name, about, skipped)
    if not cache_problems(directory):
      raise InputError("another process has finished the same")


def _key(corpus: Corpus, made_with: list[int | str]) -> str:
  """Hashes all that decides what is made of a corpus."""
  fractions = list(splits_lib.FRACTIONS.values())
  rules = [VERSION, splits_lib.VERSION, fractions]
  return sha256_of_json([corpus.identity, made_with, rules])[:16]


def open_corpus(
  config: DataConfig, *, progress: Callable[[str], None] = lambda text: None
) -> TokenizedCorpus:
  """Gives the tokens of a corpus, from the cache where they are in it.

  Killed at any moment and repeated, or run by several processes at once, it
  gives the same bytes. A damaged cache is built anew. Memory is bounded by a
  batch of 1 MiB of text, or by the longest document.

  Args:
    config: of the corpus and its tokenizer.
    progress: called with a line of text as the work goes on.

  Raises:
    InputError: anything wrong with the corpus or the tokenizer; a split
      without a document; a directory that cannot be written.
  """
  path = config.tokenizer_path
  given = load_tokenizer(path) if path else None
  home = Path(make_directory(config.cache_home))
  corpus = load_corpus(config, progress=progress)
  tokenizer = given or _trained(home, corpus, config.vocab_size, progress)
  name = re.sub(r"\W+", "-", config.source)
  directory = home / "tokens" / f"{name}-{_key(corpus, [tokenizer.hash])}"
  tokens = None
  if directory.exists():
    try:
      tokens = open_cache(directory)
    except InputError as damage:
      progress(f"building the token cache anew: {damage.problems[0]}")
  if tokens is None:
    try:
      _build(directory, corpus, tokenizer, progress)
    except InputError:
      if cache_problems(directory):
        raise
      progress(f"another process wrote {directory}")
    tokens = open_cache(directory)
  if tokens.skipped:
    count = sum(len(split.offsets_D1) - 1 for split in tokens.splits.values())
    progress(f"{config.source}: {count} documents, {tokens.skipped.summary()}")
  return tokens
