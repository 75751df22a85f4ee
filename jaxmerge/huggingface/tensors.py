"""Hugging Face directories as trees of their own tensors, of any model.

Equal tensors are all that a merge needs; what the model is does not matter.
"""

import collections
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from etils import epath

from jaxmerge.data.tokenizers.hugging_face import TOKENIZER_JSON
from jaxmerge.errors import InputError, Problems, check
from jaxmerge.files import write_json, write_text
from jaxmerge.formats.integrity.checksums import describe_leaf
from jaxmerge.formats.lazy_tensors import LazyTensor, TensorSpec
from jaxmerge.formats.records.file_texts import to_bytes, to_text
from jaxmerge.formats.records.metadata import Metadata
from jaxmerge.formats.records.provenance import CARRIED, origin, with_origin
from jaxmerge.huggingface.carried import (
  CARD,
  CONFIG,
  ORIGIN,
  find_carried,
  is_needed,
)
from jaxmerge.huggingface.model_card import model_card
from jaxmerge.huggingface.shards import open_tensors
from jaxmerge.huggingface.tensor_kinds import (
  check_are_weights,
  check_no_adapter,
  contradictions,
  is_floating,
)
from jaxmerge.reading import read_file, read_json

_T = TypeVar("_T")

_DTYPE_KEYS = ("dtype", "torch_dtype")
_DTYPES = ("float64", "float32", "bfloat16", "float16")


def is_hugging_face(path: epath.PathLike) -> bool:
  return (epath.Path(path) / CONFIG).exists()


def read_headers(
  path: epath.Path,
  describe: Callable[[Any], _T],
  wanted: Callable[[str], bool] = lambda name: True,
) -> tuple[dict[str, str], _T, Mapping[str, LazyTensor]]:
  """The carried files, what `describe` makes of config.json, the tensors.

  `wanted` chooses among the names of the carried files.

  Raises:
    InputError: lists what is missing or damaged, and what `describe` says.
  """
  problems = Problems()
  check_no_adapter(path)

  def texts_and_model() -> tuple[dict[str, str], _T]:
    try:
      files = read_files(path, wanted)
      return files, describe(read_json(files.get(CONFIG, "")))
    except InputError as error:
      raise InputError([f"{path}: {p}" for p in error.problems]) from error
    except ValueError as error:
      raise InputError(f"{path}: {CONFIG} is damaged: {error}") from error
    except OSError as error:
      raise InputError(f"{path} cannot be read: {error}") from error

  found = problems(texts_and_model)
  tensors = problems(lambda: open_tensors(path))
  problems.check()
  assert found is not None
  assert tensors is not None
  check_are_weights(path, read_json(found[0][CONFIG]), tensors)
  return *found, tensors


def open_tree(
  path: epath.PathLike,
) -> tuple[Metadata, Mapping[str, LazyTensor]]:
  """Metadata, whose model is config.json, and tensors by their names.

  Of the carried files it has only those that tell models apart.

  Raises:
    InputError: lists what is missing or damaged.
  """
  path = epath.Path(path)
  files, model, leaves = read_headers(path, _the_model, is_needed)
  wrong = contradictions(read_json(files[CONFIG]), leaves)
  check(f"{path}: {problem}" for problem in wrong)
  return described(path, model, files, leaves), leaves


def _the_model(value: Any) -> dict[str, Any]:
  if not isinstance(value, dict):
    raise ValueError("it is not a JSON object")
  return value


def described(
  path: epath.Path,
  model: Mapping[str, Any],
  files: Mapping[str, str],
  leaves: Mapping[str, LazyTensor],
) -> Metadata:
  """Metadata of a directory, without digests: no leaf has been read."""
  known = {
    name: describe_leaf(leaf.shape, str(leaf.dtype), "", 0.0)
    for name, leaf in leaves.items()
  }
  metadata = Metadata(
    "imported",
    {"params": known},
    model=model,
    tokenizer=files.get(TOKENIZER_JSON, ""),
    files={name: files[name] for name in files if name != TOKENIZER_JSON},
  )
  return read_origin(path, metadata)


