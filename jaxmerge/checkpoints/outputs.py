"""Where a checkpoint may be written."""

from etils import epath

from jaxmerge.checkpoints.metadata import CARRIED_FILES
from jaxmerge.errors import check
from jaxmerge.files import absolute


def check_output(path: epath.PathLike, *, overwrite: bool) -> None:
  """Refuses a place where a step directory must not be written.

  Raises:
    InputError: `path` exists and is not to be overwritten, is something else
      than a step directory, or lies among the checkpoints of a run.
  """
  path = absolute(path)
  problems = []
  if path.exists() and not overwrite:
    problems.append(f"{path} exists; use --overwrite to replace it")
  elif path.exists() and not _is_replaceable(path):
    problems.append(
      f"{path} is not a checkpoint, so --overwrite does not replace it"
    )
  if (
    path.parent.name == "checkpoints"
    and (path.parent.parent / "run.json").exists()
  ):
    problems.append(
      f"{path} lies among the checkpoints of a run, which could then not go on"
    )
  check(problems)


_OF_A_STEP = {"params", "metadata", "_CHECKPOINT_METADATA"}
# Orbax writes it where directories cannot be renamed.
_COMMIT = "commit_success.txt"
_OF_A_MODEL = {
  "tokenizer.json",
  "README.md",
  "jaxmerge.json",
  "model.safetensors.index.json",
  *CARRIED_FILES,
}


def _is_replaceable(path: epath.Path) -> bool:
  """Whether a directory is empty, or a checkpoint with nothing else in it."""
  if not path.is_dir():
    return False
  names = {p.name for p in path.iterdir()}
  if not names or "metadata" in names:
    return not names - _OF_A_STEP - {_COMMIT}
  if "config.json" not in names:
    return False
  own = [".safetensors"]
  if b'"auto_map"' in (path / "config.json").read_bytes():
    own.append(".py")  # code that config.json refers to
  return all(n in _OF_A_MODEL or n.endswith(tuple(own)) for n in names)
