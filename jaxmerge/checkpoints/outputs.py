"""Guards what every verb writes: never over or among what is not ours.

Only a directory that holds a checkpoint and nothing else may be replaced, so
whatever is not surely part of a checkpoint is taken for the user's.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from jaxmerge.data.tokenizers.hugging_face import TOKENIZER_JSON
from jaxmerge.errors import InputError, Problems, check
from jaxmerge.files import absolute, replace_directory
from jaxmerge.formats.records.metadata import Metadata, read_metadata
from jaxmerge.formats.records.provenance import CARRIED, CODE
from jaxmerge.huggingface.carried import CARD, CONFIG, ORIGIN
from jaxmerge.huggingface.shards import open_tensors
from jaxmerge.huggingface.tensors import is_hugging_face, read_origin
from jaxmerge.reading import read_file, read_json

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
  r"(model|(diffusion_)?pytorch_model)(-\d{5}-of-\d{5})?\.(safetensors|bin)"
  r"|(model\.safetensors|pytorch_model\.bin"
  r"|diffusion_pytorch_model\.safetensors)\.index\.json"
)
# Beside the tensors of a model, whatever they hold.
_BESIDE = (
  CONFIG,
  "generation_config.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "chat_template.jinja",
  "chat_template.json",
  "preprocessor_config.json",
  "processor_config.json",
  "vocab.json",
  "merges.txt",
  "vocab.txt",
  "tokenizer.model",
  "spiece.model",
  "sentencepiece.bpe.model",
  TOKENIZER_JSON,
  CARD,
  ORIGIN,
)
_TOKENIZER_CONFIG = "tokenizer_config.json"
# "module.Class", or "owner/repository--module.Class".
_NAMED = re.compile(r'"(?:[^"]*--)?(\w+)\.[^"]*"')
_IMPORTED = re.compile(
  r"^\s*from\s+\.(?:(\w+)\s+import|\s*import\s+(\w+))", re.MULTILINE
)
# Names that a message lists.
_MOST_SHOWN = 4


def check_output(
  path: epath.PathLike,
  *,
  overwrite: bool,
  inputs: Sequence[epath.PathLike] = (),
) -> None:
  """Refuses a place where a checkpoint must not be written.

  Args:
    path: what is to be made, or replaced as a whole.
    inputs: what is read meanwhile.

  Raises:
    InputError: `path` exists and is not to be overwritten, is something else
      than a checkpoint, holds an input, or check_place refuses it.
  """
  path = absolute(path)
  problems = Problems()
  problems(lambda: check_place(path, inputs=inputs))
  if path.exists():
    reason = why_not_a_checkpoint(path)
    if reason:
      problems.add(
        f"{path} is not a checkpoint, so --overwrite does not replace it: "
        f"{reason}"
      )
    elif not overwrite:
      problems.add(f"{path} exists; use --overwrite to replace it")
  for name in map(absolute, inputs):
    # An input itself has been read to its end when it is replaced.
    if not _same(path, name) and any(_same(path, p) for p in _places(name)):
      problems.add(f"{path} holds the input {name}")
  problems.check()


@contextlib.contextmanager
def output_directory(
  path: epath.PathLike, *, overwrite: bool
) -> Iterator[epath.Path]:
  """Yields a temporary path that becomes `path`, as replace_directory does.

  What is replaced is looked at before, and again when the new one is whole.
  """
  may_replace = functools.partial(check_output, path, overwrite=overwrite)
  may_replace()
  with replace_directory(path, overwrite=overwrite, check=may_replace) as new:
    yield new


def check_place(
  path: epath.PathLike, *, inputs: Sequence[epath.PathLike] = ()
) -> None:
  """Refuses a place in which nothing must be written.

  Links are followed, one after the other: each name on the way counts.

  Raises:
    InputError: `path` lies in the checkpoints of a run, in another checkpoint
      or in an input, or is a link that leads nowhere.
  """
  path = absolute(path)
  places = _places(path)
  problems = [
    f"{place} is a link to {os.readlink(place)}, where nothing is"
    for place in places
    if os.path.islink(place) and not os.path.exists(place)
  ]
  if any(
    p.name == "checkpoints" and (p.parent / "run.json").exists() for p in places
  ):
    problems.append(
      f"{path} lies among the checkpoints of a run, which could then not go on"
    )
  above = [p for p in places if not _same(p, path)]
  for place in [p for p in above if _is_step(p)][:1]:
    problems.append(f"{path} lies in the checkpoint {place}")
  problems += [
    f"{path} lies in the input {name}"
    for name in inputs
    if any(_same(place, absolute(name)) for place in above)
  ]
  check(problems)


def _same(one: epath.Path, other: epath.Path) -> bool:
  """Says whether two paths name one directory; one need not exist."""
  if "://" in str(one) or "://" in str(other):
    return str(one).rstrip("/") == str(other).rstrip("/")
  return os.path.realpath(one) == os.path.realpath(other)


def _places(path: epath.Path) -> list[epath.Path]:
  """A path and all that it lies in, by each name that it has on the way."""
  if "://" in str(path):
    # A bucket is the root; what is above it is nobody's.
    above = [p for p in path.parents if str(p).partition("://")[2].strip("/")]
    return [path, *(p for p in above if "://" in str(p))]
  found = [str(path)]
  for place in found:  # grows meanwhile
    parent, name = os.path.split(place)
    names = [parent]
    if name == "..":  # of where a link before it leads
      names = [os.path.realpath(place)]
    elif os.path.islink(place):
      names.append(os.path.join(parent, os.readlink(place)))
    found += [n for n in names if n not in found]
  return [epath.Path(place) for place in found]


def _is_step(path: epath.Path) -> bool:
  return (path / "metadata/metadata").exists()


def why_not_a_checkpoint(path: epath.Path) -> str:
  """Says why a directory is no checkpoint; "" if it is one, or empty.

  A step directory of params and metadata that can be read, or a Hugging Face
  directory of a model, each with no other file, hidden file or link in it.
  """
  try:
    if not path.is_dir():
      return "it is a file"
    if not any(path.iterdir()):
      return ""
    is_step = _is_step(path)
    if not is_step and not is_hugging_face(path):
      return "it has neither metadata of a checkpoint nor a config.json"
    # Before any is opened: a FIFO would be waited for for ever.
    odd = _listed(name for name, plain in _files(path) if not plain)
    if odd:
      return odd
    if not is_step:
      return _why_not_a_model(path)
    read_metadata(path)
    return _listed(n for n, _ in _files(path) if not _OF_A_STEP.fullmatch(n))
  except InputError as error:
    return error.problems[0]
  except (OSError, ValueError) as error:
    return f"it cannot be read ({error})"


def _why_not_a_model(path: epath.Path) -> str:
  config = read_json(read_file(path / CONFIG))
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
  names = {*_BESIDE, *_code(path, config)}
  hashes: dict[str, str] = {}
  if (path / ORIGIN).exists():
    origin = read_json(read_file(path / ORIGIN))
    listed, carried = origin.get(CODE), origin.get(CARRIED)
    code = map(str, listed if isinstance(listed, list) else [])
    names |= set(filter(re.compile(r"[^/]+\.py").fullmatch, code))
    hashes = carried if isinstance(carried, dict) else {}

  def is_known(name: str) -> bool:
    if name in names or _WEIGHTS.fullmatch(name):
      return True
    # Carried from an input, and not changed since.
    return name in hashes and hashes[name] == _hash(path / name)

  return _listed(name for name, _ in _files(path) if not is_known(name))


def _hash(path: epath.Path) -> str:
  return hashlib.sha256(read_file(path)).hexdigest()


def _is_our_card(text: bytes) -> bool:
  return text.startswith(b"---\n") and b"\nWritten by jaxmerge " in text


def _code(path: epath.Path, config: dict[str, Any]) -> set[str]:
  """Files of code that the model or its tokenizer names, or these import."""
  configs = [config]
  if (path / _TOKENIZER_CONFIG).exists():
    configs.append(read_json(read_file(path / _TOKENIZER_CONFIG)))
  maps = [c.get("auto_map") for c in configs if isinstance(c, dict)]
  todo = _NAMED.findall(json.dumps(maps))
  found: set[str] = set()
  while todo:
    file = f"{todo.pop()}.py"
    if file not in found and (path / file).exists():
      found.add(file)
      text = (path / file).read_bytes().decode(errors="replace")
      todo += [a or b for a, b in _IMPORTED.findall(text)]
  return found


def _listed(found: Iterator[str]) -> str:
  """Names the first few files that do not belong there."""
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
