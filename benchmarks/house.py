"""How large is the package, and how often does one module call another?

  python benchmarks/house.py [ROOT [ROOT]]    (about 3 minutes on 2 cores)

ROOT is a checkout; the default is the one that this file lies in, and a second
one is shown beside the first. Prints a Markdown table. Calls are those of
configs/{pretrain,merge,search}/, in miniature, on the CPU: calls from a
function of one module of jaxmerge straight to one of another, generators that
go on included.
"""

import ast
import collections
import importlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

_HERE = pathlib.Path(__file__).resolve()
_CONFIGS = {
  "pretrain": "configs/pretrain/quickstart.py",
  "merge": "configs/merge/uniform.py",
  "search": "configs/search/quickstart.py",
  "evaluate": "configs/evaluate/quickstart.py",
}


def sizes(root: pathlib.Path) -> dict[str, str]:
  """Lines, files, functions and import lines."""
  texts = {
    path.relative_to(root / "jaxmerge"): path.read_text()
    for path in sorted((root / "jaxmerge").rglob("*.py"))
  }
  lines = {path: text.count("\n") for path, text in texts.items()}
  longest = max(lines, key=lambda path: lines[path])
  lengths = [
    (node.end_lineno or node.lineno) - node.lineno + 1
    for text in texts.values()
    for node in ast.walk(ast.parse(text))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
  ]
  imports = {
    verb: sum(
      line.startswith(("from jaxmerge", "import jaxmerge"))
      for line in texts[pathlib.Path(f"{verb}.py")].splitlines()
    )
    for verb in ("search", "pretrain")
  }
  return {
    "lines of `jaxmerge/`": f"{sum(lines.values()):,}",
    "files": str(len(texts)),
    "longest file": f"`{longest}`, {lines[longest]}",
    "files above 300 lines": str(sum(n > 300 for n in lines.values())),
    "functions": f"{len(lengths):,}",
    "lines of a function, median": f"{statistics.median(lengths):g}",
    "lines of a function, 95th percentile": (
      f"{statistics.quantiles(lengths, n=20)[-1]:.0f}"
    ),
    "functions above 60 lines": str(sum(n > 60 for n in lengths)),
    **{
      f"import lines of ours, `{verb}.py`": str(n)
      for verb, n in imports.items()
    },
  }


def config_keys() -> dict[str, int]:
  """Keys of each verb's config, one that several records have counted once."""
  try:
    files = importlib.import_module("jaxmerge.cli.config_files")
    fields = importlib.import_module("jaxmerge.config_fields")
  except ImportError:  # config files that said every key
    load = importlib.import_module("jaxmerge.runner").load_config
    return {verb: _leaves(load(path)) for verb, path in _CONFIGS.items()}
  return {
    verb: len({row.name for row in fields.rows(files.config_class(verb))})
    for verb in _CONFIGS
  }


def _leaves(config: Any) -> int:
  return sum(
    _leaves(value) if hasattr(value, "values") else 1
    for value in config.values()
  )


def _holds_tree(value: Any, names: frozenset[str]) -> bool:
  """Whether a value is a tree of all parameters, flat or nested, or several."""
  if isinstance(value, list | tuple):
    return any(_holds_tree(item, names) for item in value)
  if not isinstance(value, Mapping):
    return False
  keys = set(value)
  return keys == names or keys == {name.partition("/")[0] for name in names}


def _arguments(frame: FrameType) -> Iterator[Any]:
  code = frame.f_code
  count = code.co_argcount + code.co_kwonlyargcount
  for name in code.co_varnames[:count]:
    yield frame.f_locals.get(name)


