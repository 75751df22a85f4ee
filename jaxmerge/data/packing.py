"""Whole documents in windows of L inputs, planned once for each token cache.

A document of up to L tokens, its end-of-text token the first, is one piece. A
longer one fills windows of its own, and its rest is a piece behind one token of
padding. Pieces go where they leave the least room, the largest first (best-fit
decreasing, Johnson et al. 1974).

The plan is a directory of the token cache, whole or absent:

    windows-<L>-<hash>/pieces.npy   where each piece lies, window after window
                       starts.npy   int64[W + 1]: the first piece of each window
                       meta.json    the SHA-256 of both

T: tokens of a split. D: documents. N: pieces. W: windows. L: targets in one.
"""

import bisect
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmerge.data.batch import Batch
from jaxmerge.data.cache import SplitTokens
from jaxmerge.data.file_hashes import sha256_of_file, sha256_of_json
from jaxmerge.errors import InputError, Problems
from jaxmerge.files import replace_directory, write_json
from jaxmerge.reading import read_json

VERSION = 1  # of the plan: part of its name
# A piece: its first token in the split, its tokens, its place in its window.
_PIECE = np.dtype([("start", "<i8"), ("length", "<i4"), ("place", "<i4")])
_FILES = ("pieces.npy", "starts.npy")
_META = "meta.json"


class Plan(NamedTuple):
  """Pieces of windows: w has pieces_N[starts_W1[w] : starts_W1[w + 1]]."""

  pieces_N: np.ndarray
  starts_W1: np.ndarray


