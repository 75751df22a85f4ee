"""The identity of a run, kept in `<workdir>/run.json`.

A workdir belongs to one config: another one is refused, so that a typed
command never continues a run with other numbers than it began with.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath
from orbax.checkpoint import CheckpointManager

from jaxmerge import locks
from jaxmerge.checkpoints import inputs, store
from jaxmerge.config_fields import chosen_rows, flatten, rows
from jaxmerge.data.config import CorpusConfig
from jaxmerge.data.heldout import WINDOWS
from jaxmerge.data.mixture import changed_files
from jaxmerge.data.tokenizers.hugging_face import TOKENIZER_JSON
from jaxmerge.data.tokenizers.protocol import Tokenizer
from jaxmerge.data.tokenizers.sentence_piece import TOKENIZER_MODEL
from jaxmerge.errors import Diverged, InputError, check
from jaxmerge.files import make_directory, write_bytes, write_json
from jaxmerge.formats.records.metadata import (
  Metadata,
  canonical_json,
  hash_text,
)
from jaxmerge.old_names import renamed
from jaxmerge.parallel.distributed import on_first_process
from jaxmerge.reading import read_file, read_json
from jaxmerge.training.config import PretrainConfig
from jaxmerge.training.metrics import NAME as METRICS
from jaxmerge.training.optimizer import SCHEDULES

NAME = "run.json"
# Files that a run keeps in its workdir, beside run.json and checkpoints.
_OF_A_RUN = (TOKENIZER_JSON, TOKENIZER_MODEL, METRICS)
_DECIDES = ("config", "parent", "corpus")
_HASHES = ("content", "corpus", "tokenizer")
_CHANGED = {
  "content": "the text of its corpus has changed since",
  "corpus": "the tokens of its corpus are others now: another text, another "
  "tokenizer, or another version of the program that made them",
  "tokenizer": "the tokenizer of config.data.tokenizer_path is another one",
  "parent": "it started from another --init_from",
}
_DERIVED = ("run_id", "vocabulary", "held_out", "start")
_LENGTH = "num_steps"


def known_parts(
  config: Mapping[str, Any],
  *,
  content: str,
  parent: str,
  tokenizer: str = "",
  start: int = 0,
) -> dict[str, Any]:
  """All that makes a run this run but its tokens, which take long to make.

  That is what of its config changes numbers, and hashes: of the corpus's text,
  "" if not known; of the parameters that it starts from, "" for random ones;
  of the tokenizer that is given, "" for one to train. `start` is the step of
  its parent that a branch goes on from.
  """
  return {
    "config": _deciding(flatten(config)),
    "parent": parent,
    "start": start,
    "content": content,
    "tokenizer": tokenizer,
    "held_out": WINDOWS,
  }


def identity(
  parts: Mapping[str, Any], *, corpus: str, vocabulary: int
) -> dict[str, Any]:
  """The parts of known_parts, of the tokens that there are, and a hash."""
  whole = {**parts, "corpus": corpus, "vocabulary": vocabulary}
  return {**whole, "run_id": _run_id(whole)}


def _run_id(run: Mapping[str, Any]) -> str:
  decides = {key: run[key] for key in _DECIDES}
  return hash_text(canonical_json(decides))[:16]


def _read(path: epath.Path) -> Mapping[str, Any]:
  """A run.json; ValueError where it is none, or was changed."""
  value = read_json(read_file(path))
  has_all = isinstance(value, dict) and {*_DECIDES, "run_id"} <= value.keys()
  if not has_all or not isinstance(value["config"], dict):
    raise ValueError("it does not say what run it is of")
  if value["run_id"] != _run_id(value):
    raise ValueError(
      "what it says was changed: its run_id is of something else"
    )
  return value


def check_workdir(
  workdir: epath.PathLike,
  run: Mapping[str, Any],
  data: CorpusConfig | None = None,
) -> Mapping[str, Any]:
  """Refuses a workdir of another run, or of something else; writes nothing.

  Args:
    run: from known_parts or identity.
    data: of which changed files are named.

  Returns:
    The run under the run_id that the workdir has, if there is one.

  Raises:
    InputError: lists every key that differs.
  """
  workdir = epath.Path(workdir)
  path = workdir / NAME
  for folder in (workdir / "checkpoints", workdir / "tensorboard"):
    if folder.exists() and not folder.is_dir():
      raise InputError(f"{folder} is not a directory, as a run needs it")
  if not path.exists():
    found = [name for name in _OF_A_RUN if (workdir / name).exists()]
    if found and not inputs.steps_in(workdir):
      raise InputError(
        f"{workdir} has {' and '.join(found)}, but no {NAME}: it is not the "
        "workdir of a run; name another one"
      )
    return run
  try:
    there = _read(path)
  except OSError as error:
    why = error.strerror or error
    raise InputError(f"{path} cannot be read: {why}") from error
  except ValueError as error:
    raise InputError(f"{path} is damaged: {error}") from error
  known, now = _comparable(there), _comparable(run)
  # What either lacks is not compared.
  may_lack = (*_HASHES, f"config.{_LENGTH}")
  lacking = {k for k in may_lack if not (known.get(k) and now.get(k))}
  check(
    f"{workdir} is the workdir of another run: {_said(key, known, now, data)}"
    for key in sorted((known.keys() | now.keys()) - lacking - {*_DERIVED})
    if known.get(key) != now.get(key)
  )
  # Made of the names that its keys had then.
  return {**run, "run_id": there["run_id"]}


def _comparable(run: Mapping[str, Any]) -> dict[str, Any]:
  """Parts that two runs must have in common, under the names of now.

  A key of a run's config that there was not when it began is at its default.
  """
  said = renamed(flatten(run["config"]))
  known = chosen_rows(PretrainConfig, said)
  defaults = {n: row.default for n, row in known.items() if n != _LENGTH}
  filled = _deciding(defaults | said)
  config = {
    name: list(value) if isinstance(value, tuple) else value
    for name, value in filled.items()
  }
  return flatten({**run, "config": config})


def _deciding(config: Mapping[str, Any]) -> dict[str, Any]:
  """Leaves out keys that change no numbers, or are paths to what has a hash."""
  known = rows(PretrainConfig, given=config)
  free = {r.name for r in known if not r.key.changes_numbers}
  schedule = SCHEDULES.get(config.get("optimizer.schedule", ""))
  if schedule is not None and schedule.depends_on_length:
    free.remove(_LENGTH)
  return {name: value for name, value in config.items() if name not in free}


def _said(
  key: str,
  known: Mapping[str, Any],
  now: Mapping[str, Any],
  data: CorpusConfig | None = None,
) -> str:
  if key == "parent" and not known.get(key):
    return "it started from random parameters, not from an --init_from"
  if key == "content" and data is not None:
    which = changed_files(data, known[key])
    return _CHANGED[key] + (f" ({which})" if which else "")
  changed = f"{key} was {known.get(key)!r}, is now {now.get(key)!r}"
  if key == f"config.{_LENGTH}":
    changed += (
      ", on which the rates of its schedule depend; a new workdir may branch "
      "off, with --init_from=WORKDIR@STEP --config.branch=True"
    )
  return _CHANGED.get(key, changed)


def notes_on_validation(workdir: epath.PathLike) -> Iterator[str]:
  """Tells of a run that began under another rule for held-out text."""
  run = read_json(read_file(epath.Path(workdir) / NAME))
  if run.get("held_out") != WINDOWS:
    yield (
      "validation losses so far are of the heads of documents; from here on of "
      "windows drawn from all of their text, on which losses are lower"
    )


def claim(
  workdir: epath.PathLike, run: Mapping[str, Any], tokenizer: Tokenizer
) -> None:
  """Writes run.json and the tokenizer, or checks that they are the run's."""
  run = check_workdir(workdir, run)
  path = make_directory(workdir) / NAME
  saved = path.parent / tokenizer.file_name
  if not path.exists():
    write_json(path, run)
  elif saved.exists() and read_file(saved) != tokenizer.content:
    raise InputError(
      f"{saved} is not what the run began with: restore it, or remove it and "
      "the same command writes it again"
    )
  write_bytes(saved, tokenizer.content)