def read_origin(path: epath.Path, metadata: Metadata) -> Metadata:
  """The metadata with what jaxmerge.json says, if there is one.

  Raises:
    InputError: it is damaged.
  """
  if ORIGIN not in _listed(path):
    return metadata
  try:
    return with_origin(metadata, read_json(read_file(path / ORIGIN)))
  except InputError as error:
    raise InputError(
      [f"{path}: {ORIGIN} is damaged: {p}" for p in error.problems]
    ) from error
  except (OSError, ValueError) as error:
    raise InputError(f"{path}: {ORIGIN} is damaged: {error}") from error


def with_dtype(text: str, tensors: Iterable[TensorSpec]) -> str:
  """A config.json, changed only where it says another dtype than most have.

  Of models in it, as of text_config, each says one too.
  """
  numbers: collections.Counter[str] = collections.Counter()
  for spec in tensors:
    # Of one byte it is how they lie, not how the model is computed.
    if is_floating(spec.dtype) and spec.dtype.itemsize > 1:
      numbers[str(spec.dtype)] += math.prod(spec.shape)
  [(dtype, _)] = numbers.most_common(1) or [("", 0)]

  def agreeing(value: Any) -> Any:
    if not isinstance(value, dict):
      return value
    return {
      key: dtype
      if key in _DTYPE_KEYS and str(inner).rpartition(".")[2] in _DTYPES
      else agreeing(inner)
      for key, inner in value.items()
    }

  said = read_json(text)
  meant = agreeing(said) if dtype else said
  return text if meant == said else json.dumps(meant, indent=2) + "\n"


def write_beside(
  path: epath.Path,
  files: Mapping[str, str],
  tokenizer: str,
  metadata: Metadata | None,
  *,
  is_known: bool,
) -> None:
  """Writes all but the tensors: carried files, the model card, the origin.

  Args:
    path: the directory.
    files: texts by name, config.json among them.
    tokenizer: tokenizer.json, "" without.
    metadata: of the model; None without.
    is_known: jaxmerge can run the model.
  """
  more = {TOKENIZER_JSON: tokenizer} if tokenizer else {}
  contents = ((n, to_bytes(n, text)) for n, text in {**files, **more}.items())
  write_contents(path, contents, metadata, is_known=is_known)


def write_contents(
  path: epath.Path,
  contents: Iterable[tuple[str, bytes]],
  metadata: Metadata | None,
  *,
  is_known: bool,
) -> None:
  """As write_beside, of names with contents."""
  hashes: dict[str, str] = {}
  config: Any = {}
  for name, content in contents:
    if "/" in name:
      (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).write_bytes(content)
    hashes[name] = hashlib.sha256(content).hexdigest()
    if name == CONFIG:
      config = read_json(content)
  card = model_card(config, metadata, hashes, is_known=is_known)
  write_text(path / CARD, card)
  if metadata is not None:
    write_json(path / ORIGIN, {**origin(metadata), CARRIED: hashes})


def read_files(
  path: epath.Path, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, str]:
  """The carried files of such names, as to_text gives them."""
  files: dict[str, str] = {}
  problems: list[str] = []
  carried = find_carried(path)
  for name in filter(wanted, carried.files):
    try:
      content = carried.read(name)
      if name.endswith(".json"):
        content.decode()
      files[name] = to_text(name, content)
    except (OSError, UnicodeDecodeError) as error:
      reason = getattr(error, "strerror", None) or error
      problems.append(f"{name} cannot be read: {reason}")
  tokenizer = files.get(TOKENIZER_JSON, "{}").strip().removeprefix("\ufeff")
  if not (tokenizer.startswith("{") and tokenizer.endswith("}")):
    problems.append(f"{TOKENIZER_JSON} is damaged: it is not a JSON object")
  check(problems)
  return files


def _listed(path: epath.Path) -> set[str]:
  """Names in a directory, those of links that lead nowhere too."""
  return {file.name for file in path.iterdir()}
