"""The notebook: what it installs, and that it runs to its end."""

import importlib.metadata
import importlib.util
import re
import subprocess
import tomllib

import nbclient
import nbformat
import pytest

from jaxmerge.reporting.page import FIGURES
from tests.helpers import ROOT

NOTEBOOK = ROOT / "colab/quickstart.ipynb"
REPORTS = ("search/pair/report", "search/three/report")


def read():
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  return notebook, [c for c in notebook.cells if c.cell_type == "code"]


def test_one_address_everywhere():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  address = project["urls"]["Repository"]
  _, (install, *_) = read()
  assert f'REPOSITORY = "{address}"\n' in install.source
  assert f"git+{address}\n" in (ROOT / "README.md").read_text()
  names = (ROOT / "README.md", ROOT / "pyproject.toml", NOTEBOOK)
  owner = address.rpartition("/")[0]
  assert [n.read_text().count(owner) for n in names] == [1, 1, 1]


def test_no_page_installs_a_name_that_no_index_has():
  pages = [ROOT / "README.md", NOTEBOOK, *(ROOT / "docs").rglob("*.md")]
  command = re.compile(r"pip install\b.* [\"']?jaxmerge(?!-)\b")
  assert not [p.name for p in pages if command.search(p.read_text())]


@pytest.mark.parametrize(
  ("jax", "override"),
  [
    ("", ""),
    ("0.7.2", ""),
    ("0.11.0", ""),
    ("0.11.2", "jax==0.11.2\njaxlib==0.11.2\nflax>=0.12.9\n"),
    ("0.12.0rc1", "jax==0.12.0rc1\njaxlib==0.12.0rc1\nflax>=0.12.9\n"),
  ],
)
@pytest.mark.parametrize("wheel", ["", "jaxmerge-0.1.0-py3-none-any.whl"])
def test_the_first_cell_leaves_dependencies_to_the_package(
  jax, override, wheel, tmp_path, monkeypatch
):
  found = {"jax": jax or None}
  commands = []
  monkeypatch.setattr(importlib.util, "find_spec", found.get)
  monkeypatch.setattr(importlib.metadata, "version", lambda name: jax)
  monkeypatch.setattr("shutil.which", lambda name: "")
  monkeypatch.setattr(
    subprocess, "run", lambda command, check: commands.append(command)
  )
  monkeypatch.chdir(tmp_path)
  if wheel:
    (tmp_path / wheel).touch()
  _, (install, *_) = read()
  exec(install.source, {})
  _, (*_, flag, file, source) = commands
  assert flag == "--override"
  assert (tmp_path / file).read_text() == override
  name, place = source.split(" @ ")
  assert name == "jaxmerge"
  assert place.startswith("file:///" if wheel else "git+https://")
  assert place.endswith(wheel)
  assert [c[1:3] for c in commands] == [["-m", "pip"], ["-m", "uv"]]


def test_the_notebook_runs_at_a_tiny_size(tmp_path):
  notebook, code = read()
  [parameters] = [c for c in code if "parameters" in c.metadata.get("tags", [])]
  assert "configs/pretrain/quickstart.py" in parameters.source
  parameters.source = (
    parameters.source.replace("quickstart.py", "tiny.py")
    + "\nNUM_STEPS, SAVE_EVERY, PAIR = 16, 4, (8, 12)"
  )
  client = nbclient.NotebookClient(
    notebook,
    timeout=300,
    kernel_name="python3",
    resources={"metadata": {"path": str(tmp_path)}},
  )
  client.execute()
  outputs = [output for cell in code for output in cell.outputs]
  shown = [set(o.get("data", {})) for o in outputs]
  kinds = [
    kind for s in shown for kind in ("image/png", "text/markdown") if kind in s
  ]
  run = tmp_path / "runs/quickstart"
  figures = [f.stem for r in REPORTS for f in (run / r).glob("*.png")]
  # Under each figure its caption; between them there is none without.
  assert kinds == ["image/png", "text/markdown"] * len(figures)
  assert set(figures) == set(FIGURES)
  text = "".join(o.get("text", "") for o in outputs)
  assert "paired stderr" in text
  assert re.search(r"last +\d\.\d+ nats/token\nmerged +\d\.\d+ nats/", text)
  for report in REPORTS:
    assert (run / report / "report.html").exists()
  assert (run / "exported/tokenizer_config.json").exists()
