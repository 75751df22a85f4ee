"""Fixed held-out sequences that never cross a document.

N: sequences. L: targets in a sequence. V: size of the vocabulary.
D: documents. T: tokens of a split.
"""

import hashlib
import math
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from jaxmerge.data.cache import SplitTokens
from jaxmerge.files import check_memory


class HeldOut(NamedTuple):
  """Sequences to score.

  Attributes:
    tokens_NxL1: int32[N, L + 1], inputs [:, :-1] and targets [:, 1:]; padded
      at the end with the end-of-text token.
    mask_NxL: bool[N, L], which targets count. Every token of a document does,
      its first one given end of text; the end of text itself never does.
    document_N: int32[N], an index into document_ids, for clustered errors.
    bytes_N: int32[N], UTF-8 bytes that the targets that count stand for.
    document_ids: names of the documents, in the order in which they appear.
  """

  tokens_NxL1: np.ndarray
  mask_NxL: np.ndarray
  document_N: np.ndarray
  bytes_N: np.ndarray
  document_ids: tuple[str, ...]


# How windows are drawn: a study made under another rule has other scores.
WINDOWS = "by a hash of document and window"
# A token, whether it counts, and its bytes; on the host and on a device.
_BYTES_PER_TARGET = 2 * (4 + 1 + 4)
_WINDOW_STEP = np.uint64(0x9E3779B97F4A7C15)


def document_order(names: tuple[str, ...]) -> list[int]:
  """Documents in an order that depends on nothing but their ids."""
  return _window_order(names, np.ones(len(names), np.int64))[:, 0].tolist()


def _window_order(names: tuple[str, ...], windows_D: np.ndarray) -> np.ndarray:
  """All (document, window) pairs, int64[N, 2], in the order of their hashes.

  The hash of a pair, from the SplitMix64 sequence (Steele, Lea and Flood 2014)
  of the document's sha256, depends on nothing but the document's id and the
  window's number.
  """
  digests = [hashlib.sha256(name.encode()).digest()[:8] for name in names]
  seeds_D = np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)
  document_N = np.repeat(np.arange(len(names)), windows_D)
  first_D = np.cumsum(windows_D) - windows_D
  window_N = np.arange(len(document_N)) - first_D[document_N]
  z_N = seeds_D[document_N] + (window_N + 1).astype(np.uint64) * _WINDOW_STEP
  z_N = (z_N ^ (z_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  z_N = (z_N ^ (z_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  z_N ^= z_N >> np.uint64(31)
  # Equal hashes, once in 2^64, by what does not depend on the split either.
  order_N = np.lexsort((window_N, seeds_D[document_N], z_N))
  return np.stack([document_N, window_N], axis=1)[order_N]


def window_counts(tokens: SplitTokens, seq_len: int) -> np.ndarray:
  """The sequences that each document of a split gives, int64[D]."""
  targets_D = np.diff(tokens.offsets_D1) - 1  # all but the end of text before
  return -(-targets_D // seq_len)


def held_out(
  tokens: SplitTokens,
  bytes_per_token_V: np.ndarray,
  *,
  seq_len: int,
  max_sequences: int | None = None,
  documents: Collection[str] | None = None,
) -> HeldOut:
  """Cuts a split into sequences, document by document.

  The windows come in the order of a hash of (document, window): the first n
  are a random sample of the whole split (not of the heads of documents, which
  are harder to predict), and a smaller max_sequences gives the head of a larger
  one. InputError if they are more than memory holds.

  Args:
    bytes_per_token_V: int32[V], UTF-8 bytes that each token stands for.
    seq_len: L, targets in a sequence.
    max_sequences: N at most; None is all.
    documents: ids of those to cut; None is all.
  """
  starts_D = tokens.offsets_D1[:-1]
  targets_D = np.diff(tokens.offsets_D1) - 1
  windows_D = window_counts(tokens, seq_len)
  names = tokens.document_ids()
  if documents is not None:
    windows_D = windows_D * [name in documents for name in names]
  chosen = _window_order(names, windows_D)[:max_sequences].tolist()
  shape = (len(chosen), seq_len + 1)
  check_memory(
    f"{len(chosen)} held-out sequences of {seq_len} tokens",
    _BYTES_PER_TARGET * math.prod(shape),
  )
  tokens_NxL1 = np.full(shape, tokens.end_of_text, np.int32)
  mask_NxL = np.zeros((len(chosen), seq_len), bool)
  for row, (document, window) in enumerate(chosen):
    first = window * seq_len
    count = min(int(targets_D[document]) - first, seq_len)
    start = int(starts_D[document]) + first
    tokens_NxL1[row, : count + 1] = tokens.tokens_T[start : start + count + 1]
    mask_NxL[row, :count] = True
  bytes_NxL = np.where(mask_NxL, bytes_per_token_V[tokens_NxL1[:, 1:]], 0)
  used = list(dict.fromkeys(document for document, _ in chosen))
  number = {document: index for index, document in enumerate(used)}
  return HeldOut(
    tokens_NxL1=tokens_NxL1,
    mask_NxL=mask_NxL,
    document_N=np.array([number[d] for d, _ in chosen], np.int32),
    bytes_N=bytes_NxL.sum(axis=1, dtype=np.int32),
    document_ids=tuple(names[document] for document in used),
  )
