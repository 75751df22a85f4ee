"""Holds all that relies on more than Orbax's supported interface.

- `get_ts_context`, `get_json_tspec_read` and `get_json_tspec_write` of
  `orbax.checkpoint.type_handlers`, which its source marks as deprecated: they
  say where a parameter lies and with which chunks and compression. The public
  handlers and checkpointers take and give whole arrays only.
- Where its log records, and the tracebacks of its threads, come from. A save
  or restore that fails reaches the user as one InputError; Orbax and the event
  loop below it report the same failure again from other threads, also after
  the call has returned, in hundreds of lines. No option turns these off: the
  level of the logger "absl", which it shares, is the program's own.
"""

import functools
import logging
import sys
import traceback
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath

_PROCESS = 0
_CLOSED = "Event loop is closed"


def _is_orbax(record: logging.LogRecord) -> bool:
  if record.name == "absl":
    return "orbax" in record.pathname
  if "never retrieved" not in record.getMessage():
    return False
  trace = record.exc_info[2] if record.exc_info else None
  if trace is None:  # a future of TensorStore, whose failure is of C++
    return True
  return any("orbax" in f.filename for f in traceback.extract_tb(trace))


@functools.cache
def silence_orbax() -> None:
  """Drops what Orbax logs, and the calls to event loops that it has closed.

  Once for the whole process: its threads outlive the call that failed.
  """
  for name in ("absl", "asyncio"):
    logging.getLogger(name).addFilter(lambda record: not _is_orbax(record))
  report = sys.unraisablehook

  def report_others(unraisable: Any) -> None:
    if str(unraisable.exc_value) != _CLOSED:
      report(unraisable)

  sys.unraisablehook = report_others


def tensorstore_context() -> tensorstore.Context:
  """The limits and caches with which Orbax opens its parameters."""
  return ocp.type_handlers.get_ts_context(use_ocdbt=True)


def read_spec(
  params: epath.Path, name: str, context: tensorstore.Context, zarr3: bool
) -> dict[str, Any]:
  """A TensorStore spec of a parameter that Orbax has written."""
  info = ocp.type_handlers.ParamInfo(
    name=name.replace("/", "."),
    parent_dir=params,
    is_ocdbt_checkpoint=True,
    use_zarr3=zarr3,
    ts_context=context,
  )
  return ocp.type_handlers.get_json_tspec_read(info, use_ocdbt=True)


def write_spec(
  info: ocp.type_handlers.ParamInfo,
  shape: tuple[int, ...],
  chunk: tuple[int, ...],
  dtype: np.dtype,
) -> dict[str, Any]:
  """A TensorStore spec of a parameter as Orbax would write it."""
  return ocp.type_handlers.get_json_tspec_write(
    info,
    use_ocdbt=bool(info.is_ocdbt_checkpoint),
    global_shape=shape,
    local_shape=chunk,
    dtype=dtype,
    process_index=_PROCESS,
  )
