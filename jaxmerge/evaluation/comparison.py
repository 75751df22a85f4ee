"""Opens a held-out split for checkpoints of any sizes and tokenizers.

D whole documents, N items: sequences or documents.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmerge.data.cache import TokenizedCorpus
from jaxmerge.data.config import TOKENIZED_FILES
from jaxmerge.data.heldout import HeldOut, document_order, window_counts
from jaxmerge.data.mixture import document_name
from jaxmerge.data.shares import apportioned
from jaxmerge.errors import InputError
from jaxmerge.evaluation.config import EvaluateConfig
from jaxmerge.evaluation.evaluator import (
  DEFAULT_EVALUATOR,
  EVALUATORS,
  Evaluator,
  Opened,
  Setting,
)
from jaxmerge.evaluation.evaluators.heldout_loss import BITS, heldout_loss
from jaxmerge.evaluation.held_out_splits import (
  Scorer,
  check_documents,
  open_scorer,
  text_of,
)
from jaxmerge.evaluation.score import Score
from jaxmerge.formats.records.metadata import canonical_json, hash_text

_FEWEST = 2  # documents that give a standard error


class Items(NamedTuple):
  """Holds what is known of the items of a held-out split.

  Attributes:
    hashes_N: of what each item asks of a model.
    parts_N: the part of the mixture that each is of, "" of a plain corpus.
    bytes_N: int64, the UTF-8 bytes of each.
    content: a hash of all of them and of the tokens in which a model has them.
  """

  hashes_N: tuple[str, ...]
  parts_N: tuple[str, ...]
  bytes_N: np.ndarray
  content: str


class Text(NamedTuple):
  """A held-out split, ready to be scored with one model.

  Attributes:
    evaluator: of all its items.
    items: None where only the evaluator knows them.
    content: the hash of the corpus.
  """

  evaluator: Evaluator
  items: Items | None
  content: str


def open_texts(
  config: EvaluateConfig,
  settings: Mapping[int, Setting],
  is_one_tokenizer: bool,
  tell: Callable[[str], None],
) -> dict[int, Text]:
  """Opens the text of the first setting for the models of all.

  Those of one tokenizer are scored on the same sequences, by any evaluator; of
  several, by their loss in bits/byte of the same whole documents.

  Args:
    settings: by any number, each of another model.
    is_one_tokenizer: all of them have the same.
    tell: called with a line of text while a corpus is prepared.

  Raises:
    InputError: as the evaluator's open, or there are too few documents.
  """
  open_all = _on_sequences if is_one_tokenizer else _on_documents
  found = open_all(config, list(settings.values()), tell)
  return dict(zip(settings, found, strict=True))


def _on_sequences(
  config: EvaluateConfig,
  settings: Sequence[Setting],
  tell: Callable[[str], None],
) -> list[Text]:
  record = EVALUATORS[config.evaluator]
  opened = [record.open(setting, tell) for setting in settings]
  return [on_split(config, each) for each in opened]


def on_split(config: EvaluateConfig, opened: Opened) -> Text:
  """The split of a config in a text that is open."""
  split, count = config.split, config.sequences
  if config.evaluator != DEFAULT_EVALUATOR or not isinstance(opened, Scorer):
    return Text(opened.on(split, count), None, opened.content)
  held = opened.sequences(split, count)
  evaluator = opened.build(opened, held)
  return Text(evaluator, _items(held, opened), opened.content)


def _items(held: HeldOut, scorer: Scorer) -> Items:
  counts_N = held.mask_NxL.sum(axis=1)
  return _known_items(
    [
      row[: count + 1].astype("<i4").tobytes()
      for row, count in zip(held.tokens_NxL1, counts_N)
    ],
    [held.document_ids[document] for document in held.document_N],
    held.bytes_N,
    scorer,
  )


def _known_items(
  asked_N: Sequence[bytes],
  documents_N: Sequence[str],
  bytes_N: Sequence[int] | np.ndarray,
  scorer: Scorer,
) -> Items:
  hashes = [hashlib.sha256(asked).hexdigest()[:32] for asked in asked_N]
  sizes = np.asarray(bytes_N, np.int64)
  known = [scorer.corpus.tokenizer.hash, scorer.seq_len, hashes, sizes.tolist()]
  return Items(
    tuple(hashes),
    _parts(documents_N, scorer),
    sizes,
    hash_text(canonical_json([*known, documents_N])),
  )


def _parts(names: Sequence[str], scorer: Scorer) -> tuple[str, ...]:
  """The part of a mixture that each document's name begins with."""
  if "" in scorer.corpus.parts:
    return ("",) * len(names)
  return tuple(name.partition("/")[0] for name in names)


