"""Metadata of a checkpoint: leaves with digests, origin, provenance."""

import dataclasses
import hashlib
import importlib.metadata
import json
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from etils import epath

from jaxmerge.data.tokenizers.hugging_face import (
  TOKENIZER_JSON,
  HuggingFaceTokenizer,
)
from jaxmerge.data.tokenizers.protocol import Tokenizer
from jaxmerge.data.tokenizers.sentence_piece import (
  TOKENIZER_MODEL,
  SentencePieceTokenizer,
)
from jaxmerge.errors import Damaged, InputError, check
from jaxmerge.formats.integrity.checksums import describe_leaf
from jaxmerge.formats.integrity.digest import digests
from jaxmerge.formats.integrity.norms import norms
from jaxmerge.formats.lazy_tensors import tree_of_leaves
from jaxmerge.formats.records.file_texts import to_bytes, to_text
from jaxmerge.formats.records.values import value_problems
from jaxmerge.model.config import DecoderConfig
from jaxmerge.old_names import renamed
from jaxmerge.parallel.rules import named_leaves
from jaxmerge.reading import check_no_pipes, read_file, read_json

FORMAT = 1
# Fields that checkpoints of before do not have.
_ADDED = ("files", "metrics", "skipped", "position", "temporary", "roll_backs")
_PACKAGES = ("jaxmerge", "jax", "flax", "optax", "orbax-checkpoint")


def versions() -> dict[str, str]:
  return {name: importlib.metadata.version(name) for name in _PACKAGES}


@dataclasses.dataclass(frozen=True)
class Metadata:
  """The `metadata` item of a step directory.

  Attributes:
    kind: "trained", "merged", "converted" or "imported"; the trainer resumes
      only from the first.
    leaves: for each item, each leaf's shape, dtype, digest and norm.
    step: optimiser steps taken (of the latest source, for a merged tree).
    tokens: training tokens seen up to `step`.
    run_id: identity of the run: its config, its corpus and its parent.
    parent: what the run was started from ("" for a random start).
    model: fields of the model's DecoderConfig.
    data: arguments from which the run's corpus was prepared.
    corpus: identity of what they gave ("" without a corpus).
    tokenizer: the whole tokenizer.json, so that a copied checkpoint is usable
      ("" where there is none; a tokenizer.model is one of `files`).
    iterator: of checkpoints of before, a digest of their place in the data.
    provenance: for a merged tree its method, weights and sources.
    versions: packages that wrote it.
    files: what else goes into a Hugging Face directory, as to_text gives it:
      what lay in the one that the model comes from (config.json, tokenizer
      files and others), or the tokenizer.model of a run.
    metrics: digest of the run's metrics.jsonl up to `step` ("" if not known).
    skipped: of the run's corpus, how many documents were left out and why.
    position: batches of the run's data that lie behind `step`, which is where
      it goes on; 0: as many as steps.
    temporary: saved because the run was stopped there; it is deleted when the
      next one by the run's plan is whole.
    roll_backs: how often the run has gone back after it diverged.
  """

  kind: str
  leaves: Mapping[str, Mapping[str, Mapping[str, Any]]]
  step: int = 0
  tokens: int = 0
  run_id: str = ""
  parent: str = ""
  model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  corpus: str = ""
  tokenizer: str = ""
  iterator: str = ""
  provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  versions: Mapping[str, str] = dataclasses.field(default_factory=versions)
  files: Mapping[str, str] = dataclasses.field(default_factory=dict)
  metrics: str = ""
  skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)
  position: int = 0
  temporary: bool = False
  roll_backs: int = 0

  def tokenizers(self) -> Iterator[Tokenizer]:
    """Those that it holds: tokenizer.json, then tokenizer.model.

    Raises:
      InputError: one of them cannot be used.
    """
    if self.tokenizer:
      text = self.tokenizer.removeprefix("\ufeff")
      yield HuggingFaceTokenizer.parse(text, TOKENIZER_JSON)
    if TOKENIZER_MODEL in self.files:
      content = to_bytes(TOKENIZER_MODEL, self.files[TOKENIZER_MODEL])
      yield SentencePieceTokenizer(content)


