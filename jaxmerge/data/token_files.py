"""The files of a token cache: written in one pass, checked when opened.

A cache is one directory, whole or absent:

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
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.data.file_hashes import sha256_of_file, sha256_of_json
from jaxmerge.data.skipped import Skipped, from_json
from jaxmerge.data.splits import SPLIT_NAMES
from jaxmerge.data.tokenizers.load import load_tokenizer
from jaxmerge.data.tokenizers.protocol import Tokenizer
from jaxmerge.errors import check
from jaxmerge.files import write_json
from jaxmerge.reading import read_json

VERSION = 1  # of the layout above
KINDS = ("tokens", "offsets", "ids")
META = "meta.json"


@dataclasses.dataclass(frozen=True)
class SplitTokens:
  """The tokens of one split.

  Attributes:
    name: one of SPLIT_NAMES.
    tokens_T: uint16 or uint32[T], a read-only memory map.
    offsets_D1: int64[D + 1], document d is tokens_T[offsets[d]:offsets[d + 1]]
      and starts with the end-of-text token.
    end_of_text: the id of that token.
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
  """An open token cache.

  Attributes:
    tokenizer_path: its tokenizer's file.
    tokenizer: the same, loaded.
    splits: by the names in SPLIT_NAMES.
    identity: sha256 of the cache's content and of where it came from.
    skipped: what of the corpus is not in it, by reason.
  """

  tokenizer_path: Path
  tokenizer: Tokenizer = dataclasses.field(repr=False)
  splits: dict[str, SplitTokens]
  identity: str
  skipped: Skipped


class SplitWriter:
  """Appends documents to the three files of a split."""

  def __init__(
    self,
    directory: Path,
    name: str,
    dtype: np.dtype,
    files: contextlib.ExitStack,
  ) -> None:
    self._tokens, self._offsets, self._ids = (
      files.enter_context(open(directory / f"{name}.{kind}", "wb"))  # noqa: SIM115
      for kind in KINDS
    )
    self._dtype = dtype
    self.documents = 0
    self.tokens = 0
    self._offsets.write(bytes(8))

  def add(self, document_id: str, ids: Sequence[int]) -> None:
    self._tokens.write(np.asarray(ids, self._dtype).tobytes())
    self.documents += 1
    self.tokens += len(ids)
    self._offsets.write(self.tokens.to_bytes(8, "little"))
    self._ids.write(json.dumps(document_id).encode() + b"\n")

  def counts(self) -> dict[str, int]:
    return {
      "documents": self.documents,
      "tokens": self.tokens,
      "token_size": self._dtype.itemsize,
    }


def write_meta(
  directory: Path, tokenizer: str, about: dict[str, Any], skipped: Skipped
) -> None:
  """Closes a cache: what it is about, and the digest of each of its files.

  The reasons of what was skipped are no part of its identity: the documents
  that are there are, and how many of the files' were not. `tokenizer` is the
  name of the tokenizer's file.
  """
  names = [f"{name}.{kind}" for name in SPLIT_NAMES for kind in KINDS]
  content = about | {
    "version": VERSION,
    "sha256": {
      name: sha256_of_file(directory / name) for name in [tokenizer, *names]
    },
  }
  meta = {
    "fingerprint": sha256_of_json(content),
    "content": content,
    "skipped": skipped,
  }
  write_json(directory / META, meta)


def cache_problems(directory: str | os.PathLike[str]) -> list[str]:
  """Lists what is wrong with a token cache; reads all of it (about 1 GB/s)."""
  directory = Path(directory)
  try:
    meta = read_json((directory / META).read_bytes())
    content = meta["content"]
    if meta["fingerprint"] != sha256_of_json(content):
      return [f"{directory / META} is damaged: its own hash does not agree"]
    if content["version"] != VERSION:
      return [f"{directory} is of version {content['version']}, not {VERSION}"]
    digests = content["sha256"]
    _skipped(meta)
  except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
    return [f"{directory / META} cannot be read: {error}"]
  problems = []
  for name, digest in digests.items():
    file = directory / name
    if not file.is_file():
      problems.append(f"{file} is missing")
    elif sha256_of_file(file) != digest:
      problems.append(f"{file} is damaged: its sha256 is not the recorded one")
  return problems


def _skipped(meta: Any) -> Skipped:
  """An older cache has their number alone."""
  return from_json(meta.get("skipped", meta["content"]["skipped_documents"]))


def open_cache(directory: str | os.PathLike[str]) -> TokenizedCorpus:
  """Opens a token cache; InputError if a file of it is missing or damaged."""
  directory = Path(directory)
  check(cache_problems(directory))
  meta = read_json((directory / META).read_bytes())
  name, *_ = meta["content"]["sha256"]  # write_meta names the tokenizer first
  path = directory / name
  tokenizer = load_tokenizer(path)
  splits = {}
  for name in SPLIT_NAMES:
    dtype = f"<u{meta['content']['splits'][name]['token_size']}"
    splits[name] = SplitTokens(
      name=name,
      tokens_T=np.memmap(directory / f"{name}.tokens", dtype, mode="r"),
      offsets_D1=np.fromfile(directory / f"{name}.offsets", "<i8"),
      end_of_text=tokenizer.end_of_text,
      ids_path=directory / f"{name}.ids",
    )
  return TokenizedCorpus(
    tokenizer_path=path,
    tokenizer=tokenizer,
    splits=splits,
    identity=meta["fingerprint"],
    skipped=_skipped(meta),
  )
