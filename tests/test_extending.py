"""The blocks of docs/extending.md, run as a reader would, from elsewhere."""

import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

import pytest

from tests import forked

ROOT = pathlib.Path(__file__).parent.parent
PAGE = (ROOT / "docs/extending.md").read_text()
INTRODUCTION, *SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def write_files(section, folder):
  """Writes the `python` blocks of a section under their names."""
  [text] = [s for s in SECTIONS if s.startswith(f"{section}\n")]
  for kind, block in _BLOCK.findall(text):
    if kind == "python":
      name = block.partition("\n")[0].removeprefix("# ")
      (folder / name).write_text(block)


def run_blocks(text, folder):
  """Writes `python` blocks under their names and runs `console` blocks.

  The first line of a file is `# name.py`, that of a command begins with `$`;
  what the command must print, line by line, may follow. A block may have
  several commands.
  """
  for kind, block in _BLOCK.findall(text):
    first = block.partition("\n")[0]
    if kind == "python":
      (folder / first.removeprefix("# ")).write_text(block)
      continue
    assert kind == "console", kind
    for one in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
      run_command(one, folder)


def run_command(text, folder):
  """Runs the command of a first line; the other lines it must print."""
  first, *printed = text.splitlines()
  python, *words = shlex.split(first)
  assert python == "python", first
  verb = words[1].removeprefix("jaxmerge.") if words[0] == "-m" else ""
  if verb in forked.VERBS:
    code, said = run_verb(verb, words[2:], folder)
  else:
    done = subprocess.run(
      [sys.executable, *words],
      cwd=folder,
      env={**os.environ, "PYTHONPATH": str(ROOT)},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      timeout=600,
    )
    code, said = done.returncode, done.stdout
  assert code == 0, said
  for line in filter(None, printed):
    assert line in said.splitlines(), said


def run_verb(verb, argv, folder):
  """Runs a verb; its exit code, and what it said."""
  with tempfile.NamedTemporaryFile() as output:
    path = pathlib.Path(output.name)
    process = forked.start(verb, argv, path, folder=folder)
    process.join(600)
    said = path.read_text()
    if process.exitcode is None:
      process.kill()
    return process.exitcode, said


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("elsewhere")
  run_blocks(INTRODUCTION, path)
  return path


@pytest.mark.parametrize(
  "section", SECTIONS, ids=lambda text: text.partition("\n")[0]
)
def test_a_section(folder, section):
  assert _BLOCK.search(section)
  run_blocks(section, folder)
