"""Files beside the weights of a Hugging Face directory that go with them.

All but weights, their index, an optimiser's state and logs, below a size. A
link counts only where it leads within the directory or, in the cache of
huggingface_hub, to the directory's own blobs.
"""

import itertools
import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from etils import epath

from jaxmerge.errors import InputError, Problems
from jaxmerge.files import human_bytes
from jaxmerge.huggingface.vocabularies import is_tokenizer_file
from jaxmerge.reading import check_is_file, read_file, read_json

CONFIG = "config.json"
CARD = "README.md"
# What jaxmerge knows of a model and config.json cannot say.
ORIGIN = "jaxmerge.json"
# The metadata of a step directory holds all of it.
MAX_BYTES = 16 * 2**20
MAX_BYTES_TOGETHER = 2 * MAX_BYTES
MAX_NEEDED_BYTES = 4 * MAX_BYTES
_MOST_FILES = 1000
_DEEPEST = 8
_LONGEST_PATH = 1024
_MODULES = "modules.json"
# Files that may name code which lies beside them.
_NAME_CODE = (
  CONFIG,
  "tokenizer_config.json",
  "generation_config.json",
  "processor_config.json",
  "preprocessor_config.json",
  "video_preprocessor_config.json",
)
_OWN_CODE = "custom_generate/"
_OWN_TYPE = re.compile(rb'"type"\s*:\s*"(?!sentence_transformers\.)')
WEIGHTS = re.compile(
  r".*\.(safetensors|bin|pt|pth|ckpt|h5|keras|msgpack|gguf|ggml|onnx"
  r"|onnx[._]data|npz|tflite|pb|ot|distcp|nemo|engine|mlmodel|pkl|pickle)",
  re.IGNORECASE,
)
_INDEX = re.compile(r".*\.index(\.\w+)?\.json")
_STATE = re.compile(
  r"(optimizer|scheduler|scaler|sampler|rng_state|random_states"
  r"|custom_checkpoint)(_.*)?\.(pt|pth|bin|pkl|safetensors)"
  r"|training_args\.(bin|json)|train(er)?_state\.json|latest"
  r"|zero_to_fp32\.py|.*_optim_states\.pt"
)
_STATE_FOLDER = re.compile(
  r"checkpoints|(checkpoint|global_step|tmp-checkpoint)-?\d+"
)
# Where huggingface_hub keeps contents by their hashes, also of a directory that
# was made outside of its cache.
_BLOB = re.compile(r".*/models--[^/]+/blobs/[0-9a-f]{40,64}")
_LOGS = re.compile(
  r".*\.(log|out|err)|events\.out\.tfevents\..*|train(er|ing)?_log.*"
  r"|metrics\.jsonl|(all|train|eval|test|predict)_(results|metrics)\.json"
)
_LOG_FOLDER = re.compile(
  r"logs?|runs|wandb|mlruns|tensorboard|lightning_logs|__pycache__"
)
_PROGRAM = re.compile(
  r".*\.(sh|bash|bat|cmd|ps1|exe|com|so|dll|dylib|jar|pyc|pyo|pyd)",
  re.IGNORECASE,
)
_ANEW, _LARGE = "written anew", "more than"
_MOST_SHOWN = 5
_POINTER = b"version https://git-lfs.github.com/spec/"
_LARGEST_POINTER = 1024


class Carried(NamedTuple):
  """Files that go along with the weights of a directory.

  Attributes:
    files: where each lies, by its name in the directory.
    left: why the others do not, by name; folders end in "/".
  """

  files: Mapping[str, epath.Path]
  left: Mapping[str, str]

  def read(self, name: str) -> bytes:
    """The content of a file; OSError where it cannot be read."""
    return read_file(self.files[name])


def find_carried(path: epath.PathLike) -> Carried:
  """Looks through a directory; reads only what may name code.

  Raises:
    InputError: lists what cannot be left behind and cannot be carried.
  """
  path = epath.Path(path)
  found: dict[str, epath.Path] = {}
  left: dict[str, str] = {}
  room = MAX_BYTES_TOGETHER
  entries = sorted(_entries(path, left), key=lambda e: not is_needed(e[0]))
  for name, place in entries:
    why = why_left(name) or _why_not_here(path, place)
    size = 0 if why else place.stat().length
    largest = MAX_NEEDED_BYTES if is_needed(name) else min(MAX_BYTES, room)
    if size > largest:
      why = f"{_LARGE} {human_bytes(largest)}"
    if why:
      left[name] = why
      continue
    found[name] = place
    room -= 0 if is_needed(name) else size
  _leave_code(found, left)
  _check_left(found, left)
  return Carried(found, left)


def left_behind(path: epath.PathLike, read: Collection[str]) -> str:
  """One line of what is not carried and why; "" where there is nothing.

  Args:
    path: of a directory.
    read: names of the files of weights that are read, and of their index.
  """
  names: dict[str, list[str]] = {}
  for name, why in find_carried(path).left.items():
    if name not in read and why != _ANEW:
      names.setdefault(why, []).append(name)
  parts = []
  for why, found in names.items():
    more = len(found) - _MOST_SHOWN
    shown = [*found[:_MOST_SHOWN], *([f"{more} more"] if more > 0 else [])]
    parts.append(f"{', '.join(shown)} ({why})")
  return f"left behind of {path}: {'; '.join(parts)}" if parts else ""


def is_needed(name: str) -> bool:
  """Says whether a model cannot be told from another without such a file."""
  return name == CONFIG or is_tokenizer_file(name)


