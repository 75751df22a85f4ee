"""Scores checkpoints of any sizes and tokenizers on one text.

D whole documents, N sequences of them.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxmerge.checkpoints.compatibility import is_one_model, is_one_tokenizer
from jaxmerge.checkpoints.inputs import Checkpoint
from jaxmerge.checkpoints.model_inputs import load_params
from jaxmerge.data.cache import TokenizedCorpus
from jaxmerge.data.config import TOKENIZED_FILES
from jaxmerge.data.heldout import document_order, window_counts
from jaxmerge.data.mixture import document_name
from jaxmerge.data.shares import apportioned
from jaxmerge.errors import InputError
from jaxmerge.evaluation.config import EvaluateConfig
from jaxmerge.evaluation.evaluator import EVALUATORS, Evaluator, Setting
from jaxmerge.evaluation.evaluators.heldout_loss import BITS, heldout_loss
from jaxmerge.evaluation.held_out_splits import (
  Scorer,
  check_documents,
  open_scorer,
  text_of,
)
from jaxmerge.evaluation.score import Score
from jaxmerge.merging.resident import choose_placement
from jaxmerge.parallel.distributed import on_every_process
from jaxmerge.progress import Progress

_FEWEST = 2  # documents that give a standard error


def scores(
  config: EvaluateConfig,
  checkpoints: Sequence[Checkpoint],
  progress: Progress,
) -> list[Score]:
  """Scores each checkpoint on the text of the first one.

  Those of one tokenizer are scored on the same sequences, by any evaluator; of
  several, by their loss in bits/byte of the same whole documents. Equal models
  share a program. All processes of a job call it.

  Raises:
    InputError: a model does not fit the devices, or as the evaluator's open.
  """
  first = checkpoints[0]
  is_one = all(is_one_tokenizer(first, c) for c in checkpoints)
  kinds = [_first_alike(checkpoints, c) for c in checkpoints]
  settings = {
    kind: _setting(config, first, checkpoints[kind], is_one) for kind in kinds
  }
  for kind, setting in settings.items():
    choose_placement(
      [checkpoints[kind]],
      setting.shardings,
      merged_trees=1,
      memory_budget_gb=config.memory_budget_gb,
    )
  open_all = _on_sequences if is_one else _on_documents
  opened = on_every_process(
    lambda: open_all(
      config, list(settings.values()), lambda text: progress.note("data", text)
    )
  )
  evaluators = dict(zip(settings, opened, strict=True))
  found = []
  for number, (kind, checkpoint) in enumerate(zip(kinds, checkpoints), start=1):
    params = load_params(checkpoint, settings[kind].shardings)
    found.append(evaluators[kind].score(params))
    progress.stage("evaluate", number, len(checkpoints), checkpoint.name)
  return found


def _first_alike(
  checkpoints: Sequence[Checkpoint], checkpoint: Checkpoint
) -> int:
  return next(
    number
    for number, other in enumerate(checkpoints)
    if is_one_tokenizer(other, checkpoint) and is_one_model(other, checkpoint)
  )


def _setting(
  config: EvaluateConfig, first: Checkpoint, other: Checkpoint, is_one: bool
) -> Setting:
  """The other model on the first one's corpus, checked for the first alone."""
  tokens = (first if is_one else other).metadata
  metadata = dataclasses.replace(
    first.metadata,
    model=other.metadata.model,
    leaves=other.metadata.leaves,
    tokenizer=tokens.tokenizer,
    files=tokens.files,
  )
  return config.setting(metadata, allow_unrelated=other is not first)


def _on_sequences(
  config: EvaluateConfig,
  settings: Sequence[Setting],
  tell: Callable[[str], None],
) -> list[Evaluator]:
  record = EVALUATORS[config.evaluator]
  opened = [record.open(setting, tell) for setting in settings]
  return [each.on(config.split, config.sequences) for each in opened]


def _on_documents(
  config: EvaluateConfig,
  settings: Sequence[Setting],
  tell: Callable[[str], None],
) -> list[Evaluator]:
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
  return [Documents(each, config.split, bytes_by_id) for each in scorers]


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
