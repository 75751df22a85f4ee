"""Bad command lines and foreign files: one message, exit code 2, no change."""

import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from jaxmerge import convert, evaluate, merge, pretrain, quickstart, search
from jaxmerge.bayesopt.study.storage import address_problems
from jaxmerge.checkpoints.inputs import saved_steps
from jaxmerge.cli import runner
from jaxmerge.errors import InputError
from jaxmerge.formats.records.metadata import canonical_json, hash_text
from jaxmerge.reading import read_json
from tests.helpers import ROOT, config_of, quiet

DEEP = "[" * 100_000
VERBS = {
  "pretrain": (pretrain, "pretrain/tiny"),
  "merge": (merge, "merge/weights"),
  "search": (search, "search/tiny"),
  "evaluate": (evaluate, "evaluate/tiny"),
}


def told(capsys, module, argv: list[str]) -> list[str]:
  """The problems that a verb tells before it ends with exit code 2."""
  capsys.readouterr()
  code = runner.run("verb", lambda: module.main(argv))
  lines = capsys.readouterr().err.splitlines()
  assert (code, lines[:1]) == (2, ["jaxmerge.verb: error:"])
  assert not any("\x1b" in line or "Traceback" in line for line in lines)
  return [line.strip() for line in lines[1:]]


def verb(capsys, name: str, *argv: str) -> list[str]:
  module, config = VERBS[name]
  return told(capsys, module, [f"--config={ROOT}/configs/{config}.py", *argv])


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("def get_config(): return None", "not NoneType"),
    ("def get_config(): return {'a': 1}", "not dict"),
    ("import sys\nsys.exit(0)", "does not run: SystemExit: 0"),
    ("def get_config(): raise SystemExit", "does not run: SystemExit"),
    ("raise KeyboardInterrupt", "does not run: KeyboardInterrupt"),
    ("x = 1", "has no function get_config"),
    ("get_config = 3", "not callable"),
    ("def get_config(): return get_config()", "does not run: RecursionError"),
    (
      "def get_config(): raise Exception('\\x1b[31m\\udcff')",
      r"\x1b[31m\udcff",
    ),
    (
      "from ml_collections import config_dict as c\ndef get_config():\n"
      "  return c.ConfigDict({'a': c.required_placeholder(int)})",
      "required placeholder",
    ),
  ],
)
def test_configs_that_give_none(tmp_path, capsys, text, message):
  path = tmp_path / "c.py"
  path.write_text(text)
  [line] = told(
    capsys, pretrain, [f"--config={path}", f"--workdir={tmp_path / 'w'}"]
  )
  assert message in line
  assert not (tmp_path / "w").exists()


def test_configs_that_are_no_python_file(tmp_path, capsys):
  (tmp_path / "c.json").write_text("{}")
  (tmp_path / "latin.py").write_bytes(b"x = 'caf\xe9'")
  os.mkfifo(tmp_path / "pipe.py")
  for name, message in (
    ("", "is not a file"),
    ("pipe.py", "is not a file"),
    ("c.json", "is not a Python file"),
    ("latin.py", "does not run: SyntaxError"),
    ("n" * 300, "cannot be read: File name too long"),
  ):
    config = f"--config={tmp_path}/{name}"
    [line] = told(capsys, pretrain, [config, "--workdir=w"])
    assert message in line