def why_left(name: str) -> str:
  """Says why a file of such a name is not carried; "" if it may be."""
  parts = name.split("/")
  base = parts[-1]
  if len(name) > _LONGEST_PATH or not name.isprintable() or "\\" in name:
    return "no name of a file of a model"
  if any(not part or part.startswith(".") for part in parts):
    return "hidden"
  if name in (CARD, ORIGIN):
    return _ANEW
  if base == "adapter_config.json":
    return "of an adapter, which is not merged"
  kinds = (
    ("state of an optimiser", _STATE),
    ("a log", _LOGS),
    ("weights", WEIGHTS),
    ("an index of weights", _INDEX),
    ("a program", _PROGRAM),
  )
  return next((why for why, form in kinds if form.fullmatch(base)), "")


def is_pointer(path: epath.Path) -> bool:
  """Says whether a file only stands for one that git-lfs did not fetch."""
  if path.stat().length > _LARGEST_POINTER:
    return False
  return read_file(path).startswith(_POINTER)


def check_no_pointer(path: epath.Path) -> None:
  """Raises InputError for no file, and for one that git-lfs did not fetch."""
  try:
    check_is_file(path)
    stands_for_another = path.exists() and is_pointer(path)
  except OSError as error:
    reason = error.strerror or error
    raise InputError(f"{path} cannot be read: {reason}") from error
  if stands_for_another:
    raise InputError(
      f"{path} is a git-lfs pointer, not the file itself: git lfs pull gets it"
    )


def _entries(
  root: epath.Path, left: dict[str, str]
) -> Iterator[tuple[str, epath.Path]]:
  """All files, without those of folders that are left behind as a whole."""
  for path in sorted(root.iterdir()):
    name = path.name
    if not _is_folder(path) or name.startswith(".") or is_needed(name):
      yield name, path
      continue
    inside = list(itertools.islice(_below(path, name), _MOST_FILES + 1))
    held = next((n for n, _ in inside if WEIGHTS.fullmatch(n)), "")
    if why := why_left(name):
      left[f"{name}/"] = why
    elif _LOG_FOLDER.fullmatch(name):
      left[f"{name}/"] = "logs"
    elif _STATE_FOLDER.fullmatch(name):
      left[f"{name}/"] = "checkpoints of its own"
    elif held:
      left[f"{name}/"] = f"it holds weights of its own ({held})"
    elif len(inside) > _MOST_FILES:
      left[f"{name}/"] = f"more than {_MOST_FILES} files"
    else:
      yield from inside


def _below(folder: epath.Path, prefix: str) -> Iterator[tuple[str, epath.Path]]:
  for path in sorted(folder.iterdir()):
    name = f"{prefix}/{path.name}"
    is_open = name.count("/") < _DEEPEST and not path.name.startswith(".")
    if is_open and _is_folder(path):
      yield from _below(path, name)
    else:
      yield name, path


def _is_link(path: epath.Path) -> bool:
  return "://" not in str(path) and os.path.islink(path)


def _is_folder(path: epath.Path) -> bool:
  return not _is_link(path) and path.is_dir()


def _why_not_here(root: epath.Path, path: epath.Path) -> str:
  """Says why what lies there is not carried, whatever it is called."""
  if _is_link(path):
    if not path.exists():
      return "a link that leads nowhere"
    real = os.path.realpath(root)
    places = [real]
    above, snapshots = os.path.split(os.path.dirname(real))
    if snapshots == "snapshots":  # of huggingface_hub's cache
      places.append(os.path.join(above, "blobs"))
    target = os.path.realpath(path)
    is_near = any(target.startswith(f"{place}/") for place in places)
    if not is_near and not _BLOB.fullmatch(target):
      return f"a link out of the directory, to {target}"
  try:
    check_is_file(path)
  except OSError:
    return "not a file"
  return "a git-lfs pointer" if is_pointer(path) else ""


def _leave_code(found: dict[str, epath.Path], left: dict[str, str]) -> None:
  """Leaves code behind that nothing names."""
  contents = {n: read_file(found[n]) for n in _NAME_CODE if n in found}
  is_named = any(b'"auto_map"' in content for content in contents.values())
  if _MODULES in found and _OWN_TYPE.search(read_file(found[_MODULES])):
    is_named = True
  for name in [n for n in found if n.endswith(".py")]:
    if not (is_named or name.startswith(_OWN_CODE)):
      del found[name]
      left[name] = "code that nothing names"


def _check_left(
  found: Mapping[str, epath.Path], left: Mapping[str, str]
) -> None:
  """Refuses to leave behind what the output could not do without."""
  problems = Problems()
  for name, why in left.items():
    is_spare = why.startswith(_LARGE) and not name.endswith(".json")
    if is_needed(name) and not is_spare:
      more = "; git lfs pull gets it" if "git-lfs" in why else ""
      problems.add(f"{name} cannot be read: it is {why}{more}")
  for folder in _modules(found):
    if "weights" in left.get(f"{folder}/", ""):
      problems.add(
        f"{_MODULES} names the folder {folder}, which holds weights of its "
        "own; only those beside config.json are merged"
      )
  problems.check()


def _modules(found: Mapping[str, epath.Path]) -> list[str]:
  """Folders that are parts of a model of sentence-transformers."""
  if _MODULES not in found:
    return []
  try:
    value = read_json(read_file(found[_MODULES]))
    return [str(module["path"]) for module in value]
  except (ValueError, LookupError, TypeError):
    return []
