"""Prepared copies of local files: what is read of them, and where they lie.

A copy lies in a directory that is named by what decides it: the files, the key
of their text, and the tokenizer's rules by which tokens are cut.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from etils import epath

from jaxmerge.data import catalogue
from jaxmerge.data.config import TOKENIZED_FILES, CorpusConfig
from jaxmerge.data.documents import LocalFile, read_documents
from jaxmerge.data.file_hashes import sha256_of_json
from jaxmerge.data.local_text import (
  LOCAL_SOURCES,
  TEXT,
  TEXT_FILES,
  TOKENS,
  LocalText,
)
from jaxmerge.data.record_files import KEYED_SUFFIXES
from jaxmerge.data.token_files import TokenRules, check_opens, read_tokens
from jaxmerge.data.tokenizers.protocol import Tokenizer
from jaxmerge.errors import InputError, Problems, check
from jaxmerge.files import make_directory, user_path, write_json

# Beside a prepared copy, written after it: the SHA-256 of each of its files.
FILES = "files.json"
_GLOBBED = (TEXT_FILES, TOKENIZED_FILES)
# The key of tokens where config.data.text_feature is left at TEXT: what
# tokenizers of Hugging Face call them.
_INPUT_IDS = "input_ids"


def check_arguments(config: CorpusConfig) -> None:
  """Refuses keys that do not go with the source."""
  source, problems = config.source, []
  is_globbed = source in _GLOBBED
  if config.globs and not is_globbed:
    sources = " and ".join(map(repr, _GLOBBED))
    problems.append(f"globs go with sources {sources}, not {source!r}")
  has_fixed_text = source in LOCAL_SOURCES and not is_globbed
  if has_fixed_text and config.text_feature != TEXT:
    problems.append(f"the text feature of {source!r} is 'text'")
  check(problems)


def hash_of_files(files: Sequence[LocalFile]) -> str:
  return sha256_of_json(
    [[file.id, file.sha256, *filter(None, [file.form])] for file in files]
  )


def _key(config: CorpusConfig) -> str:
  """The key or column of the files' content."""
  is_default = config.source == TOKENIZED_FILES and config.text_feature == TEXT
  return _INPUT_IDS if is_default else config.text_feature


def home_of(config: CorpusConfig, content: str) -> epath.Path:
  """The directory in which files of a hash_of_files are prepared."""
  root = config.data_dir or os.path.join(config.cache_home, "corpora")
  key = _key(config)
  kept = "" if key == TEXT else f"-{sha256_of_json(key)[:8]}"
  return user_path(root) / f"{config.source}-{content[:16]}{kept}"


def check_readable(config: CorpusConfig, files: Sequence[LocalFile]) -> None:
  """Reads the first record of each file; of files prepared before, nothing.

  Raises:
    InputError: names each file that is damaged there, or lacks the key.
  """
  if (home_of(config, hash_of_files(files)) / FILES).exists():
    return
  key, problems = _key(config), Problems()
  keyed = [file for file in files if file.path.endswith(KEYED_SUFFIXES)]
  if config.text_feature != TEXT and not keyed:
    problems.add(
      f"config.data.text_feature {key!r} is a key or a column, and none of "
      "the files has any"
    )
  if config.source == TOKENIZED_FILES:
    for file in files:
      problems(partial(check_opens, file, key))
  else:
    for file in keyed:
      problems(partial(next, read_documents(file, key), None))
  problems.check()


def prepare(
  config: CorpusConfig,
  files: Sequence[LocalFile],
  tokenizer: Tokenizer | None,
  progress: Callable[[str], None],
) -> LocalText:
  """The builder of a copy, which is written where it is not there.

  Args:
    tokenizer: of `tokenized_files`: its end of text is where they are cut, and
      its size bounds their ids.
  """
  home, key = home_of(config, hash_of_files(files)), _key(config)
  check_readable(config, files)
  place, feature = home, TEXT
  read: Callable[[LocalFile], Iterator[tuple[str, str | bytes, str]]]
  read = partial(read_documents, key=key)
  if config.source == TOKENIZED_FILES:
    if tokenizer is None:
      raise InputError(f"source {config.source!r} needs its tokenizer")
    rules = TokenRules(tokenizer.size, tokenizer.end_of_text)
    place, feature = home / "-".join(map(str, rules)), TOKENS
    read = partial(read_tokens, key=key, rules=rules)
  make_directory(place.parent)
  builder = LocalText(
    config.source,
    files,
    read,
    feature,
    data_dir=os.fspath(place),
    file_format="array_record",
  )
  catalogue.prepare_builder(builder, progress)
  if not (home / FILES).exists():
    # Only a message and some time are lost without it.
    with contextlib.suppress(OSError, InputError):
      write_json(home / FILES, {file.id: file.sha256 for file in files})
  return builder