def hash_text(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()


def canonical_json(value: Any) -> str:
  return json.dumps(value, sort_keys=True, separators=(",", ":"))


def describe_leaves(tree: Any) -> dict[str, dict[str, Any]]:
  """Shape, dtype, digest and, of floating-point leaves, norm, by name."""
  digest, norm = digests(tree), norms(tree)
  return {
    name: describe_leaf(
      leaf.shape, str(leaf.dtype), digest[name], norm.get(name, 0.0)
    )
    for name, leaf in named_leaves(tree).items()
  }


def to_json(metadata: Metadata) -> dict[str, Any]:
  """The JSON value to save, closed by a digest of itself."""
  value = {"format": FORMAT, **dataclasses.asdict(metadata)}
  for name in _ADDED:
    if not value[name]:  # as it was before there were any
      del value[name]
  return {**value, "digest": hash_text(canonical_json(value))}


def from_json(value: Any) -> Metadata:
  """Reads what `to_json` gave.

  Raises:
    InputError: the value is damaged (Damaged) or of another format.
  """
  if not isinstance(value, dict):
    raise Damaged("its metadata is not a JSON object")
  value = dict(value)
  digest = value.pop("digest", None)
  if digest != hash_text(canonical_json(value)):
    raise Damaged("its metadata does not match its own digest")
  names = {field.name for field in dataclasses.fields(Metadata)}
  is_ours = value.pop("format", None) == FORMAT
  if not is_ours or value.keys() | {*_ADDED} != names:
    raise InputError(
      f"its metadata is not of format {FORMAT}: another version of jaxmerge "
      "has written it"
    )
  check(value_problems(value, typing.get_type_hints(Metadata)))
  value["model"] = renamed(value["model"], "model")
  if value["model"]:  # a tree of no model at all can be merged as well
    DecoderConfig.from_dict(value["model"])
  return Metadata(**value)


def read_metadata(path: epath.PathLike) -> Metadata:
  """The metadata of a step directory, checked against its own digest.

  Raises:
    InputError: there is none, or it is damaged (both Damaged), or of another
      version or step, or cannot be read now.
  """
  path = epath.Path(path)
  try:
    text = read_file(path / "metadata/metadata")
    check_no_pipes(path)  # of a checkpoint: the typed path may be all of /tmp
    metadata = from_json(read_json(text))
    _check_step(path, metadata)
    return metadata
  except InputError as error:
    raise type(error)(
      [f"{path} is damaged: {problem}" for problem in error.problems]
    ) from error
  except OSError as error:
    is_gone = isinstance(error, (FileNotFoundError, NotADirectoryError))
    raise (Damaged if is_gone else InputError)(
      f"{path} is not a whole checkpoint: its metadata cannot be read "
      f"({error.strerror or error})"
    ) from error
  except ValueError as error:
    raise Damaged(
      f"{path} is damaged: its metadata is no JSON: {error}"
    ) from error


def _check_step(path: epath.Path, metadata: Metadata) -> None:
  """Refuses a step of a run under the number of another one."""
  trail = metadata.kind == "trained" and path.parent.name == "checkpoints"
  if trail and path.name.isdecimal() and path.name != str(metadata.step):
    raise InputError(
      f"its metadata is of step {metadata.step}: the directory was renamed"
    )


def abstract_params(metadata: Metadata) -> dict[str, Any]:
  """The shapes and dtypes of the params, as a nested dict."""
  return tree_of_leaves(
    {
      name: jax.ShapeDtypeStruct(tuple(leaf["shape"]), leaf["dtype"])
      for name, leaf in metadata.leaves["params"].items()
    }
  )


def describer(
  tokenizer: Tokenizer, tokens_per_step: int, **known: Any
) -> Callable[..., Metadata]:
  """A function of step, leaves and the like: a run's next metadata.

  Args:
    tokenizer: of the run; its file is kept whole.
    tokens_per_step: of training.
    known: fields of Metadata that are the same at all steps.
  """
  name = tokenizer.file_name
  text = to_text(name, tokenizer.content)
  kept: dict[str, Any] = {"files": {name: text}}
  if name == TOKENIZER_JSON:
    kept = {"tokenizer": text}

  def describe(*, step: int, **rest: Any) -> Metadata:
    tokens = step * tokens_per_step
    return Metadata(
      "trained", step=step, tokens=tokens, **known, **kept, **rest
    )

  return describe
