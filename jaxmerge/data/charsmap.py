"""Normalisation rules of a SentencePiece model, as parts of a tokenizer.json.

A charsmap is the size of a trie (4 bytes), the trie, and texts that each end in
a zero byte. The trie is a double array (https://github.com/s-yata/darts-clone):
the unit at `place ^ byte` has that byte as its label, and says where its own
children start and whether a rule ends here.
"""

import base64
from typing import Any

import numpy as np
from tokenizers import normalizers

from jaxmerge.errors import InputError

_MOST_BYTES = 8 << 20  # the largest in use are of about 0.3 MB
_PLACES = 4096  # looked at together: what bounds the memory
_DAMAGED = "its normalisation rules are damaged"


def charsmap_parts(charsmap: bytes) -> list[dict[str, Any]]:
  """Normalizers of `tokenizers` that apply the rules.

  `tokenizers` takes a line break of two characters as one, which SentencePiece
  does not: where both give the same, two equal characters do.

  Raises:
    InputError: the rules are damaged.
  """
  check_charsmap(charsmap)
  encoded = base64.b64encode(charsmap).decode()
  part = {"type": "Precompiled", "precompiled_charsmap": encoded}
  rules = normalizers.Precompiled(charsmap)
  if rules.normalize_str("\r") != rules.normalize_str("\n"):
    return [part]
  pattern = {"String": "\r\n"}
  return [{"type": "Replace", "pattern": pattern, "content": "\n\n"}, part]


def check_charsmap(charsmap: bytes) -> None:
  """Walks all of the trie: `tokenizers` believes what it says.

  Raises:
    InputError: a place in it is none of the trie or of the texts.
  """
  size = int.from_bytes(charsmap[:4], "little")
  texts = charsmap[4 + size :]
  if len(charsmap) > _MOST_BYTES or not size or size % 4 or not texts:
    raise InputError(_DAMAGED)
  try:
    texts.decode()
    units = np.frombuffer(charsmap, "<u4", size // 4, offset=4)
    ends = _rule_ends(units.astype(np.int64))
  except (IndexError, UnicodeDecodeError) as error:
    raise InputError(_DAMAGED) from error
  is_start = np.frombuffer(texts, np.uint8) & 0xC0 != 0x80
  if ends.size and (ends.max() >= len(texts) or not is_start[ends].all()):
    raise InputError(_DAMAGED)


def _rule_ends(units: np.ndarray) -> np.ndarray:
  """Where the texts of all rules start; IndexError past the units."""
  labels = np.arange(256)
  seen = np.zeros(len(units), bool)
  found = [np.zeros(0, np.int64)]
  left = np.array([_children(units[0])])
  while left.size:
    now, left = left[:_PLACES], left[_PLACES:]
    seen[now] = True
    near = now[:, None] ^ labels
    hit = (units[near] & 0x800000FF) == labels
    hit[:, 0] = False  # a text ends at a zero byte
    unit = units[near[hit]]
    place = near[hit] ^ _children(unit)
    found.append(units[place[(unit >> 8) & 1 == 1]] & 0x7FFFFFFF)
    place = np.unique(place)
    left = np.concatenate([left, place[~seen[place]]])
  return np.concatenate(found)


def _children(unit: np.ndarray) -> np.ndarray:
  """By what the place of a unit is changed to that of its children."""
  return (unit >> 10) << ((unit & 0x200) >> 6)
