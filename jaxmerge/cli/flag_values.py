"""Values of flags as they are typed: lists, numbers, names of places."""

import importlib.util
import re
from collections.abc import Iterable

from jaxmerge.errors import InputError, check
from jaxmerge.redaction import without_secrets

_LONGEST_NAME = 255
_LONGEST_PATH = 4095
# Schemes of object stores: the package that opens each, and our extra.
_STORES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}


def split_list(flag: str, text: str) -> list[str]:
  """The words of a comma-separated flag; InputError where one is empty."""
  words = text.split(",") if text else []
  check(
    f"--{flag}: entry {number} of {text!r} is empty"
    for number, word in enumerate(words, start=1)
    if not word.strip()
  )
  return words


def numbers(flag: str, text: str) -> list[float]:
  """Reads the words of split_list as numbers."""
  found: list[float] = []
  problems: list[str] = []
  for word in split_list(flag, text):
    try:
      found.append(float(word.replace("_", "?")))  # Python takes 1_0 for 10
    except ValueError:
      problems.append(f"--{flag}: {word!r} is not a number")
  check(problems)
  return found


def number(flag: str, text: str) -> float:
  """Reads one number; InputError where it is none, or several."""
  found = numbers(flag, text)
  if len(found) != 1:
    raise InputError(f"--{flag}: {text!r} is not a number")
  return found[0]


def text_problems(texts: Iterable[tuple[str, str]]) -> list[str]:
  """Lists texts that no file system takes, and addresses of no known store."""
  problems = []
  for name, text in texts:
    if "\0" in text or re.search("[\ud800-\udfff]", text):
      problems.append(f"{name}: {text!r} is not UTF-8 without zero bytes")
    if name.endswith(".storage") and "://" in text:
      continue  # a study opens an address in ways of its own
    sizes = [len(part.encode(errors="replace")) for part in text.split("/")]
    if max(sizes) > _LONGEST_NAME or sum(sizes) + len(sizes) > _LONGEST_PATH:
      problems.append(
        f"{name}: {without_secrets(text)[:40]}... is too long for a path"
      )
    for scheme in re.findall(r"([A-Za-z][\w+.\-]*)://", text):
      if scheme not in _STORES:
        problems.append(
          f"{name}: {without_secrets(text)} is no place for files; a path, "
          "gs:// and s3:// are"
        )
        continue
      module, extra = _STORES[scheme]
      if importlib.util.find_spec(module) is None:
        problems.append(
          f"{name}: {scheme}:// needs the package {module}: pip install "
          f'"jaxmerge[{extra}]"'
        )
  return problems
