"""Minimal pairs of sentences, as BLiMP's files have them.

Warstadt et al. 2020, BLiMP (https://aclanthology.org/2020.tacl-1.25).
"""

from etils import epath

from jaxmerge.errors import Problems
from jaxmerge.evaluation.tasks.files import json_lines, text_of
from jaxmerge.evaluation.tasks.task import (
  TASKS,
  Question,
  Source,
  TaskRecord,
)

_KEYS = ("sentence_good", "sentence_bad")


def read(path: epath.Path, shots: int, problems: Problems) -> Source:
  """Reads the pairs; the first choice of each is the good sentence.

  BLiMP has pairs of twice the same sentence, which nothing can tell apart.
  """
  del shots  # takes none
  pairs = []
  for number, (where, row) in enumerate(json_lines(path, problems)):
    good, bad = (text_of(where, row, key, problems) for key in _KEYS)
    pairs.append(Question(where, str(number), {"question": ""}, (good, bad), 0))
  return Source(pairs, {})


TASKS.register(
  TaskRecord(
    "pairs",
    "FILE.jsonl",
    "a line for each pair: sentence_good, sentence_bad (BLiMP's form)",
    {"sentence": ""},
    None,
    read,
  )
)
