"""Tokens of a corpus, made once, checked whenever they are opened.

A cache is one directory, named by everything that decides its content, whole
or absent:

    tokenizer.json or tokenizer.model
    meta.json
    <split>.tokens     uint16 or uint32, little-endian: every document's tokens
                       behind one end-of-text token, document after document
    <split>.offsets    int64: where each document starts, then the end
    <split>.ids        one JSON string a line: the documents' ids

T: tokens of a split. D: its documents.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxmerge.data import splits as splits_lib
from jaxmerge.data.config import DataConfig
from jaxmerge.data.corpora import Corpus, Document, load_corpus
from jaxmerge.data.documents import Skipped, from_json
from jaxmerge.data.file_hashes import sha256_of_file, sha256_of_json
from jaxmerge.data.local_text import TOKENS
from jaxmerge.data.splits import SPLIT_NAMES
from jaxmerge.data.tokenizers.hugging_face import (
  SAMPLE_BYTES,
  first_bytes,
  train_tokenizer,
)
from jaxmerge.data.tokenizers.load import load_tokenizer
from jaxmerge.data.tokenizers.protocol import Tokenizer
from jaxmerge.errors import InputError, Problems, check
from jaxmerge.files import (
  make_directory,
  replace_directory,
  write_bytes,
  write_json,
)
from jaxmerge.reading import read_json

VERSION = 1  # of the layout above
_KINDS = ("tokens", "offsets", "ids")
_META = "meta.json"
_BATCH_BYTES = 1 << 20
_SECONDS_BETWEEN_LINES = 2.0


@dataclasses.dataclass(frozen=True)
class SplitTokens:
  """The tokens of one split, which `name` names.

  Attributes:
    tokens_T: uint16 or uint32[T], a read-only memory map.
    offsets_D1: int64[D + 1], document d is tokens_T[offsets[d]:offsets[d + 1]]
      and starts with the token `end_of_text`.
    ids_path: the file of the documents' ids.
  """

  name: str
  tokens_T: np.ndarray = dataclasses.field(repr=False)
  offsets_D1: np.ndarray = dataclasses.field(repr=False)
  end_of_text: int
  ids_path: Path

  def document_ids(self) -> tuple[str, ...]:
    with open(self.ids_path, encoding="utf-8") as lines:
      return tuple(json.loads(line) for line in lines)


@dataclasses.dataclass(frozen=True)
class TokenizedCorpus:
  """An open token cache; `splits` by the names in SPLIT_NAMES.

  Attributes:
    identity: sha256 of the cache's content and of where it came from.
    skipped: what of the corpus is not in it, by reason.
  """

  tokenizer_path: Path
  tokenizer: Tokenizer = dataclasses.field(repr=False)
  splits: dict[str, SplitTokens]
  identity: str
  skipped: Skipped

  @property
  def summary(self) -> str:
    """For example "9 documents, none skipped; 870 train tokens, 51 search"."""
    documents = sum(len(s.offsets_D1) - 1 for s in self.splits.values())
    first, *others = (f"{len(s.tokens_T):,}" for s in self.splits.values())
    _, *names = self.splits
    tokens = [f"{first} train tokens", *map(" ".join, zip(others, names))]
    return (
      f"{documents:,} documents, {self.skipped.summary()}; {', '.join(tokens)}"
    )


def open_cache(directory: str | os.PathLike[str]) -> TokenizedCorpus:
  """Opens a token cache after reading all of it (about 1 GB/s).

  InputError lists the files of it that are missing or damaged.
  """
  directory = Path(directory)
  try:
    meta = read_json((directory / _META).read_bytes())
    content = meta["content"]
    identity, found = meta["fingerprint"], sha256_of_json(content)
    # An older cache has their number alone.
    skipped = from_json(meta.get("skipped", content["skipped_documents"]))
  except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
    raise InputError(f"{directory / _META} cannot be read: {error}") from error
  if identity != found:
    raise InputError(
      f"{directory / _META} is damaged: its own hash does not agree"
    )
  problems = []
  for name, digest in content["sha256"].items():
    file = directory / name
    if not file.is_file():
      problems.append(f"{file} is missing")
    elif sha256_of_file(file) != digest:
      problems.append(f"{file} is damaged: its sha256 is not the recorded one")
  check(problems)
  name, *_ = content["sha256"]  # _build names the tokenizer first
  tokenizer = load_tokenizer(directory / name)
  splits = {
    name: SplitTokens(
      name=name,
      tokens_T=np.memmap(
        directory / f"{name}.tokens", f"<u{said['token_size']}", mode="r"
      ),
      offsets_D1=np.fromfile(directory / f"{name}.offsets", "<i8"),
      end_of_text=tokenizer.end_of_text,
      ids_path=directory / f"{name}.ids",
    )
    for name, said in content["splits"].items()
  }
  return TokenizedCorpus(directory / name, tokenizer, splits, identity, skipped)


def _batches(
  documents: Iterator[tuple[str, Document]],
) -> Iterator[list[tuple[str, Document]]]:
  """Groups about a mebibyte of text, which bounds the memory of encoding."""
  held: list[tuple[str, Document]] = []
  size = 0
  for item in documents:
    held.append(item)
    size += item[1].size
    if size >= _BATCH_BYTES:
      yield held
      held, size = [], 0
  if held:
    yield held


def _ids(
  tokenizer: Tokenizer, batch: list[tuple[str, Document]]
) -> Sequence[Sequence[int] | np.ndarray]:
  tokens = [d.tokens_T for _, d in batch if d.tokens_T is not None]
  return tokens or tokenizer.encode_batch([d.text for _, d in batch])


def _write_splits(
  directory: Path,
  corpus: Corpus,
  tokenizer: Tokenizer,
  skipped: Skipped,
  progress: Callable[[str], None],
) -> dict[str, dict[str, int]]:
  """Tokenizes the whole corpus; returns the `splits` of meta.json.

  What is left out goes to `skipped`.
  """
  dtype = np.dtype("<u2" if tokenizer.size <= 2**16 else "<u4")
  start = {"documents": 0, "tokens": 0, "token_size": dtype.itemsize}
  counts = {name: dict(start) for name in SPLIT_NAMES}
  done, said = 0, 0.0
  unit = "bytes of tokens" if corpus.text_feature == TOKENS else "characters"
  with contextlib.ExitStack() as stack:
    files = {
      name: [
        stack.enter_context(open(directory / f"{name}.{kind}", "wb"))
        for kind in _KINDS
      ]
      for name in SPLIT_NAMES
    }
    for _, offsets, _ in files.values():
      offsets.write(bytes(8))
    for batch in _batches(splits_lib.assigned_documents(corpus, skipped)):
      for (name, document), ids in zip(batch, _ids(tokenizer, batch)):
        count, (tokens, offsets, names) = counts[name], files[name]
        whole = np.concatenate([[tokenizer.end_of_text], ids]).astype(dtype)
        count["documents"] += 1
        count["tokens"] += len(whole)
        tokens.write(whole.tobytes())
        offsets.write(count["tokens"].to_bytes(8, "little"))
        names.write(json.dumps(document.id).encode() + b"\n")
      done += sum(document.size for _, document in batch)
      if time.monotonic() > said + _SECONDS_BETWEEN_LINES:
        said = time.monotonic()
        progress(f"tokenizing {corpus.source}: {done / 1e6:.1f} M {unit}")
  return counts


def trained_tokenizer(
  config: DataConfig,
  sampled: Sequence[tuple[Corpus, int]],
  progress: Callable[[str], None],
) -> Tokenizer:
  """Trains the BPE of train splits, or loads it as it was trained before.

  Args:
    sampled: corpora, and how many bytes at the head of each it learns from.
  """
  vocab_size = config.vocab_size
  key, *others = (_key(corpus, [vocab_size, n]) for corpus, n in sampled)
  if others:
    key = sha256_of_json([key, *others])[:16]
  home = Path(make_directory(config.cache_home))
  path = home / "tokenizers" / f"{key}.json"
  if path.exists():
    try:
      return load_tokenizer(path)
    except InputError as damage:
      progress(f"training the tokenizer anew: {damage.problems[0]}")
  progress(f"training a tokenizer of {vocab_size} tokens")
  heads = (first_bytes(_train_texts(corpus), n) for corpus, n in sampled)
  texts = itertools.chain.from_iterable(heads)
  tokenizer = train_tokenizer(texts, vocab_size=vocab_size)
  make_directory(path.parent)
  write_bytes(path, tokenizer.content)
  return tokenizer


def _train_texts(corpus: Corpus) -> Iterator[str]:
  assigned = splits_lib.assigned_documents(corpus, Skipped())
  return (document.text for name, document in assigned if name == "train")


def _build(
  directory: Path,
  corpus: Corpus,
  tokenizer: Tokenizer,
  progress: Callable[[str], None],
) -> None:
  try:
    with replace_directory(directory) as path:
      path.mkdir()
      temporary = Path(path)
      tokenizer.save(temporary)
      skipped = Skipped(corpus.skipped)
      counts = _write_splits(temporary, corpus, tokenizer, skipped, progress)
      documents = {name: count["documents"] for name, count in counts.items()}
      splits_lib.check_filled(corpus, documents, skipped)
      names = [f"{name}.{kind}" for name in SPLIT_NAMES for kind in _KINDS]
      files = [temporary / name for name in [tokenizer.file_name, *names]]
      content = {
        "source": corpus.source,
        "corpus": corpus.identity,
        "skipped_documents": corpus.skipped.total,
        "tokenizer": tokenizer.hash,
        "fractions": list(splits_lib.FRACTIONS.values()),
        "splits": counts,
        "version": VERSION,
        "sha256": {file.name: sha256_of_file(file) for file in files},
      }
      # The reasons of what was skipped are no part of the identity: the
      # documents that are there are, and how many of the files' were not.
      meta = {"fingerprint": sha256_of_json(content), "content": content}
      write_json(temporary / _META, {**meta, "skipped": skipped})
      if Problems()(lambda: open_cache(directory)):
        raise InputError("another process has finished the same")
  except InputError:
    if not Problems()(lambda: open_cache(directory)):
      raise
    progress(f"another process wrote {directory}")


def _key(corpus: Corpus, made_with: list[int | str]) -> str:
  """Hashes all that decides what is made of a corpus."""
  fractions = list(splits_lib.FRACTIONS.values())
  rules = [VERSION, splits_lib.VERSION, fractions]
  return sha256_of_json([corpus.identity, made_with, rules])[:16]


def open_corpus(
  config: DataConfig,
  *,
  tokenizer: Tokenizer | None = None,
  progress: Callable[[str], None] = lambda text: None,
) -> TokenizedCorpus:
  """Gives the tokens of a corpus, from the cache where they are in it.

  Killed at any moment and repeated, or run by several processes at once, it
  gives the same bytes. A damaged cache is built anew. Memory is bounded by a
  batch of 1 MiB of text, or by the longest document. InputError if a split has
  no document, and for anything wrong with the corpus or the tokenizer.

  Args:
    config: of one corpus.
    tokenizer: to use instead of the config's.
  """
  path = config.tokenizer_path
  if tokenizer is None and path:
    tokenizer = load_tokenizer(path)
  home = Path(make_directory(config.cache_home))
  corpus = load_corpus(config, tokenizer=tokenizer, progress=progress)
  if tokenizer is None:
    sampled = [(corpus, SAMPLE_BYTES)]
    tokenizer = trained_tokenizer(config, sampled, progress)
  name = re.sub(r"\W+", "-", config.source)
  directory = home / "tokens" / f"{name}-{_key(corpus, [tokenizer.hash])}"
  problems = Problems()
  tokens = problems(lambda: open_cache(directory))
  if tokens is None:
    if directory.exists():
      progress(f"building the token cache anew: {problems[0]}")
    _build(directory, corpus, tokenizer, progress)
    tokens = open_cache(directory)
  progress(f"{config.source}: {tokens.summary}")
  return tokens