def _on_documents(
  config: EvaluateConfig,
  settings: Sequence[Setting],
  tell: Callable[[str], None],
) -> list[Text]:
  if text_of(settings[0])[1].has_tokens:
    raise InputError(
      f"source {TOKENIZED_FILES!r} has the tokens of one tokenizer, and the "
      "inputs have several; compare them on text (config.data.source)"
    )
  scorers = [open_scorer(setting, tell, heldout_loss) for setting in settings]
  texts, left_out = _shared_texts(scorers, config.split, config.sequences)
  if left_out:
    tell(
      f"{left_out} of {left_out + len(texts)} documents left out, which the "
      "tokenizers do not give back alike"
    )
  check_documents(config.split, len(texts))
  bytes_by_id = {name: len(text.encode()) for name, text in texts.items()}
  asked = [text.encode() for text in texts.values()]
  sizes = list(bytes_by_id.values())
  return [
    Text(
      Documents(each, config.split, bytes_by_id),
      _known_items(asked, list(texts), sizes, each),
      each.content,
    )
    for each in scorers
  ]


def _shared_texts(
  scorers: Sequence[Scorer], split: str, max_sequences: int
) -> tuple[dict[str, str], int]:
  """Chooses documents that all tokenizers give back alike, by a hash.

  Returns:
    Their texts by id, of at most so many sequences by each tokenizer; and the
    number of documents that are left out because a tokenizer has lost
    something of them.
  """
  texts: dict[str, str] = {}
  left_out = 0
  weights = scorers[0].corpus.weights
  if any(scorer.corpus.weights != weights for scorer in scorers):
    raise InputError("the models are of other mixtures of corpora")
  for part, count in apportioned(weights, max_sequences).items():
    corpora = [scorer.corpus.parts[part] for scorer in scorers]
    lengths = [scorer.seq_len for scorer in scorers]
    found, lost = _of_part(corpora, lengths, split, count)
    texts |= {document_name(part, name): text for name, text in found.items()}
    left_out += lost
  return texts, left_out


def _of_part(
  corpora: Sequence[TokenizedCorpus],
  lengths: Sequence[int],
  split: str,
  max_sequences: int,
) -> tuple[dict[str, str], int]:
  """As _shared_texts, of one corpus in the tokens of each model.

  Args:
    lengths: the targets in a sequence of each model.
  """
  splits = [corpus.splits[split] for corpus in corpora]
  names = splits[0].document_ids()
  if any(tokens.document_ids() != names for tokens in splits):
    raise InputError("the corpus has changed while it was opened")
  counts_D = np.max(
    [window_counts(t, n) for t, n in zip(splits, lengths)], axis=0
  )
  texts: dict[str, str] = {}
  left_out = total = 0
  for document in document_order(names):
    found = {_text(corpus, split, document) for corpus in corpora}
    if len(found) > 1 or not all(found):
      left_out += 1
      continue
    total += int(counts_D[document])
    if total > max_sequences and len(texts) >= _FEWEST:
      break
    texts[names[document]] = found.pop()
    if total > max_sequences and len(texts) == _FEWEST:
      raise InputError(
        "tokenizers are compared over whole documents, of which the first "
        f"{_FEWEST} of the {split} split are {total} sequences; "
        f"config.sequences is {max_sequences}"
      )
  return texts, left_out


def _text(corpus: TokenizedCorpus, split: str, document: int) -> str:
  tokens = corpus.splits[split]
  start, stop = tokens.offsets_D1[document : document + 2]
  ids = tokens.tokens_T[start + 1 : stop].tolist()
  return corpus.tokenizer.decode(ids)


class Documents:
  """Scores parameters on whole documents.

  An item is a document: its value the bits that its tokens take, its weight the
  UTF-8 bytes of its text, whatever the tokenizer.
  """

  def __init__(
    self, scorer: Scorer, split: str, bytes_by_id: Mapping[str, int]
  ):
    self._sequences = scorer.sequences_of(split, bytes_by_id)
    self._evaluator = scorer.build(scorer, self._sequences)
    self._bytes_by_id = bytes_by_id

  def score(self, params: Any, upto: int | None = None) -> Score:
    """Scores the first `upto` documents, at the price of all."""
    score = self._evaluator.score(params)
    nats_D = np.bincount(score.clusters_N, weights=score.values_N)
    nats_by_id = dict(zip(self._sequences.document_ids, nats_D, strict=True))
    nats_D = np.array([nats_by_id[name] for name in self._bytes_by_id])
    return Score(
      values_N=nats_D[:upto] / math.log(2),
      weights_N=np.array(list(self._bytes_by_id.values()))[:upto],
      clusters_N=np.arange(len(nats_D))[:upto],
      unit=BITS,
      direction="minimize",
      tokens=score.tokens,
      extras={score.unit: score.mean},
    )
