"""Hugging Face directories as trees of their own tensors, of any model.

Equal tensors are all that a merge needs; what the model is does not matter.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from etils import epath

from jaxmerge.data.tokenizers.hugging_face import TOKENIZER_JSON
from jaxmerge.errors import InputError, Problems, check
from jaxmerge.files import write_json, write_text
from jaxmerge.formats.integrity.checksums import describe_leaf
from jaxmerge.formats.lazy_tensors import LazyTensor
from jaxmerge.formats.records.metadata import (
  CARRIED_FILES,
  Metadata,
  to_bytes,
  to_text,
)
from jaxmerge.formats.records.provenance import CODE, origin, with_origin
from jaxmerge.huggingface.model_card import model_card
from jaxmerge.huggingface.shards import open_tensors
from jaxmerge.reading import read_file, read_json

_T = TypeVar("_T")

CONFIG = "config.json"
CARD = "README.md"
# What jaxmerge knows of a model and config.json cannot say.
ORIGIN = "jaxmerge.json"
# Keys of a config.json that do not say what the model is.
_NOT_THE_MODEL = (
  "_commit_hash",
  "_name_or_path",
  "dtype",
  "torch_dtype",
  "transformers_version",
  "use_cache",
)


def is_hugging_face(path: epath.PathLike) -> bool:
  return (epath.Path(path) / CONFIG).exists()


def read_headers(
  path: epath.Path, describe: Callable[[Any], _T]
) -> tuple[dict[str, str], _T, Mapping[str, LazyTensor]]:
  """The carried files, what `describe` makes of config.json, the tensors.

  Raises:
    InputError: lists what is missing or damaged, and what `describe` says.
  """
  problems = Problems()

  def texts_and_model() -> tuple[dict[str, str], _T]:
    try:
      files = read_files(path)
      return files, describe(read_json(files.get(CONFIG, "")))
    except InputError as error:
      raise InputError([f"{path}: {p}" for p in error.problems]) from error
    except ValueError as error:
      raise InputError(f"{path}: {CONFIG} is damaged: {error}") from error

  found = problems(texts_and_model)
  tensors = problems(lambda: open_tensors(path))
  problems.check()
  assert found is not None
  assert tensors is not None
  return *found, tensors


def open_tree(
  path: epath.PathLike,
) -> tuple[Metadata, Mapping[str, LazyTensor]]:
  """Metadata, whose model is config.json, and tensors by their names.

  Raises:
    InputError: lists what is missing or damaged.
  """
  path = epath.Path(path)
  files, model, leaves = read_headers(path, _the_model)
  return described(path, model, files, leaves), leaves


def _the_model(value: Any) -> dict[str, Any]:
  """The keys of a config.json that say what the model is."""
  if not isinstance(value, dict):
    raise ValueError("it is not a JSON object")
  return {k: v for k, v in value.items() if k not in _NOT_THE_MODEL}


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
  for name, text in {**files, **more}.items():
    (path / name).write_bytes(to_bytes(name, text))
  card = model_card(read_json(files[CONFIG]), metadata, is_known=is_known)
  write_text(path / CARD, card)
  if metadata is not None:
    code = sorted(name for name in files if name.endswith(".py"))
    write_json(path / ORIGIN, origin(metadata) | ({CODE: code} if code else {}))


def read_files(path: epath.Path) -> dict[str, str]:
  """Texts of the carried files; code too, where config.json refers to it."""
  files: dict[str, str] = {}
  problems: list[str] = []
  listed = _listed(path)
  names = [n for n in (*CARRIED_FILES, TOKENIZER_JSON) if n in listed]
  for name in names:
    try:
      content = read_file(path / name)
      files[name] = to_text(name, content)
    except (OSError, UnicodeDecodeError) as error:
      reason = getattr(error, "strerror", None) or error
      problems.append(f"{name} cannot be read: {reason}")
    else:
      if name == CONFIG and b'"auto_map"' in content:
        names += sorted(file.name for file in path.glob("*.py"))
  tokenizer = files.get(TOKENIZER_JSON, "{}").strip().removeprefix("\ufeff")
  if not (tokenizer.startswith("{") and tokenizer.endswith("}")):
    problems.append(f"{TOKENIZER_JSON} is damaged: it is not a JSON object")
  check(problems)
  return files


def _listed(path: epath.Path) -> set[str]:
  """Names in a directory, those of links that lead nowhere too."""
  return {file.name for file in path.iterdir()}