def calls(run: Callable[[], object], names: frozenset[str]) -> dict[str, int]:
  """Runs something and counts its calls between modules of jaxmerge.

  Args:
    run: what to run.
    names: of the parameters of a tree whose handovers are counted.
  """
  pairs: collections.Counter[tuple[str, str]] = collections.Counter()
  trees: collections.Counter[tuple[str, str]] = collections.Counter()

  def count(frame: FrameType, event: str, arg: Any) -> None:
    del arg
    if event != "call" or frame.f_back is None:
      return
    callee = frame.f_globals.get("__name__", "")
    caller = frame.f_back.f_globals.get("__name__", "")
    if callee == caller or not callee.startswith("jaxmerge"):
      return
    if caller.startswith("jaxmerge"):
      pairs[caller, callee] += 1
      if names and any(_holds_tree(v, names) for v in _arguments(frame)):
        trees[caller, callee] += 1

  threading.setprofile(count)
  sys.setprofile(count)
  try:
    run()
  finally:
    sys.setprofile(None)
    threading.setprofile(None)  # type: ignore[arg-type]
  return {
    "calls": pairs.total(),
    "pairs": len(pairs),
    "tree calls": trees.total(),
    "tree modules": len({module for pair in trees for module in pair}),
  }


def _measure(workdir: pathlib.Path) -> dict[str, Any]:
  """All that needs the package itself; of the checkout in sys.path."""
  inputs = ",".join(f"{workdir}@{step}" for step in (4, 8, 12))
  commands = {
    "pretrain": ["--config=configs/pretrain/tiny.py", f"--workdir={workdir}"],
    "merge": [
      "--config=configs/merge/uniform.py",
      f"--inputs={inputs}",
      f"--output={workdir.parent / 'merged'}",
    ],
    "search": ["--config=configs/search/tiny.py", f"--workdir={workdir}"],
  }
  found: dict[str, Any] = {"keys": config_keys()}
  names: frozenset[str] = frozenset()
  for verb, argv in commands.items():
    main = importlib.import_module(f"jaxmerge.{verb}").main
    found[verb] = calls(lambda: main(argv), names)  # noqa: B023
    saved = json.loads(
      (workdir / "checkpoints/4/metadata/metadata").read_text()
    )
    names = frozenset(saved["leaves"]["params"])
  return found


def measured(root: pathlib.Path) -> dict[str, str]:
  """Config keys and calls, by a Python process of that checkout."""
  with tempfile.TemporaryDirectory() as folder:
    environment = {
      **os.environ,
      "PYTHONPATH": str(root),
      "JAX_PLATFORMS": "cpu",
      "HOUSE_WORKDIR": f"{folder}/run",
    }
    subprocess.run(
      [sys.executable, _HERE],
      cwd=root,
      env=environment,
      stdout=subprocess.DEVNULL,
      check=True,
    )
    found = json.loads(pathlib.Path(f"{folder}/measured.json").read_text())
  keys = found.pop("keys")
  each = ", ".join(f"{verb} {n}" for verb, n in keys.items())
  rows = {"config keys": f"{sum(keys.values())} ({each})"}
  for verb, counts in found.items():
    rows[f"calls between modules, {verb}"] = f"{counts['calls']:,}"
    rows[f"pairs of modules, {verb}"] = str(counts["pairs"])
  tree = found["merge"]
  rows["calls that hand the merge's trees on"] = str(tree["tree calls"])
  rows["modules that these trees pass"] = str(tree["tree modules"])
  return rows


def main() -> None:
  workdir = os.environ.get("HOUSE_WORKDIR")
  if workdir:
    path = pathlib.Path(workdir)
    result = json.dumps(_measure(path))
    (path.parent / "measured.json").write_text(result)
    return
  roots = [pathlib.Path(word).resolve() for word in sys.argv[1:]]
  columns = [
    {**sizes(root), **measured(root)} for root in roots or [_HERE.parents[1]]
  ]
  heads = ["before", "after"] if len(columns) == 2 else ["now"] * len(columns)
  print("| | " + " | ".join(heads) + " |")
  print("|---|" + "---|" * len(columns))
  for name in columns[-1]:
    print(f"| {name} | " + " | ".join(c[name] for c in columns) + " |")


if __name__ == "__main__":
  main()
