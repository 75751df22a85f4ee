"""Says whether a directory holds a checkpoint and nothing else.

Only the first may be replaced, so whatever is not surely part of a checkpoint
is taken for the user's.
"""

import itertools
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from jaxmerge.data.tokenizers.hugging_face import TOKENIZER_JSON
from jaxmerge.errors import InputError
from jaxmerge.formats.records.metadata import (
  CARRIED_FILES,
  Metadata,
  read_metadata,
)
from jaxmerge.formats.records.provenance import CODE
from jaxmerge.huggingface.shards import open_tensors
from jaxmerge.huggingface.tensors import (
  CARD,
  CONFIG,
  ORIGIN,
  is_hugging_face,
  read_origin,
)
from jaxmerge.reading import read_json

# What Orbax writes for params and metadata. An optimiser's state, which no
# command can make again, is not among it.
_OF_AN_ITEM = r"_CHECKPOINT_METADATA|commit_success\.txt"
_OCDBT = r"manifest\.ocdbt|d/[0-9a-f]{32}"
_OF_A_STEP = re.compile(
  rf"({_OF_AN_ITEM}|metadata/({_OF_AN_ITEM}|metadata)|params/({_OF_AN_ITEM}"
  rf"|_METADATA|_sharding|array_metadatas/process_\d+|{_OCDBT}"
  rf"|ocdbt\.process_\d+/({_OCDBT})))"
)
_WEIGHTS = re.compile(
  r"(model|pytorch_model)(-\d{5}-of-\d{5})?\.(safetensors|bin)"
  r"|(model\.safetensors|pytorch_model\.bin)\.index\.json"
)
_MAP = "auto_map"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_IMPORTED = re.compile(
  r"^\s*from\s+\.(?:(\w+)\s+import|\s*import\s+(\w+))", re.MULTILINE
)
# Names that a message lists.
_MOST_SHOWN = 4


def is_step_directory(path: epath.Path) -> bool:
  return (path / "metadata/metadata").exists()


def why_not_a_checkpoint(path: epath.Path) -> str:
  """Says why a directory is no checkpoint; "" if it is one.

  A step directory of params and metadata that can be read, or a Hugging Face
  directory of a model, each with no other file, hidden file or link in it. An
  empty directory may be replaced like one.
  """
  try:
    if not path.is_dir():
      return "it is a file"
    if not any(path.iterdir()):
      return ""
    is_step = is_step_directory(path)
    if not is_step and not is_hugging_face(path):
      return "it has neither metadata of a checkpoint nor a config.json"
    # Before any is opened: a FIFO would be waited for for ever.
    odd = _listed(name for name, plain in _files(path) if not plain)
    if odd:
      return odd
    if not is_step:
      return _why_not_a_model(path)
    read_metadata(path)
    return _strangers(path, _OF_A_STEP.fullmatch)
  except InputError as error:
    return error.problems[0]
  except (OSError, ValueError) as error:
    return f"it cannot be read ({error})"


def _why_not_a_model(path: epath.Path) -> str:
  config = read_json((path / CONFIG).read_bytes())
  if not isinstance(config, dict) or not (
    isinstance(config.get("model_type"), str)
    or config.get("architectures")
    or (path / ORIGIN).exists()  # ours, of a model that names itself nowhere
  ):
    return f"its {CONFIG} names no model"
  if (path / CARD).exists() and not _is_our_card((path / CARD).read_bytes()):
    return f"its {CARD} is not one that jaxmerge has written"
  read_origin(path, Metadata("imported", {}))
  open_tensors(path)
  names = {*CARRIED_FILES, TOKENIZER_JSON, CARD, ORIGIN, *_code(path, config)}
  if (path / ORIGIN).exists():
    listed = read_json((path / ORIGIN).read_bytes()).get(CODE)
    found = listed if isinstance(listed, list) else []
    names |= set(filter(re.compile(r"[^/]+\.py").fullmatch, map(str, found)))
  return _strangers(path, lambda n: n in names or _WEIGHTS.fullmatch(n))


def _is_our_card(text: bytes) -> bool:
  return text.startswith(b"---\n") and b"\nWritten by jaxmerge " in text


def _code(path: epath.Path, config: dict[str, Any]) -> set[str]:
  """Files of code that the model or its tokenizer names, or these import."""
  maps = [config.get(_MAP)]
  if (path / _TOKENIZER_CONFIG).exists():
    value = read_json((path / _TOKENIZER_CONFIG).read_bytes())
    maps += [value.get(_MAP)] if isinstance(value, dict) else []
  named = itertools.chain(*(m.values() for m in maps if isinstance(m, dict)))
  todo = [
    word.rpartition("--")[2].partition(".")[0]
    for value in named
    for word in (value if isinstance(value, list) else [value])
    if isinstance(word, str)
  ]
  found: set[str] = set()
  while todo:
    file = f"{todo.pop()}.py"
    if "/" not in file and file not in found and (path / file).exists():
      found.add(file)
      text = (path / file).read_bytes().decode(errors="replace")
      todo += [a or b for a, b in _IMPORTED.findall(text)]
  return found


def _strangers(path: epath.Path, is_known: Callable[[str], Any]) -> str:
  """Names the first few files that do not belong there."""
  return _listed(name for name, _ in _files(path) if not is_known(name))


def _listed(found: Iterator[str]) -> str:
  names = list(itertools.islice(found, _MOST_SHOWN + 1))
  more = ["more"] if len(names) > _MOST_SHOWN else []
  shown = ", ".join([*map(repr, names[:_MOST_SHOWN]), *more])
  return shown and f"it holds {shown}"


def _files(folder: epath.Path, prefix: str = "") -> Iterator[tuple[str, bool]]:
  """Names of all files, and whether each is plain: no link, not hidden."""
  for path in sorted(folder.iterdir()):
    name = prefix + path.name
    local = "://" not in str(path)
    if path.name.startswith(".") or (local and os.path.islink(path)):
      yield name, False
    elif path.is_dir():
      yield from _files(path, f"{name}/")
    else:
      yield name, not local or os.path.isfile(path)