def best_fit(sizes_N: np.ndarray, room: int) -> tuple[np.ndarray, int]:
  """Puts sizes into as few bins as best-fit decreasing does.

  All of one size at once, as they go into the same bins one after another: the
  work grows with the number of sizes and of different rooms left, not of items.

  Args:
    sizes_N: int[N], from 1 to `room`, the largest first.
    room: of a bin.

  Returns:
    int64[N], the bin of each, and the number of bins.
  """
  bins_N = np.empty(len(sizes_N), np.int64)
  count = done = 0
  by_room: dict[int, list[np.ndarray]] = {}
  rooms: list[int] = []  # those of by_room, in order

  def leave(bins: np.ndarray, room: int) -> None:
    if len(bins) and room:
      if room not in by_room:
        bisect.insort(rooms, room)
      by_room.setdefault(room, []).append(bins)

  def fill(bins: np.ndarray, left: int, size: int, end: int) -> int:
    """Puts items up to `end` into bins with so much room; gives the next."""
    each = left // size
    whole, rest = divmod(min(end - done, each * len(bins)), each)
    stop = done + whole * each
    bins_N[done:stop] = np.repeat(bins[:whole], each)
    bins_N[stop : stop + rest] = bins[whole : whole + 1].repeat(rest)
    leave(bins[:whole], left - each * size)
    used = whole + (rest > 0)
    leave(bins[whole:used], left - rest * size)
    leave(bins[used:], left)
    return stop + rest

  sizes, numbers = np.unique(sizes_N, return_counts=True)
  ends = np.cumsum(numbers[::-1])
  for size, end in zip(sizes[::-1].tolist(), ends.tolist(), strict=True):
    while done < end:
      at = bisect.bisect_left(rooms, size)
      if at < len(rooms):
        left = rooms.pop(at)
        bins = np.concatenate(by_room.pop(left))
      else:
        left, new = room, -(-(end - done) // (room // size))
        bins = np.arange(count, count + new)
        count += new
      done = fill(bins, left, size, end)
  return bins_N, count


def plan(offsets_D1: np.ndarray, seq_len: int) -> Plan:
  """Plans the windows of documents; the same documents give the same plan.

  Args:
    offsets_D1: as of SplitTokens.
    seq_len: L.
  """
  starts_D, lengths_D = offsets_D1[:-1], np.diff(offsets_D1)
  # Windows of long documents, which lie in them one after another.
  full_D = lengths_D // seq_len
  document_F = np.repeat(np.arange(len(full_D)), full_D)
  first_D = np.cumsum(full_D) - full_D
  full_F = np.zeros(len(document_F), _PIECE)
  number_F = np.arange(len(document_F)) - first_D[document_F]
  full_F["start"] = starts_D[document_F] + number_F * seq_len
  full_F["length"] = seq_len
  rest_D = lengths_D - full_D * seq_len
  behind_D = full_D > 0  # padding: its first token is no end of text
  chosen_N = np.flatnonzero(rest_D)
  sizes_N = (rest_D + behind_D)[chosen_N].astype(np.int32)
  order_N = np.argsort(-sizes_N, kind="stable")
  bins_N, count = best_fit(sizes_N[order_N], seq_len)
  by_bin_N = np.argsort(bins_N, kind="stable")
  order_N, bins_N = order_N[by_bin_N], bins_N[by_bin_N]
  document_N, sizes_N = chosen_N[order_N], sizes_N[order_N]
  packed_W1 = np.searchsorted(bins_N, np.arange(count + 1))
  before_N = np.cumsum(sizes_N, dtype=np.int64) - sizes_N
  rest_N = np.zeros(len(order_N), _PIECE)
  rest_N["start"] = (starts_D + full_D * seq_len)[document_N]
  rest_N["length"] = rest_D[document_N]
  rest_N["place"] = (
    before_N - before_N[packed_W1[:-1]][bins_N] + behind_D[document_N]
  )
  starts_W1 = np.concatenate(
    [np.arange(len(full_F)), len(full_F) + packed_W1]
  ).astype("<i8")
  return Plan(np.concatenate([full_F, rest_N]), starts_W1)


def _open(directory: Path) -> Plan:
  """Opens a plan after reading all of it; InputError where it is damaged."""
  try:
    digests = read_json((directory / _META).read_bytes())["sha256"]
    for name in _FILES:
      if sha256_of_file(directory / name) != digests[name]:
        raise ValueError(f"the sha256 of {name} is not the recorded one")
    return Plan(*(np.load(directory / name, mmap_mode="r") for name in _FILES))
  except (OSError, ValueError, LookupError, TypeError) as error:
    raise InputError(f"{directory} is damaged: {error}") from error


def _write(directory: Path, made: Plan) -> None:
  with replace_directory(directory) as path:
    temporary = Path(path)
    temporary.mkdir()
    for name, array in zip(_FILES, made, strict=True):
      np.save(temporary / name, array)
    digests = {name: sha256_of_file(temporary / name) for name in _FILES}
    write_json(temporary / _META, {"sha256": digests})
    if Problems()(lambda: _open(directory)):
      raise InputError("another process has finished the same")


def open_plan(tokens: SplitTokens, identity: str, seq_len: int) -> Plan:
  """The plan of a split, from its token cache where it is there.

  Args:
    identity: of the cache.
    seq_len: L.

  Raises:
    InputError: it cannot be written.
  """
  key = sha256_of_json([identity, tokens.name, seq_len, VERSION])[:16]
  directory = tokens.ids_path.parent / f"windows-{seq_len}-{key}"
  found = Problems()(lambda: _open(directory))
  if found is None:
    written = Problems()
    written(lambda: _write(directory, plan(tokens.offsets_D1, seq_len)))
    found = Problems()(lambda: _open(directory))
    if found is None:
      written.check()
      return _open(directory)
  return found


class Packed:
  """Windows of whole documents; row w is Batch(int32[L + 1], int32[L + 1])."""

  def __init__(self, tokens: SplitTokens, plan: Plan, seq_len: int) -> None:
    self._tokens, self._plan, self._seq_len = tokens, plan, seq_len

  def __len__(self) -> int:
    return len(self._plan.starts_W1) - 1

  @property
  def targets(self) -> int:
    """Targets that count: one for each token."""
    return len(self._tokens.tokens_T)

  def __getitem__(self, window: int) -> Batch:
    pieces_N, starts_W1 = self._plan
    tokens = np.full(self._seq_len + 1, self._tokens.end_of_text, np.int32)
    segments = np.zeros(self._seq_len + 1, np.int32)
    chosen = pieces_N[starts_W1[window] : starts_W1[window + 1]].tolist()
    for number, (start, length, place) in enumerate(chosen, 1):
      # With its last target, which the next piece has as its first token.
      found = self._tokens.tokens_T[start : start + length + 1]
      tokens[place : place + len(found)] = found
      segments[place : place + length] = number
    segments[-1] = segments[-2]  # no input: of a document that goes on
    return Batch(tokens, segments)
