"""Opens the held-out splits that a checkpoint is to be scored on."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from jaxmerge.data.config import CorpusConfig, from_metadata
from jaxmerge.data.heldout import HeldOut
from jaxmerge.data.mixture import (
  Mixture,
  changed_files,
  content_hash,
  open_corpus,
)
from jaxmerge.data.tokenizers.protocol import Tokenizer
from jaxmerge.errors import InputError, check
from jaxmerge.evaluation.evaluator import Evaluator, EvaluatorRecord, Setting
from jaxmerge.evaluation.score import Direction
from jaxmerge.files import cache_root, write_bytes
from jaxmerge.formats.records.metadata import Metadata
from jaxmerge.merging.groups import Groups
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import abstract_decoder
from jaxmerge.parallel.rules import batch_shards


@dataclasses.dataclass(frozen=True)
class Scorer:
  """The splits of one corpus, to score checkpoints of one model on.

  It is an evaluator.Opened.
  """

  graph: nnx.GraphDef
  vocab_size: int
  mesh: Mesh
  corpus: Mixture
  seq_len: int
  batch_size: int
  source: str
  build: Callable[["Scorer", HeldOut], Evaluator]

  @property
  def content(self) -> str:
    return self.corpus.identity

  def on(self, split: str, count: int) -> Evaluator:
    return self.build(self, self.sequences(split, count))

  def sequences(self, split: str, max_sequences: int) -> HeldOut:
    """Sequences of a split.

    Raises:
      InputError: the chosen sequences are of fewer than two documents, so
        that no standard error can be given, or hold a token that the model
        does not know.
    """
    sequences = self._cut(split, max_sequences=max_sequences)
    check_documents(split, len(sequences.document_ids))
    return sequences

  def sequences_of(self, split: str, documents: Collection[str]) -> HeldOut:
    """All sequences of these documents."""
    return self._cut(split, documents=documents)

  def _cut(self, split: str, **chosen: Any) -> HeldOut:
    found = self.corpus.held_out(split, seq_len=self.seq_len, **chosen)
    largest = int(found.tokens_NxL1.max(initial=0))
    if largest >= self.vocab_size:
      raise InputError(
        f"the checkpoint's tokenizer gives token {largest} for text of the "
        f"{split} split, but its model knows {self.vocab_size} tokens"
      )
    return found


def check_documents(split: str, count: int) -> None:
  """Raises InputError for too few documents to give a standard error."""
  if count < 2:
    raise InputError(
      f"the {split} split has fewer than two documents to score on; a larger "
      "corpus or more sequences give a standard error"
    )


Build = Callable[[Scorer, HeldOut, Any], Evaluator]


def tokenizer_of(metadata: Metadata) -> Tokenizer:
  """The tokenizer of a checkpoint; InputError for none or an unusable one."""
  for tokenizer in metadata.tokenizers():
    return tokenizer
  raise InputError("the checkpoint carries no tokenizer to score text with")


def text_of(setting: Setting) -> tuple[Tokenizer, CorpusConfig, int]:
  """Finds the text for a checkpoint; hashes files, prepares and writes nothing.

  Returns:
    The checkpoint's own tokenizer, the corpus (the setting's own object where
    that names one) and the targets in a sequence.

  Raises:
    InputError: the checkpoint names no corpus or tokenizer and none is given,
      its corpus is no longer what it was trained on, or the mesh does not
      divide a sequence.
  """
  metadata, data = setting.metadata, setting.data
  trained = metadata.data
  is_own = data is None or not data.source
  if is_own:
    data = from_metadata(trained) if trained else None
  tokenizer = tokenizer_of(metadata)
  seq_len = setting.seq_len or trained.get("seq_len", 0)
  check(
    f"the checkpoint names no {what}; give config.{key}"
    for what, key, given in (
      ("corpus", "data.source", data),
      ("sequence length", "seq_len", seq_len),
    )
    if not given
  )
  assert data is not None
  context = setting.mesh.shape["context"]
  if seq_len % context:
    raise InputError(
      f"config.seq_len {seq_len} is not a multiple of config.mesh.context "
      f"{context}"
    )
  before, now = trained.get("content", ""), content_hash(data)
  if is_own and not setting.allow_unrelated and before and now:
    _check_unchanged(metadata, data, before, now)
  return tokenizer, data, seq_len


def open_scorer(
  setting: Setting, progress: Callable[[str], None], build: Build
) -> Scorer:
  """A scorer for a checkpoint, with the checkpoint's own tokenizer.

  Args:
    setting, progress: as for EvaluatorRecord.open.
    build: makes the evaluator, of what to score with, sequences and the knobs.

  Raises:
    InputError: as text_of, or the batch does not fit the mesh.
  """
  check_batch(setting.batch_size, setting.mesh)
  metadata = setting.metadata
  tokenizer, data, seq_len = text_of(setting)
  path = cache_root() / "tokenizers" / tokenizer.hash / tokenizer.file_name
  path.parent.mkdir(parents=True, exist_ok=True)
  write_bytes(path, tokenizer.content)
  corpus = open_corpus(data.with_tokenizer(str(path)), progress=progress)
  if data is not setting.data and not setting.allow_unrelated:
    _check_unchanged(metadata, data, metadata.corpus, corpus.identity)
  config = DecoderConfig.from_dict(metadata.model)
  graph, _ = abstract_decoder(config)
  return Scorer(
    graph,
    config.vocab_size,
    setting.mesh,
    corpus,
    seq_len,
    setting.batch_size,
    data.title,
    lambda scorer, held: build(scorer, held, setting.knobs),
  )


def text_evaluator(
  name: str,
  summary: str,
  direction: Direction,
  knobs: type,
  build: Build,
  *,
  is_differentiable: bool = False,
  has_curvature: bool = False,
  derivative_bytes: Callable[[Setting, int, Groups, int], int] | None = None,
) -> EvaluatorRecord:
  """The record of an evaluator whose items are sequences of the held-out text.

  Args:
    name, summary, direction, knobs, is_differentiable, has_curvature,
      derivative_bytes: of EvaluatorRecord.
    build: as for open_scorer.
  """

  def check_text(setting: Setting) -> int:
    check_batch(setting.batch_size, setting.mesh)
    return text_of(setting)[2]

  return EvaluatorRecord(
    name,
    summary,
    direction,
    knobs,
    check_text,
    lambda setting, progress: open_scorer(setting, progress, build),
    is_differentiable,
    has_curvature,
    derivative_bytes,
  )


def check_batch(batch_size: int, mesh: Mesh) -> None:
  """Raises InputError for a batch that cannot be spread over the mesh."""
  shards = batch_shards(mesh)
  if batch_size < 1 or batch_size % shards:
    raise InputError(
      f"config.batch_size {batch_size} is not a multiple of {shards} devices"
    )


def _check_unchanged(
  metadata: Metadata, data: CorpusConfig, before: str, now: str
) -> None:
  """Raises InputError where held-out text may have been trained on."""
  if before != now:
    changed = changed_files(data, metadata.data.get("content", ""))
    which = f" ({changed})" if changed else ""
    raise InputError(
      f"corpus {from_metadata(metadata.data).title!r} is no longer what step "
      f"{metadata.step} was trained on{which}, so its held-out text may have "
      "been trained on; bring the old text back, or name a corpus of your own "
      "for evaluate (config.data), or let search accept it with "
      "--allow_unrelated"
    )