@pytest.mark.parametrize(
  ("name", "argv", "message"),
  [
    ("pretrain", "--config.data.globs=(1,2)", "a tuple of str, as ('a', 'b')"),
    ("pretrain", "--config.optimizer.b1=nan", "must be a finite number"),
    ("search", "--config.beta=inf", "must be a finite number"),
    ("search", "--config.checkpoint_steps=('a',)", "a tuple of int, as (1, 2)"),
    ("search", "--config.baselines=(1,)", "a tuple of str"),
    ("merge", "--config.scale=inf", "config.scale must be a finite number"),
    ("merge", "--config.mesh.data=0", "config.mesh.data must be positive"),
    ("merge", "--config.seq_len=-1", "config.seq_len must be at least 0"),
    ("evaluate", "--inputs=,", "--inputs: entry 1 of ',' is empty"),
    ("evaluate", "--inputs=a,,b", "--inputs: entry 2 of 'a,,b' is empty"),
    ("search", "--inputs=a,", "--inputs: entry 2 of 'a,' is empty"),
    ("merge", "--weights=1,,2", "--weights: entry 2 of '1,,2' is empty"),
    ("merge", "--weights=1_0,2", "'1_0' is not a number"),
    ("search", "--config.storage=nope://x/y", "of no known database"),
    ("search", "--config.storage=postgresql://h:nan/x", "is no address"),
    ("pretrain", "--init_from=gs://b/x", "gs:// needs the package gcsfs"),
    ("evaluate", "--output=s3://b/x", "s3fs (jaxmerge's extra 's3')"),
    ("evaluate", "--inputs=http://b/x", "http://b/x is no place for files"),
    ("merge", "--config.base=gs://b/x", "config.base: gs:// needs"),
    ("pretrain", "--workdir= ", "flag --workdir is required"),
    ("merge", "--output=", "flag --output is required"),
    ("pretrain", f"--workdir={'w' * 256}", "is too long for a path"),
    ("pretrain", f"--workdir={'w/' * 2100}", "is too long for a path"),
    ("pretrain", "--workdir=caf\udce9", r"'caf\udce9' is not UTF-8"),
    ("merge", "--x\x1b[31m=1", r"unknown flag --x\x1b[31m=1"),
    ("merge", "--flagfile=x", "unknown flag --flagfile=x"),
  ],
)
def test_flags_and_keys(
  tmp_path, tiny_run, capsys, monkeypatch, name, argv, message
):
  monkeypatch.chdir(tmp_path)
  complete = {
    "pretrain": ["--workdir=w"],
    "merge": [f"--inputs={tiny_run}@4,{tiny_run}@8", "--output=out"],
    "search": [f"--workdir={tiny_run}"],
    "evaluate": [f"--inputs={tiny_run}@4"],
  }[name]
  flag = argv.partition("=")[0]
  others = [word for word in complete if not word.startswith(f"{flag}=")]
  lines = verb(capsys, name, *others, argv)
  assert any(message in line for line in lines), lines
  assert list(tmp_path.iterdir()) == []


def test_flags_are_told_together(capsys):
  lines = verb(
    capsys,
    "merge",
    "--inputs=a,,b",
    "--weights=1,x",
    "--memory_budget_gb=some",
    "--output=gs://b/x",
    "--config.seed=x",
    "--wieghts=1",
  )
  for part in (
    "seed=x",
    "--wieghts=1",
    "gcsfs",
    "entry 2 of 'a,,b'",
    "'x' is not a number",
    "'some' is not a number",
  ):
    assert sum(part in line for line in lines) == 1, part


