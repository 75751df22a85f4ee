"""Which document is trained on, searched on and reported on.

A document goes where the hash of its id says, so that no document is in two
splits, and adding or removing others moves none (but fewer than 20 documents
are cut, and of equal texts only the first counts).
"""

import hashlib
from collections.abc import Iterator

from jaxmerge.data.corpora import Corpus, Document
from jaxmerge.data.documents import REPEATED, Skipped
from jaxmerge.errors import InputError

VERSION = 1  # of the rules below: part of every cache's identity
# Expected shares of the documents.
FRACTIONS = {"train": 0.85, "search": 0.05, "report": 0.05, "validation": 0.05}
SPLIT_NAMES = tuple(FRACTIONS)
FEW_DOCUMENTS = 20
_SALT = b"jaxmerge split 1:"
_PARTS = 256
# Longer than a training sequence, and of a long text not thousands of parts.
_PART_BYTES = (2 << 10, 64 << 10)


def split_of(document_id: str) -> str:
  digest = hashlib.sha256(_SALT + document_id.encode()).digest()
  position = int.from_bytes(digest[:8], "big") / 2**64
  upper = 0.0
  for name, fraction in FRACTIONS.items():
    upper += fraction
    if position < upper:
      return name
  return SPLIT_NAMES[-1]


def _pieces(line: str, limit: int) -> Iterator[str]:
  if len(line.encode()) <= limit:
    yield line
  else:  # no line boundary in reach: cut between characters, of <= 4 bytes
    step = limit // 4
    yield from (line[i : i + step] for i in range(0, len(line), step))


def parts(document: Document, limit: int) -> Iterator[Document]:
  """Cuts a text into parts of at most `limit` bytes, at ends of lines.

  The parts, named `id#0`, `id#1`, ..., joined give the text; a text that is
  short enough stays as it is. Tokens, of 4 bytes each, are cut anywhere.
  """
  if len(document.content) <= limit:
    yield document
    return
  if document.tokens_T is not None:
    step = limit // document.tokens_T.itemsize
    for number, start in enumerate(range(0, len(document.tokens_T), step)):
      tokens_T = document.tokens_T[start : start + step]
      yield Document(f"{document.id}#{number}", "", tokens_T)
    return
  held: list[str] = []
  size = number = 0
  for line in document.text.splitlines(keepends=True):
    for piece in _pieces(line, limit):
      length = len(piece.encode())
      if held and size + length > limit:
        yield Document(f"{document.id}#{number}", "".join(held))
        held, size, number = [], 0, number + 1
      held.append(piece)
      size += length
  yield Document(f"{document.id}#{number}", "".join(held))


def _part_bytes(corpus: Corpus) -> int:
  """About 256 parts: an expected 5% share of them is empty once in 500,000."""
  total = sum(len(document.content) for document in corpus)
  return min(max(total // _PARTS, _PART_BYTES[0]), _PART_BYTES[1])


def assigned_documents(
  corpus: Corpus, skipped: Skipped
) -> Iterator[tuple[str, Document]]:
  """Yields (split name, document) in the order of the corpus.

  Documents that are none, or of a text that was there before, go to `skipped`:
  so no text is in two splits under two names (about 100 bytes of memory a
  document).

  A corpus of fewer than 20 documents is cut into parts first, of 2 to 64 KiB,
  and the parts are split: tiny_shakespeare, for one, is a single document.
  Neighbouring parts of one text may then lie in different splits, so that
  held-out losses flatter the model a little; larger corpora are never cut.
  """
  limit = _part_bytes(corpus) if len(corpus) < FEW_DOCUMENTS else None
  seen: set[bytes] = set()
  for document in corpus.read(skipped):
    whole = [document] if limit is None else parts(document, limit)
    for part in whole:
      digest = hashlib.sha256(part.content).digest()[:16]
      if digest in seen:
        skipped.add(REPEATED, part.id)
      else:
        seen.add(digest)
        yield split_of(part.id), part


def check_filled(
  corpus: Corpus, documents: dict[str, int], skipped: Skipped
) -> None:
  """Raises InputError if a split has none of the `documents` counted."""
  empty = [name for name in SPLIT_NAMES if not documents[name]]
  if not empty:
    return
  total = sum(documents.values())
  cut = " (fewer than 20 are cut into parts)" * (len(corpus) < FEW_DOCUMENTS)
  left_out = f"; {skipped.summary()}" if skipped else ""
  raise InputError(
    f"source {corpus.source!r} has {len(corpus)} documents{cut}, which give "
    f"{total} different texts, and none of them falls into: {', '.join(empty)}"
    f"; 100 different texts or more fill every split{left_out}"
  )