def check_resumable(
  path: epath.Path, metadata: Metadata, run: Mapping[str, Any] | None = None
) -> None:
  """Refuses a step that a run (from identity, if known) cannot go on from."""
  if metadata.kind != "trained":
    raise InputError(
      f"{path} is {metadata.kind}, not trained: a run cannot resume from it "
      "(it may be an --init_from)"
    )
  if run and metadata.run_id != run["run_id"]:
    found = differences(metadata, run) or [
      f"another of the keys in {NAME}, which it does not hold, differs"
    ]
    raise InputError([f"{path} is of another run: {text}" for text in found])


def differences(metadata: Metadata, run: Mapping[str, Any]) -> list[str]:
  """Says in what a step is not of a run, as far as its metadata tells."""
  data, now = metadata.data, _comparable(run)
  known = {
    **{f"config.data.{name}": value for name, value in data.items()},
    **{f"config.model.{name}": v for name, v in metadata.model.items()},
    "config.seq_len": data.get("seq_len", now.get("config.seq_len")),
    "content": data.get("content", ""),
    "corpus": metadata.corpus,
  }
  found = [
    _said(key, known, now)
    for key in sorted(known.keys() & now.keys())
    if known[key] != now[key]
    and (key not in _HASHES or (known[key] and now[key]))
  ]
  if bool(metadata.parent) != bool(now["parent"]):  # one's name, one's hash
    found.append(_said("parent", {"parent": metadata.parent}, now))
  return found


def _lock(workdir: epath.Path) -> contextlib.AbstractContextManager[None]:
  # Inside: what holds the workdir may be read-only.
  return locks.exclusive(workdir / NAME, f"the workdir {workdir}")


def check_free(workdir: epath.Path) -> None:
  """Refuses a workdir in which another process is at work."""
  if workdir.exists():
    with _lock(workdir):
      pass


@contextlib.contextmanager
def taken(
  workdir: epath.Path, run: Mapping[str, Any], tokenizer: Tokenizer
) -> Iterator[CheckpointManager]:
  """Claims a workdir, keeps others out, yields the manager of its checkpoints.

  An error that ends the run early gets a note: which checkpoint is its last.
  InputError as `claim`, or if another process is at work there.
  """
  with contextlib.ExitStack() as stack:
    on_first_process(lambda: stack.enter_context(_lock(workdir)))
    on_first_process(lambda: claim(workdir, run, tokenizer))
    manager = store.open_manager(workdir)
    stack.enter_context(contextlib.closing(manager))
    try:
      yield manager
    except (Diverged, KeyboardInterrupt) as error:
      with contextlib.suppress(InputError):  # what counts is what is there
        store.finish(manager)
      note = "no checkpoint has been saved: the run begins anew"
      for step in inputs.steps_in(workdir)[-1:]:
        note = f"step {step} is saved, and the same command goes on from there"
        if isinstance(error, Diverged):
          note = f"its last good checkpoint is {workdir}@{step}"
      error.add_note(note)
      raise
