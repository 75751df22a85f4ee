"""Private names of libraries are used in one adapter a library, nowhere else.

What a library keeps to itself may change in any release; pyproject.toml bounds
the versions of those that have an adapter.
"""

import ast
import collections
import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent
ADAPTERS = {
  "optuna": "bayesopt/study/optuna_adapter.py",
  "orbax-checkpoint": "checkpoints/orbax_adapter.py",
  "tensorflow-datasets": "data/tfds_adapter.py",
}
# Public, though they look otherwise.
_NAMED_TUPLE = {"_replace", "_asdict", "_fields", "_make"}
_PUBLIC = {"os._exit"}
# Not public, though they look so. `tfds.core` itself is documented.
_MODULES = ("tensorflow_datasets.core", "jax.interpreters")
_DEPRECATED = {"get_ts_context", "get_json_tspec_read", "get_json_tspec_write"}


def _is_private(name):
  return name.startswith("_") and not name.endswith("__")


def _imported(node):
  """Full names that an import statement takes from others than jaxmerge."""
  if isinstance(node, ast.Import):
    names = [alias.name for alias in node.names]
  else:
    names = [f"{node.module}.{alias.name}" for alias in node.names]
  own = ("jaxmerge", *sys.stdlib_module_names)
  return [name for name in names if name.split(".")[0] not in own]


def _own_names(tree):
  """What a module defines or assigns: its own private names."""
  found = set()
  for node in ast.walk(tree):
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      found.add(node.name)
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
      if ast.unparse(node.value) == "self":
        found.add(node.attr)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
      found.add(node.id)
  return found


def private_names(text):
  """Uses of what libraries keep to themselves, as lines of text."""
  tree = ast.parse(text)
  own = _own_names(tree)
  found = []
  for node in ast.walk(tree):
    if isinstance(node, (ast.Import, ast.ImportFrom)):
      found += [
        (node.lineno, name)
        for name in _imported(node)
        if any(map(_is_private, name.split("."))) or name.startswith(_MODULES)
      ]
    elif isinstance(node, ast.Attribute):
      name = ast.unparse(node)
      mine = ast.unparse(node.value) in ("self", "cls") and node.attr in own
      private = _is_private(node.attr) and node.attr not in _NAMED_TUPLE
      if node.attr in _DEPRECATED or private and not mine | (name in _PUBLIC):
        found.append((node.lineno, name))
  return found


def test_private_names_are_used_in_adapters_alone():
  found = collections.defaultdict(list)
  for path in sorted((ROOT / "jaxmerge").rglob("*.py")):
    for line, name in private_names(path.read_text()):
      file = path.relative_to(ROOT / "jaxmerge").as_posix()
      found[file].append(f"{line}: {name}")
  assert found.keys() == set(ADAPTERS.values()), dict(found)


def test_libraries_with_an_adapter_have_an_upper_bound():
  text = (ROOT / "pyproject.toml").read_text()
  for library in ADAPTERS:
    (line,) = [x for x in text.splitlines() if f'"{library}>=' in x]
    assert ",<" in line, line


def test_a_private_name_is_seen_however_it_is_reached():
  for text in (
    "study._storage",
    "import optuna.storages.journal._file",
    "from optuna.storages.journal._file import BaseJournalFileLock",
    "from tensorflow_datasets.core import registered",
    "from jax._src import core",
    "ocp.type_handlers.get_ts_context()",
    "class A(Backend):\n  def path(self):\n    return self._file_path",
    "held.study._storage.get_trial(0)",
    "study._thread_local.cached = None",
  ):
    assert private_names(text), text
  for text in (
    "found._replace(a=1)",
    "class A:\n  def __init__(self):\n    self._a = 1\n    print(self._a)",
    "from jaxmerge.huggingface.model_card import _inline",
    "from __future__ import annotations",
    "type(x).__mro__",
  ):
    assert not private_names(text), text
