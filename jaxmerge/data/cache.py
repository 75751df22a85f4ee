"""Tokens of a corpus, made once.

A cache directory is named by everything that decides its content, and appears
whole or not at all; token_files.py says what lies in it.
"""

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxmerge.data import splits as splits_lib
from jaxmerge.data.corpora import LOCAL_SOURCES, Corpus, Document, load_corpus
from jaxmerge.data.skipped import Skipped
from jaxmerge.data.splits import (
  DEFAULT_FRACTIONS,
  SPLIT_NAMES,
  SplitFractions,
)
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
from jaxmerge.files import make_directory, whole_directory, write_text

_BATCH_BYTES = 1 << 20
_SECONDS_BETWEEN_LINES = 2.0


def _batches(
  documents: Iterator[tuple[str, Document]],
) -> Iterator[list[tuple[str, Document]]]:
  """Groups of about a mebibyte of text: what bounds the memory of encoding."""
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
  fractions: SplitFractions,
  skipped: Skipped,
  progress: Callable[[str], None],
) -> dict[str, dict[str, int]]:
  """Tokenizes the whole corpus; returns documents and tokens by split."""
  end = tokenizer.end_of_text
  dtype = np.dtype("<u2" if tokenizer.size <= 2**16 else "<u4")
  done, said = 0, 0.0
  with contextlib.ExitStack() as files:
    writers = {
      name: SplitWriter(directory, name, dtype, files) for name in SPLIT_NAMES
    }
    documents = splits_lib.assigned_documents(corpus, fractions, skipped)
    for batch in _batches(documents):
      texts = [document.text for _, document in batch]
      for (name, document), ids in zip(batch, tokenizer.encode_batch(texts)):
        writers[name].add(document.id, [end, *ids])
      done += sum(len(text) for text in texts)
      if time.monotonic() > said + _SECONDS_BETWEEN_LINES:
        said = time.monotonic()
        progress(f"tokenizing {corpus.source}: {done / 1e6:.1f} M characters")
  return {
    name: {
      "documents": writer.documents,
      "tokens": writer.tokens,
      "token_size": dtype.itemsize,
    }
    for name, writer in writers.items()
  }


class _AlreadyThereError(Exception):
  """Another process finished the same cache first."""


def _trained(
  home: Path,
  corpus: Corpus,
  vocab_size: int,
  fractions: SplitFractions,
  progress: Callable[[str], None],
) -> Tokenizer:
  """The BPE of the train split: trained, or as it was trained before."""
  key = _key(corpus, [vocab_size, SAMPLE_BYTES], fractions)
  path = home / "tokenizers" / f"{key}.json"
  if path.exists():
    try:
      return load_tokenizer(path)
    except InputError as damage:
      progress(f"training the tokenizer anew: {damage.problems[0]}")
  progress(f"training a tokenizer of {vocab_size} tokens")
  assigned = splits_lib.assigned_documents(corpus, fractions)
  texts = (document.text for name, document in assigned if name == "train")
  tokenizer = train_tokenizer(texts, vocab_size=vocab_size)
  make_directory(path.parent)
  write_text(path, tokenizer.content.decode())
  return tokenizer


def _build(
  directory: Path,
  corpus: Corpus,
  tokenizer: Tokenizer,
  fractions: SplitFractions,
  progress: Callable[[str], None],
) -> None:
  with whole_directory(directory) as path:
    temporary = Path(path)
    tokenizer.save(temporary)
    skipped = Skipped(corpus.skipped)
    counts = _write_splits(
      temporary, corpus, tokenizer, fractions, skipped, progress
    )
    documents = {name: count["documents"] for name, count in counts.items()}
    splits_lib.check_filled(corpus, documents, skipped)
    about = {
      "source": corpus.source,
      "corpus": corpus.fingerprint,
      "skipped_documents": corpus.skipped.total,
      "tokenizer": tokenizer.hash,
      "fractions": list(fractions),
      "splits": counts,
    }
    write_meta(temporary, tokenizer.file_name, about, skipped)
    if directory.exists() and not cache_problems(directory):
      raise _AlreadyThereError


