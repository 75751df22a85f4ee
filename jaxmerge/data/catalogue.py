"""TFDS catalogue names: read where they are prepared, else built here.

Nothing of this needs TensorFlow: records are ArrayRecord.
"""

import contextlib
import io
import os
import re
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import tensorflow_datasets as tfds

from jaxmerge.data.tfds_adapter import (
  before_each_download,
  builder_from_files,
  without_tensorflow,
)
from jaxmerge.errors import InputError
from jaxmerge.files import expanded

_NAME = re.compile(r"\w+(/\w[\w.\-+=,]*)?(:[\d.*]+)?")
_REACH_SECONDS = 4.0


def _reason_unreachable(url: str) -> str | None:
  request = urllib.request.Request(url, method="HEAD")
  try:
    with urllib.request.urlopen(request, timeout=_REACH_SECONDS):
      return None
  except urllib.error.HTTPError:
    return None  # an answer, though to HEAD
  except OSError as error:
    reason = getattr(error, "reason", error)
    # The downloader brings its own certificates: let it judge them.
    return None if isinstance(reason, ssl.SSLError) else str(reason)


def why_unreachable(url: str) -> str | None:
  """Says why a host gives no answer, also where the name server gives none."""
  if not url.startswith(("http://", "https://", "ftp://")):
    return "only http, https and ftp can be downloaded without TensorFlow"
  answer: list[str | None] = []
  thread = threading.Thread(
    target=lambda: answer.append(_reason_unreachable(url)), daemon=True
  )
  thread.start()
  thread.join(timeout=2 * _REACH_SECONDS)
  return answer[0] if answer else "no answer"


def _builder_to_prepare(name: str, data_dir: str | None) -> Any:
  try:
    # Older text builders are known to TFDS only after this import.
    import tensorflow_datasets.text  # noqa: F401

    return tfds.builder(name, data_dir=data_dir, file_format="array_record")
  except tfds.core.DatasetNotFoundError as error:
    raise InputError(
      f"unknown source {name!r}: neither python_source, text_files, "
      "tokenized_files or sotu, nor a TFDS name, nor a directory prepared by "
      "TFDS under data_dir="
      f"{data_dir or 'the default of TFDS'}"
    ) from error
  except (ValueError, TypeError, KeyError, RuntimeError, ImportError) as error:
    raise InputError(
      f"source {name!r} cannot be opened: {_first_line(error)}"
    ) from error


def _first_line(error: BaseException) -> str:
  # TFDS asks TensorFlow while it tells of another error, the one that counts.
  while isinstance(error, ImportError) and error.__context__ is not None:
    error = error.__context__
  text = " ".join(str(error).split())
  return f"{type(error).__name__}: {text[:400]}"


def prepare_builder(builder: Any, progress: Callable[[str], None]) -> None:
  """Writes a builder's data as ArrayRecord unless that is already done.

  TFDS writes into a temporary directory and renames it. Another process that
  was faster is taken at its word.
  """

  def check_reachable(url: str) -> None:
    if reason := why_unreachable(url):
      raise InputError(
        f"{builder.name} must be downloaded, and {url} cannot be "
        f"reached ({reason}); give the data_dir of a prepared copy"
      )

  info_file = builder.data_path / "dataset_info.json"
  if info_file.exists():
    return
  progress(f"preparing {builder.info.full_name}")
  before_each_download(builder, check_reachable)
  tfds.disable_progress_bar()
  config = tfds.download.DownloadConfig(try_download_gcs=False)
  try:
    # TFDS prints to standard output, which belongs to the program.
    quiet = contextlib.redirect_stdout(io.StringIO())
    with without_tensorflow(builder), quiet:
      builder.download_and_prepare(
        download_config=config, file_format="array_record"
      )
  except InputError:
    raise
  except Exception as error:  # any error of any of a thousand builders
    if not info_file.exists():
      raise InputError(
        f"{builder.name} cannot be prepared here: {_first_line(error)}; a copy "
        "prepared elsewhere with file_format='array_record' can be read by "
        "giving its data_dir"
      ) from error
    builder.info.read_from_directory(os.fspath(builder.data_path))


def catalogue_builder(
  name: str, data_dir: str, progress: Callable[[str], None]
) -> Any:
  """Gives a TFDS builder whose data can be read.

  Args:
    name: `name`, `name/config` or `name/config:version`.
    data_dir: where prepared data lies or is written; "" is TFDS's default.
  """
  builder = prepared_builder(name, data_dir)
  if builder is None:
    builder = _builder_to_prepare(name, expanded(data_dir) or None)
    prepare_builder(builder, progress)
  formats = sorted(form.value for form in builder.info.available_file_formats())
  if "array_record" not in formats:
    raise InputError(
      f"{builder.data_path} is prepared as {', '.join(formats)}, which needs "
      "TensorFlow to read; prepare it with file_format='array_record', or give "
      "another data_dir"
    )
  return builder


def prepared_builder(name: str, data_dir: str) -> Any:
  """As catalogue_builder, of prepared data alone: None where there is none."""
  if not _NAME.fullmatch(name):
    raise InputError(f"{name!r} is not a name of a TFDS dataset")
  try:
    return builder_from_files(name, data_dir=expanded(data_dir) or None)
  except tfds.core.DatasetNotFoundError:
    return None
  except (ValueError, OSError) as error:
    raise InputError(
      f"prepared data of {name!r} cannot be opened: {_first_line(error)}"
    ) from error