def test_flags_of_quickstart_that_are_empty(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  lines = told(capsys, quickstart, ["--workdir=", "--search"])
  assert any("flag --workdir is empty" in line for line in lines)
  assert any("--search" in line for line in lines)
  lines = told(
    capsys, quickstart, ["--search=configs/search/tiny.py", "--search"]
  )
  assert any("--search" in line for line in lines)
  assert list(tmp_path.iterdir()) == []


def test_storages_that_say_so_themselves():
  for address in ("", "study.journal", "gs://b/x", "sqlite:///x.db"):
    assert address_problems(address) == []
  for address in ("://x", "mysql+nope://u:hush@h/x", "redis://u:hush@h"):
    [problem] = address_problems(address)
    assert "hush" not in problem


def test_a_directory_of_steps_with_strange_names(tmp_path):
  for name in ("8", "²", "9" * 30, "012", "4.tmp"):
    (tmp_path / "checkpoints" / name).mkdir(parents=True)
  assert saved_steps(tmp_path) == [8]


def test_deep_json_is_an_error_wherever_python_s_stack_ends():
  for text in (DEEP, "[" * 300 + "]" * 300, '{"a":' * 300 + "1" + "}" * 300):
    with pytest.raises(ValueError, match="too deep"):
      read_json(text)
  assert read_json("\ufeff[1]") == read_json(b"\xef\xbb\xbf[1]") == [1]


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp("exported") / "hf"
  convert.convert(f"{tiny_run}@8", path, "hf")
  return path


@pytest.mark.parametrize("what", ["directory", "pipe", "deep", "link", "list"])
@pytest.mark.parametrize(
  "name",
  ["config.json", "tokenizer.json", "jaxmerge.json", "model.safetensors"],
)
def test_files_of_a_hugging_face_directory(
  exported, tmp_path, capsys, name, what
):
  path = tmp_path / "hf"
  shutil.copytree(exported, path)
  file = path / name
  file.unlink()
  if what == "directory":
    file.mkdir()
  elif what == "pipe":
    os.mkfifo(file)
  elif what == "link":
    file.symlink_to("nowhere")
  else:
    file.write_text(DEEP if what == "deep" else "[]")
  lines = told(
    capsys,
    convert,
    [f"--input={path}", f"--output={tmp_path / 'out'}", "--format=orbax"],
  )
  assert any(str(path) in line for line in lines)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


def put(*keys: str, to: Any) -> Callable[[dict[str, Any]], None]:
  def change(value: dict[str, Any]) -> None:
    for key in keys[:-1]:
      value = value[key]
    value[keys[-1]] = to

  return change


EMBEDDING = ("leaves", "params", "embed/embedding")
CHANGES: dict[str, Callable[[dict[str, Any]], None]] = {
  "kind": put("kind", to=[]),
  "step of text": put("step", to="8"),
  "step below zero": put("step", to=-8),
  "step beyond numbers": put("step", to=10**30),
  "tokens": put("tokens", to=None),
  "run": put("run_id", to=3),
  "parent": put("parent", to="\ud800"),
  "tokenizer": put("tokenizer", to=3),
  "model": put("model", to=[]),
  "model without a key": put("model", to={"hidden_size": 64}),
  "hidden_size": put("model", "hidden_size", to="64"),
  "epsilon": put("model", "rms_norm_eps", to=float("nan")),
  "rope": put("model", "rope_scaling", to={"kind": 3}),
  "another width": put("model", "intermediate_size", to=3),
  "data": put("data", to=[]),
  "data's globs": put("data", "globs", to=[1]),
  "data's source": put("data", "source", to=None),
  "leaves": put("leaves", to=[]),
  "no params": put("leaves", to={}),
  "shape": put(*EMBEDDING, "shape", to=[10**12, 10**12]),
  "shape of truth": put(*EMBEDDING, "shape", to=[True]),
  "dtype": put(*EMBEDDING, "dtype", to="object"),
  "dtype that no array has": put(*EMBEDDING, "dtype", to="timedelta64"),
  "dtype by another name": put(*EMBEDDING, "dtype", to="f4"),
  "digest": put(*EMBEDDING, "digest", to=5),
  "leaf": put(*EMBEDDING, to=5),
  "leaf below a leaf": put("leaves", "params", "embed/embedding/x", to={}),
  "leaf too many": put("leaves", "params", "\x1b[31m", to={}),
  "a name of many parts": put("leaves", "params", "a/" * 9_999 + "a", to={}),
  "layers": put("model", "num_hidden_layers", to=2**52),
  "provenance": put("provenance", to={"sources": [1]}),
  "versions": put("versions", to={}),
  "files": put("files", to={"tokenizer.model": "é"}),
}


@pytest.fixture(scope="module")
def step(tiny_run, tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp("step") / "8"
  shutil.copytree(tiny_run / "checkpoints/8", path)
  return path


@pytest.mark.parametrize("name", CHANGES)
def test_metadata_whose_digest_is_right(step, tmp_path, capsys, name):
  file = step / "metadata/metadata"
  before = file.read_text()
  value = json.loads(before)
  del value["digest"]
  CHANGES[name](value)
  value["digest"] = hash_text(canonical_json(value))
  file.write_text(json.dumps(value))
  try:
    lines = told(
      capsys,
      convert,
      [f"--input={step}", f"--output={tmp_path / 'out'}", "--format=hf"],
    )
  finally:
    file.write_text(before)
  assert all(str(step) in line or "model" in line for line in lines)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["directory", "pipe", "deep"])
def test_metadata_that_is_no_json_file(step, tmp_path, what):
  path = tmp_path / "8"
  shutil.copytree(step, path)
  file = path / "metadata/metadata"
  file.unlink()
  if what == "directory":
    file.mkdir()
  elif what == "pipe":
    os.mkfifo(file)
  else:
    file.write_text(DEEP)
  with pytest.raises(InputError, match="not a whole checkpoint|is damaged"):
    convert.convert(str(path), tmp_path / "out", "hf")


def test_a_pipe_among_the_arrays_is_not_waited_for(step, tmp_path):
  path = tmp_path / "8"
  shutil.copytree(step, path)
  (path / "params/manifest.ocdbt").unlink()
  os.mkfifo(path / "params/manifest.ocdbt")
  with pytest.raises(InputError, match="not a whole checkpoint"):
    convert.convert(str(path), tmp_path / "out", "hf")


def test_a_study_says_what_its_hashes_stand_for(tiny_run, tmp_path):
  run = tmp_path / "run"
  shutil.copytree(tiny_run, run)
  config = config_of("search")
  config.num_trials = 2
  search.search(config, run, progress=quiet)
  config.checkpoint_steps = (12, 16)
  config.seq_len = 16
  with pytest.raises(InputError) as error:
    search.search(config, run, progress=quiet)
  [inputs, length] = error.value.problems
  assert "another inputs (steps 8, 12, now steps 12, 16)" in inputs
  assert "without seq_len (now 16)" in length
