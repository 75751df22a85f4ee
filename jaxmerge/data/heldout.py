"""Fixed held-out sequences that never cross a document.

N: sequences. L: targets in a sequence. V: size of the vocabulary.
D: documents. T: tokens of a split.
"""

import hashlib
from typing import NamedTuple

import numpy as np

from jaxmerge.data.token_files import SplitTokens
from jaxmerge.errors import check


class HeldOut(NamedTuple):
  """Sequences to score.

  Attributes:
    tokens_NxL1: int32[N, L + 1], inputs [:, :-1] and targets [:, 1:]; padded
      at the end with the end-of-text token.
    mask_NxL: bool[N, L], which targets count. Every token of a document does,
      its first one given end of text; the end of text itself never does.
    document_N: int32[N], an index into document_ids, for clustered errors.
    bytes_N: int32[N], UTF-8 bytes that the targets that count stand for.
    document_ids: names of the documents, in the order of their first sequence.
  """

  tokens_NxL1: np.ndarray
  mask_NxL: np.ndarray
  document_N: np.ndarray
  bytes_N: np.ndarray
  document_ids: tuple[str, ...]


def _hash_order(names: tuple[str, ...]) -> np.ndarray:
  digests = [hashlib.sha256(name.encode()).digest() for name in names]
  return np.array(sorted(range(len(names)), key=digests.__getitem__), np.int64)


def _chosen_windows(
  order_D: np.ndarray, windows_D: np.ndarray, max_sequences: int | None
) -> list[tuple[int, int]]:
  """(document, window) pairs, one window of each document after the other."""
  limit = int(windows_D.sum())
  limit = limit if max_sequences is None else min(limit, max_sequences)
  chosen: list[tuple[int, int]] = []
  window = 0
  while len(chosen) < limit:
    has_window = order_D[windows_D[order_D] > window]
    room = limit - len(chosen)
    chosen.extend((int(d), window) for d in has_window[:room])
    window += 1
  return chosen


def held_out(
  tokens: SplitTokens,
  bytes_per_token_V: np.ndarray,
  *,
  seq_len: int,
  max_sequences: int | None = None,
) -> HeldOut:
  """Cuts a split into sequences, document by document.

  The sequences are the first window of each document, then the second of each
  that has two, and so on, documents in the order of their ids' hashes: a
  smaller max_sequences gives the head of a larger one.

  Args:
    tokens: a split of a token cache.
    bytes_per_token_V: int32[V], UTF-8 bytes that each token stands for.
    seq_len: L, targets in a sequence.
    max_sequences: N at most; None is all.

  Raises:
    InputError: seq_len or max_sequences below 1.
  """
  problems = []
  if seq_len < 1:
    problems.append(f"seq_len must be at least 1, not {seq_len}")
  if max_sequences is not None and max_sequences < 1:
    problems.append(f"max_sequences must be at least 1, not {max_sequences}")
  check(problems)
  starts_D = tokens.offsets_D1[:-1]
  targets_D = np.diff(tokens.offsets_D1) - 1  # all but the end of text before
  windows_D = -(-targets_D // seq_len)
  names = tokens.document_ids()
  chosen = _chosen_windows(_hash_order(names), windows_D, max_sequences)
  shape = (len(chosen), seq_len + 1)
  tokens_NxL1 = np.full(shape, tokens.end_of_text, np.int32)
  mask_NxL = np.zeros((len(chosen), seq_len), bool)
  for row, (document, window) in enumerate(chosen):
    first = window * seq_len
    count = min(int(targets_D[document]) - first, seq_len)
    start = int(starts_D[document]) + first
    tokens_NxL1[row, : count + 1] = tokens.tokens_T[start : start + count + 1]
    mask_NxL[row, :count] = True
  bytes_NxL = np.where(mask_NxL, bytes_per_token_V[tokens_NxL1[:, 1:]], 0)
  # Windows come round by round, so the first round names every document.
  used = list(dict.fromkeys(document for document, _ in chosen))
  number = {document: index for index, document in enumerate(used)}
  return HeldOut(
    tokens_NxL1=tokens_NxL1,
    mask_NxL=mask_NxL,
    document_N=np.array([number[d] for d, _ in chosen], np.int32),
    bytes_N=bytes_NxL.sum(axis=1, dtype=np.int32),
    document_ids=tuple(names[document] for document in used),
  )
