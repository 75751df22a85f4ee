"""Opens the held-out splits that a checkpoint is to be scored on."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from jaxmerge.checkpoints.metadata import (
  SENTENCEPIECE,
  Metadata,
  hash_text,
)
from jaxmerge.checkpoints.tensor_trees import to_bytes
from jaxmerge.data.cache import TokenizedCorpus
from jaxmerge.data.heldout import held_out
from jaxmerge.data.sentencepiece import tokenizer_json
from jaxmerge.data.settings import open_corpus
from jaxmerge.errors import InputError, check
from jaxmerge.evaluation.heldout_loss import HeldOutLoss
from jaxmerge.files import cache_root, write_text
from jaxmerge.model.config import DecoderConfig
from jaxmerge.model.decoder import abstract_decoder
from jaxmerge.parallel.rules import batch_shards


@dataclasses.dataclass(frozen=True)
class Scorer:
  """What is needed to score checkpoints of one model on one corpus.

  Attributes:
    graph: structure of the decoder.
    mesh: where to compute.
    corpus: tokens of all splits.
    seq_len: targets in a sequence.
    batch_size: sequences scored at once.
  """

  graph: nnx.GraphDef
  mesh: Mesh
  corpus: TokenizedCorpus
  seq_len: int
  batch_size: int

  def on(self, split: str, max_sequences: int) -> HeldOutLoss:
    """The loss on a split: "search", "report" or "validation".

    Raises:
      InputError: the chosen sequences are of fewer than two documents, so
        that no standard error can be given.
    """
    sequences = held_out(
      self.corpus.splits[split],
      self.corpus.bytes_per_token_V,
      seq_len=self.seq_len,
      max_sequences=max_sequences,
    )
    if len(set(sequences.document_N.tolist())) < 2:
      raise InputError(
        f"the {split} split has fewer than two documents to score on; a larger "
        "corpus or more sequences give a standard error"
      )
    return HeldOutLoss(self.graph, self.mesh, sequences, self.batch_size)


def tokenizer_of(metadata: Metadata) -> str:
  """The tokenizer.json to score a checkpoint with.

  Where there is none it is made from the checkpoint's tokenizer.model; the
  checkpoint itself stays as it is.

  Raises:
    InputError: there is neither, or the tokenizer.model cannot be used.
  """
  if metadata.tokenizer:
    return metadata.tokenizer
  if SENTENCEPIECE in metadata.files:
    text = metadata.files[SENTENCEPIECE]
    return tokenizer_json(to_bytes(SENTENCEPIECE, text))
  raise InputError("the checkpoint carries no tokenizer to score text with")


def open_scorer(
  metadata: Metadata,
  mesh: Mesh,
  *,
  batch_size: int,
  settings: Mapping[str, Any] | None = None,
  seq_len: int = 0,
  allow_unrelated: bool = False,
  progress: Callable[[str], None],
) -> Scorer:
  """A scorer for a checkpoint, with the checkpoint's own tokenizer.

  Args:
    metadata: of the checkpoint.
    mesh: where to compute.
    batch_size: sequences scored at once, over all devices.
    settings: a corpus other than the run's own.
    seq_len: targets in a sequence, if other than the run's own.
    allow_unrelated: accept that the run's corpus has changed since training.
    progress: called with a line of text while a corpus is prepared.

  Raises:
    InputError: the checkpoint names no corpus or tokenizer and none is given,
      its corpus is no longer what it was trained on, or the batch does not fit
      the mesh.
  """
  shards = batch_shards(mesh)
  check(
    [f"config.batch_size {batch_size} is not a multiple of {shards} devices"]
    if batch_size < 1 or batch_size % shards
    else []
  )
  tokenizer = tokenizer_of(metadata)
  run_data = dict(metadata.data)
  length = seq_len or run_data.pop("seq_len", 0)
  run_data.pop("seq_len", None)
  chosen = settings or run_data
  check(
    [
      f"the checkpoint names no {what}; give config.{key}"
      for what, key, given in (
        ("corpus", "data.source", chosen),
        ("sequence length", "seq_len", length),
      )
      if not given
    ]
  )
  path = cache_root() / "tokenizers" / f"{hash_text(tokenizer)}.json"
  path.parent.mkdir(parents=True, exist_ok=True)
  write_text(path, tokenizer)
  corpus = open_corpus(chosen, tokenizer_path=str(path), progress=progress)
  if not settings and not allow_unrelated:
    check(_changes(metadata, corpus.fingerprint))
  graph, _ = abstract_decoder(DecoderConfig.from_dict(metadata.model))
  return Scorer(graph, mesh, corpus, length, batch_size)


def _changes(metadata: Metadata, fingerprint: str) -> list[str]:
  """Why text that is held out now may have been trained on."""
  if metadata.corpus == fingerprint:
    return []
  return [
    f"corpus {metadata.data['source']!r} is no longer what step "
    f"{metadata.step} was trained on ({fingerprint[:12]} against "
    f"{metadata.corpus[:12]}), so its held-out text may have been trained on; "
    "bring the old text back, or name a corpus of your own for evaluate "
    "(config.data), or let search accept it with --allow_unrelated"
  ]