def _key(
  corpus: Corpus, made_with: list[int | str], fractions: SplitFractions
) -> str:
  """A hash of all that decides what is made of a corpus."""
  rules = [VERSION, splits_lib.VERSION, list(fractions)]
  key = json.dumps([corpus.fingerprint, made_with, rules])
  return hashlib.sha256(key.encode()).hexdigest()[:16]


def _open_or_build(
  directory: Path, build: Callable[[], None], progress: Callable[[str], None]
) -> TokenizedCorpus:
  if directory.exists():
    try:
      return open_cache(directory)
    except InputError as damage:
      progress(f"building the token cache anew: {damage.problems[0]}")
  try:
    build()
  except _AlreadyThereError:
    progress(f"another process wrote {directory}")
  except InputError:
    # The rename loses a race against a process that wrote the same.
    if not directory.exists() or cache_problems(directory):
      raise
  return open_cache(directory)


def prepare(
  source: str,
  *,
  cache_dir: str | os.PathLike[str],
  vocab_size: int | None = None,
  tokenizer_path: str | os.PathLike[str] | None = None,
  globs: Sequence[str] = (),
  data_dir: str | os.PathLike[str] | None = None,
  split: str = "",
  text_feature: str = "text",
  max_documents: int | None = None,
  manual_dir: str | os.PathLike[str] | None = None,
  fractions: SplitFractions = DEFAULT_FRACTIONS,
  progress: Callable[[str], None] | None = None,
) -> TokenizedCorpus:
  """Gives the tokens of a corpus, from the cache where they are in it.

  Killed at any moment and repeated, or run by several processes at once, it
  gives the same bytes. A damaged cache is built anew. Memory is bounded by a
  batch of 1 MiB of text, or by the longest document.

  Args:
    source, globs, data_dir, split, text_feature, max_documents, manual_dir: of
      the corpus, as in load_corpus; the prepared copies of local sources go
      under cache_dir unless data_dir is given.
    cache_dir: a local directory for caches.
    vocab_size: tokens of the BPE to train on the train split; not read where
      there is a tokenizer_path.
    tokenizer_path: a tokenizer.json or tokenizer.model as load_tokenizer takes
      them, used instead of training one.
    fractions: expected shares of the splits.
    progress: called with a line of text as the work goes on.

  Raises:
    InputError: anything wrong with the corpus, the tokenizer or the fractions;
      a split without a document; a directory that cannot be written.
  """
  splits_lib.check_fractions(fractions)
  if tokenizer_path is None and not vocab_size:
    raise InputError("give a vocab_size or a tokenizer_path")
  if tokenizer_path is not None:
    tokenizer = load_tokenizer(tokenizer_path)
  say = progress or (lambda text: None)
  home = Path(make_directory(cache_dir))
  if data_dir is None and source in LOCAL_SOURCES:
    data_dir = home / "corpora"
  corpus = load_corpus(
    source,
    globs=globs,
    data_dir=data_dir,
    split=split,
    text_feature=text_feature,
    max_documents=max_documents,
    manual_dir=manual_dir,
    progress=progress,
  )
  if tokenizer_path is None:
    tokenizer = _trained(home, corpus, vocab_size or 0, fractions, say)
  name = re.sub(r"\W+", "-", source)
  key = _key(corpus, [tokenizer.hash], fractions)
  directory = home / "tokens" / f"{name}-{key}"
  tokens = _open_or_build(
    directory,
    lambda: _build(directory, corpus, tokenizer, fractions, say),
    say,
  )
  if tokens.skipped:
    count = sum(len(split.offsets_D1) - 1 for split in tokens.splits.values())
    say(f"{source}: {count} documents, {tokens.skipped.summary()}")
  return tokens
