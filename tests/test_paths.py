"""`~` is the home directory in every path, and never a folder of that name."""

import shutil
import sqlite3

import pytest

import jaxmerge
from jaxmerge import convert, evaluate, files, merge, pretrain, search
from jaxmerge.bayesopt.study.storage import check_storage, open_storage
from jaxmerge.cli import config_files
from jaxmerge.data import local_text
from jaxmerge.data.tokenizers.load import load_tokenizer
from jaxmerge.errors import InputError
from tests.helpers import ROOT, config_file, config_of, quiet


@pytest.fixture
def home(tmp_path, monkeypatch):
  """A home directory, and another one to work in, that must stay empty."""
  home, here = tmp_path / "home", tmp_path / "here"
  home.mkdir()
  here.mkdir()
  monkeypatch.setenv("HOME", str(home))
  monkeypatch.chdir(here)
  yield home
  assert not list(here.iterdir())


def test_only_the_beginning_is_expanded(home):
  assert files.expanded("~") == str(home)
  assert files.expanded("~/a b/~/c@600") == f"{home}/a b/~/c@600"
  for path in ("a/~/b", "./~", "/~", "gs://b/~/c", "$HOME/x", "", "a~"):
    assert files.expanded(path) == path
  assert files.absolute("~/x") == files.epath.Path(home / "x")
  assert str(files.absolute("gs://bucket/x")) == "gs://bucket/x"


@pytest.mark.parametrize("path", ["~nobody_here", "~nobody_here/x", "~~/x"])
def test_a_home_that_is_not_there_is_refused(home, tiny_run, path):
  config = config_of("pretrain", "tiny")
  for use in (
    lambda: files.make_directory(path),
    lambda: files.absolute(path),
    lambda: config_files.config_path(path),
    lambda: open_storage(path),
    lambda: local_text.local_files("text_files", [path]),
    lambda: load_tokenizer(path),
    lambda: pretrain.train(config, path, progress=quiet),
    lambda: jaxmerge.load_model(path),
    lambda: convert.convert(f"{tiny_run}@8", path, "hf"),
  ):
    with pytest.raises(InputError, match="there is no home directory ~"):
      use()


def test_a_command_line_names_every_path_that_is_wrong(home):
  with pytest.raises(InputError) as told:
    merge.main(
      [
        f"--config={config_file('merge', 'uniform')}",
        "--inputs=~nobody_a/x,~nobody_b/y",
        "--output=~nobody_c",
      ]
    )
  assert len(told.value.problems) == 3


def test_commands(home, tiny_run):
  """Flags with paths, the config file among them, of all verbs."""
  shutil.copytree(tiny_run, home / "run")
  configs = ROOT / "configs"
  for verb in ("merge", "search", "evaluate", "pretrain"):
    (home / verb).mkdir()
    for file in (configs / verb).glob("*.py"):
      shutil.copy(file, home / verb)
  merge.main(
    [
      "--config=~/merge/uniform.py",
      "--inputs=~/run@4,~/run/checkpoints/8",
      "--output=~/out/merged",
    ]
  )
  convert.main(["--input=~/out/merged", "--output=~/out/hf", "--format=hf"])
  evaluate.main(
    [
      "--config",
      "~/evaluate/tiny.py",
      "--inputs",
      "~/out/hf,~/run@8",
      "--output",
      "~/out/scores",
    ]
  )
  pretrain.main(
    [
      "--config=~/pretrain/tiny.py",
      "--workdir=~/new",
      "--init_from=~/run@8",
      "--dry_run",
    ]
  )
  search.main(["--config=~/search/tiny.py", "--workdir=~/run", "--dry_run"])
  assert sorted(path.name for path in (home / "out").iterdir()) == [
    "hf",
    "merged",
    "scores",
  ]


def test_functions(home, tiny_run):
  shutil.copytree(tiny_run, home / "run")
  config = config_of("merge", "uniform")
  config.method, config.base = "task_arithmetic", "~/run@4"
  inputs = ["~/run@8", "~/run@12"]
  merge.merge(config, inputs, "~/merged", progress=quiet)
  with pytest.raises(InputError, match="exists; use --overwrite"):
    merge.merge(config, inputs, "~/merged", progress=quiet)
  merge.merge(config, inputs, "~/merged", overwrite=True, progress=quiet)
  convert.convert("~/merged", "~/hf", "hf")
  jaxmerge.save_model(jaxmerge.load_model("~/hf"), "~/again")
  evaluate.evaluate(
    config_of("evaluate", "tiny"),
    ["~/hf"],
    output="~/scores",
    progress=quiet,
  )
  assert {path.name for path in home.iterdir()} >= {
    "again",
    "hf",
    "merged",
    "scores",
  }
  assert (home / "scores/evaluation.json").exists()


def test_a_run_of_paths_below_the_home(home, tiny_run):
  """The corpus, the tokenizer, the caches and the workdir."""
  (home / "corpus").mkdir()
  text = "a line of words that are said again and again\n" * 40
  for number in range(60):
    (home / "corpus" / f"{number}.txt").write_text(f"{number}\n{text}{number}")
  shutil.copy(tiny_run / "tokenizer.json", home)
  config = config_of("pretrain", "tiny")
  config.num_steps = config.save_every = 1
  config.data.source = "text_files"
  config.data.max_documents = 0
  config.data.globs = ("~/corpus/*.txt",)
  config.data.tokenizer_path = "~/tokenizer.json"
  config.data.vocab_size = 0
  config.data.data_dir = "~/prepared"
  config.data.cache_dir = "~/cache"
  pretrain.train(config, "~/new", progress=quiet)
  assert {path.name for path in home.iterdir()} >= {"cache", "new", "prepared"}
  assert (home / "new/checkpoints/1").is_dir()


def test_storages(home):
  (home / "journals").mkdir()
  open_storage("~/journals/study.journal")
  open_storage("sqlite:///~/journals/study.db")
  open_storage("file://~/journals/objects").create_new_study([1], "s")
  assert sorted(path.name for path in (home / "journals").iterdir()) == [
    "objects",
    "study.db",
    "study.journal",
  ]
  connection = sqlite3.connect(home / "other.db")
  connection.execute("CREATE TABLE users (name TEXT)")
  connection.close()
  (home / "mine.json").write_text("{}")
  for storage in ("~/mine.json", "sqlite:///~/other.db", "file://~/mine.json"):
    with pytest.raises(InputError, match="mine|other"):
      open_storage(storage)
  with pytest.raises(InputError, match="holds no study"):
    check_storage("~/mine.json")


def test_the_cache(home, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", "~/my cache")
  assert str(files.cache_root()) == f"{home}/my cache/jaxmerge"
  monkeypatch.delenv("XDG_CACHE_HOME")
  assert str(files.cache_root()) == f"{home}/.cache/jaxmerge"
