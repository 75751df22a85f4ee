"""Runs a verb: its errors become one message and an exit code."""

import contextlib
import errno
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from ml_collections import config_dict

from jaxmerge import allocator
from jaxmerge.cli.command_line import INPUTS as INPUTS
from jaxmerge.cli.command_line import parse as parse
from jaxmerge.cli.config_files import load_config as load_config
from jaxmerge.cli.terminal import TerminalProgress as TerminalProgress
from jaxmerge.config_fields import flatten
from jaxmerge.errors import Diverged, InputError, Stopped, describe_interrupt
from jaxmerge.files import cache_root
from jaxmerge.formats.records.metadata import versions
from jaxmerge.parallel import distributed
from jaxmerge.parallel.exchange import check_same
from jaxmerge.redaction import presentable

# The flag of the verbs that run a model, which launch.run reads before.
RETURN_MEMORY = {allocator.FLAG: allocator.HELP}
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


@contextlib.contextmanager
def whole_output(path: epath.PathLike) -> Iterator[None]:
  """Notes on an interrupt what has become of an output written in one go."""
  try:
    yield
  except KeyboardInterrupt as error:
    if epath.Path(path).exists():
      error.add_note(f"{path} is whole, be it the earlier one or the new one")
    else:
      error.add_note("nothing was written")
    raise


def command(verb: str, argv: Sequence[str]) -> str:
  """The command line as a report may show it, without passwords."""
  words = [presentable(word) for word in argv]
  return shlex.join(["python", "-m", f"jaxmerge.{verb}", *words])


def run(verb: str, main: Callable[[], None]) -> int:
  """Runs a verb's main and returns its exit code.

  0; 2 for bad input; 3 for a run that has diverged; when interrupted 4 by
  SIGTERM, 130 by Ctrl-C. launch.run catches the signals themselves. Of a job
  that has failed the other processes are not waited for.
  """
  try:
    exit_code = _run(verb, main)
  except Exception as error:
    distributed.leave(1, error)
    raise
  if exit_code:
    distributed.leave(exit_code)
  return exit_code


def _run(verb: str, main: Callable[[], None]) -> int:
  try:
    main()
  except InputError as error:
    return _fail(verb, error.problems)
  except Diverged as error:
    said = "; ".join([str(error), *getattr(error, "__notes__", ())])
    return _fail(verb, [said], Diverged.exit_code)
  except OSError as error:
    return _fail(verb, [_file_problem(error)])
  except MemoryError as error:
    return _fail(verb, [f"there is not enough memory: {error}"])
  except KeyboardInterrupt as error:
    text, exit_code = describe_interrupt(error)
    print(f"jaxmerge.{verb}: {text}", file=sys.stderr)
    return exit_code
  except Stopped as stopped:
    print(f"jaxmerge.{verb}: {stopped}", file=sys.stderr)
    return stopped.exit_code
  return 0


def _file_problem(error: OSError) -> str:
  name = f" {error.filename}" if error.filename else ""
  what = "cannot write" if error.errno in _CANNOT_WRITE else "cannot use"
  return f"{what}{name}: {error.strerror or error}"


def _fail(verb: str, problems: Sequence[str], exit_code: int = 2) -> int:
  lines = "".join(f"\n  {presentable(problem)}" for problem in problems)
  print(f"jaxmerge.{verb}: error:{lines}", file=sys.stderr)
  return exit_code


def set_up_jax(
  flags: Any = None,
  job: Mapping[str, str] | None = None,
  *,
  asks_for_preemption: bool = False,
) -> None:
  """Joins a multi-process job and keeps compiled programs between runs.

  All of them, as quickly as they compile; JAX's variables come first.

  Args:
    flags, job: from parse; those of all processes must be the same, and so must
      be the versions of what they run.
    asks_for_preemption: SIGTERM ends nothing in a job; a loop that asks for it
      in every process ends all at one step.

  Raises:
    InputError: as distributed.init_distributed and exchange.check_same.
  """
  for name, value in (
    ("jax_compilation_cache_dir", str(cache_root() / "jax")),
    ("jax_persistent_cache_min_compile_time_secs", 0.0),
  ):
    if name.upper() not in os.environ:
      jax.config.update(name, value)
  # JAX would take SIGTERM for itself, also where nobody asks whether it came.
  jax.config.update("jax_enable_preemption_service", asks_for_preemption)
  distributed.init_distributed(job)
  if flags is not None:
    check_same(lambda: _known(flags))


def _known(flags: Any) -> dict[str, Any]:
  """Lists what a verb is asked to do, and the versions that do it."""
  found: dict[str, Any] = {f"version of {n}": v for n, v in versions().items()}
  for name, value in vars(flags).items():
    if isinstance(value, config_dict.ConfigDict):
      keys = flatten(value).items()
      found |= {f"{name}.{key}": given for key, given in keys}
    else:
      found[f"--{name}"] = value
  return found
