"""Config keys are defined once; what was made under old names is still read."""

import dataclasses
import inspect
import json
import pathlib
import shutil

import pytest
from optuna.samplers import RandomSampler

import jaxmerge
from jaxmerge import evaluate, merge, pretrain, quickstart, search
from jaxmerge.bayesopt.study.study import open_study
from jaxmerge.cli import config_docs
from jaxmerge.cli.config_files import CONFIGS, config_class
from jaxmerge.config_fields import key, knobs_of, section, to_flat
from jaxmerge.config_reading import read
from jaxmerge.errors import InputError
from jaxmerge.formats.records.metadata import (
  canonical_json,
  hash_text,
  read_metadata,
)
from jaxmerge.old_names import NEW_NAMES
from tests.helpers import quiet

ROOT = pathlib.Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class _Shared:
  name: str
  knobs: type


@dataclasses.dataclass(frozen=True)
class _Slow:
  rate: float = key(0.1, "of change", above=0)


@dataclasses.dataclass(frozen=True)
class _Fast:
  rate: float = key(0.9, "of change", above=0)
  jumps: int = key(3, "at once", at_least=1, at_most=5)


_KINDS = {"slow": _Shared("slow", _Slow), "fast": _Shared("fast", _Fast)}


@dataclasses.dataclass(frozen=True)
class _Inner:
  kind: str = key("slow", "which", choices=_KINDS)
  knobs: object = knobs_of("kind", _KINDS)


@dataclasses.dataclass(frozen=True)
class _Outer:
  seed: int = key(0, "a seed", at_least=0, below=2**32)
  size: int = key(help="a size", at_least=1)
  parts: tuple[str, ...] = key((), "some", choices=("a", "b"))
  inner: _Inner = section(_Inner)


def problems_of(given):
  with pytest.raises(InputError) as error:
    read(_Outer, given)
  return error.value.problems


def test_missing_keys_take_the_defaults_of_what_is_chosen():
  assert read(_Outer, {"size": 2}).inner.knobs == _Slow()
  found = read(_Outer, {"size": 2, "inner": {"kind": "fast", "jumps": 5}})
  assert found.inner.knobs == _Fast(jumps=5)
  assert read(_Outer, found) == found
  assert to_flat(found) == {
    "seed": 0,
    "size": 2,
    "parts": (),
    "inner.kind": "fast",
    "inner.rate": 0.9,
    "inner.jumps": 5,
  }


def test_all_problems_at_once_with_what_was_meant():
  assert problems_of({"sede": 1, "inner": {"kind": 3, "rates": 1}}) == [
    "unknown config key config.sede; did you mean config.seed?",
    "config.inner.kind must be str, got 3",
    "unknown config key config.inner.rates; did you mean config.inner.rate?",
    "missing config key config.size",
  ]
  assert problems_of(
    {"seed": -1, "size": 1, "parts": ("a", "a"), "inner": {"rate": 0}}
  ) == [
    "config.seed must be in [0, 2**32), got -1",
    "config.parts must be different ones of ('a', 'b'), got ('a', 'a')",
    "config.inner.rate must be positive, got 0.0",
  ]
  (line,) = problems_of({"size": 1, "inner": {"kind": "fasst"}})
  assert line.endswith("got 'fasst'; did you mean fast?")
  assert problems_of({"size": True}) == ["config.size must be int, got True"]


def test_knobs_of_what_is_not_chosen():
  """Left at their default they mean nothing, as in a config of before."""
  assert read(_Outer, {"size": 1, "inner": {"jumps": 3}}).inner.knobs == _Slow()
  assert problems_of({"size": 1, "inner": {"jumps": 4}}) == [
    "the kind 'slow' does not use config.inner.jumps; leave it at 3"
  ]
  # Of a kind that there is not nobody knows what it uses.
  [line] = problems_of({"size": 1, "inner": {"kind": "fasst", "jumps": 4}})
  assert line.startswith("config.inner.kind must be one of")


@pytest.mark.parametrize("verb", CONFIGS)
def test_config_files_say_only_what_they_choose(verb):
  """And every key has a line of help."""
  for file in (ROOT / "configs" / verb).glob("*.py"):
    config = jaxmerge.load_config(f"configs/{verb}/{file.name}")
    read(config_class(verb), config)
  for row in config_docs.rows(config_class(verb)):
    assert row.key.help, row.name


def test_a_loaded_recipe_takes_a_number_or_one_for_each_input():
  config = jaxmerge.load_config("configs/merge/ties.py")
  for given, found in (((0.4,), 0.4), ([0.1, 0.2], (0.1, 0.2))):
    config.density = given
    assert read(config_class("merge"), config).knobs.density == found
  config = jaxmerge.load_config("configs/merge/uniform.py")
  config.method, config.density, config.base = "ties", 0.3, "x"
  config.density = (0.3, 0.4)
  config.memory_budget_gb = (1.0, 2.0)
  with pytest.raises(InputError) as error:
    read(config_class("merge"), config)
  assert error.value.problems == [
    "config.memory_budget_gb must be float, got (1.0, 2.0)"
  ]


def test_the_page_of_keys_is_up_to_date():
  assert (ROOT / "docs/config.md").read_text() == config_docs.page() + "\n"


def test_a_config_elsewhere_derives_from_ours(tmp_path):
  (tmp_path / "mine.py").write_text(
    "import jaxmerge\n"
    "def get_config():\n"
    "  config = jaxmerge.load_config('configs/search/quickstart.py')\n"
    "  config.data.source = 'sotu'\n"
    "  return config\n"
  )
  config = jaxmerge.load_config(str(tmp_path / "mine.py"), verb="search")
  assert config.data.source == "sotu"
  assert config.mesh.data == -1
  with pytest.raises(InputError, match="give the verb that it is for"):
    jaxmerge.load_config(str(tmp_path / "mine.py"))


@pytest.mark.parametrize("old", NEW_NAMES)
def test_an_old_name_is_refused_with_the_new_one(old, tmp_path, capsys):
  module, verb = next(
    (module, verb)
    for module, verb in ((pretrain, "pretrain"), (search, "search"), (None, ""))
    if verb == ("pretrain" if old.startswith("model.") else "search")
  )
  from jaxmerge import merge
  from jaxmerge.cli import runner

  of_merge = ("newest", "beyond", "penalty", "drop", "sampled")
  if old in of_merge:
    module, verb = merge, "merge"
  argv = [
    f"--config={ROOT / 'configs' / verb / 'quickstart.py'}",
    f"--config.{old}=1",
    f"--workdir={tmp_path / 'w'}",
  ]
  if verb == "merge":
    argv[0] = f"--config={ROOT / 'configs/merge/uniform.py'}"
    argv[2:] = ["--inputs=a,b", f"--output={tmp_path / 'out'}"]
  assert runner.run(verb, lambda: module.main(argv)) == 2
  said = capsys.readouterr().err
  new = NEW_NAMES[old].name
  assert f"config key config.{old} is now config.{new}" in said
  assert not list(tmp_path.iterdir())


def as_before(workdir):
  """Rewrites a run's own description under the names of before."""
  old_names = {new.name: old for old, new in NEW_NAMES.items()}
  path = workdir / "run.json"
  saved = json.loads(path.read_text())
  config = {old_names.get(k, k): v for k, v in saved["config"].items()}
  # There were no such keys, and these were among what was compared.
  for name in ("optimizer.name", "optimizer.schedule"):
    del config[name]
  config |= {"data.globs": ["/elsewhere/*.txt"], "data.tokenizer_path": ""}
  saved = {**saved, "config": config}
  from jaxmerge.training import run

  saved["run_id"] = run._run_id(saved)
  path.write_text(json.dumps(saved))
  return saved["run_id"]


def test_a_run_under_old_names_is_the_same_run(tiny_run, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(tiny_run, workdir)
  run_id = as_before(workdir)
  from jaxmerge.training import run
  from jaxmerge.training.config import PretrainConfig

  config = jaxmerge.load_config("configs/pretrain/tiny.py")
  now = run.known_parts(
    to_flat(read(PretrainConfig, config)), content="", parent=""
  )
  found = run.check_workdir(workdir, now)
  assert found["run_id"] == run_id
  config.model.hidden_size = 64
  other = run.known_parts(
    to_flat(read(PretrainConfig, config)), content="", parent=""
  )
  with pytest.raises(InputError, match="hidden_size was 32, is now 64"):
    run.check_workdir(workdir, other)


def test_evaluate_refuses_what_no_memory_holds(tiny_run):
  config = jaxmerge.load_config("configs/evaluate/tiny.py")
  config.memory_budget_gb = 1e-6
  with pytest.raises(InputError, match="config.memory_budget_gb"):
    evaluate.evaluate(config, [f"{tiny_run}@4"], progress=quiet)


def test_configs_mean_what_they_did_when_they_said_every_key():
  golden = json.loads((ROOT / "tests/golden_configs.json").read_text())
  for file, values in golden.items():
    verb = pathlib.PurePath(file).parent.name
    found = to_flat(read(config_class(verb), jaxmerge.load_config(file)))
    told = json.loads(json.dumps(found))
    assert {name: told[name] for name in values} == values, file


def test_a_checkpoint_under_old_names_is_the_same_model(tiny_run, tmp_path):
  shutil.copytree(tiny_run / "checkpoints/8", tmp_path / "8")
  file = tmp_path / "8/metadata/metadata"
  value = json.loads(file.read_text())
  old_names = {new.name: old for old, new in NEW_NAMES.items()}
  value["model"] = {
    old_names.get(f"model.{name}", f"model.{name}").removeprefix("model."): v
    for name, v in value["model"].items()
  }
  assert "width" in value["model"]
  del value["digest"]
  value["digest"] = hash_text(canonical_json(value))
  file.write_text(json.dumps(value))
  now, before = (
    read_metadata(tiny_run / "checkpoints/8"),
    read_metadata(tmp_path / "8"),
  )
  assert before == now


def test_a_study_under_old_names_goes_on(tmp_path):
  before = {"seed": 0, "starts": ["uniform"]}
  now = {"seed": 0, "initial_weights": ["uniform"]}

  def opened(identity):
    return open_study(
      tmp_path / "study.journal",
      "a",
      sampler=RandomSampler(),
      identity=identity,
      num_trials=2,
    )

  opened(now).set_user_attr("fingerprint", before)
  opened(now)
  with pytest.raises(InputError, match="another initial_weights"):
    opened({**now, "initial_weights": ["lawa"]})


def test_a_text_is_taken_for_a_tuple_of_one_text():
  config = jaxmerge.load_config("configs/pretrain/tiny.py")
  config.data.source = "text_files"
  config.data.globs = "corpus/*.txt"
  assert config.data.globs == ("corpus/*.txt",)
  config.data.update({"globs": "corpus"})
  assert config.data.globs == ("corpus",)
  own = {"data": {"source": "text_files", "globs": "corpus"}}
  found = read(config_class("evaluate"), own)
  assert found.data.globs == ("corpus",)


def test_a_tuple_of_another_type_names_the_remedy():
  config = jaxmerge.load_config("configs/pretrain/tiny.py")
  with pytest.raises(TypeError, match=r"must be a tuple, as .* got 5"):
    config.data.globs = 5


def test_a_program_needs_no_progress():
  for function in (
    pretrain.train,
    search.search,
    merge.merge,
    evaluate.evaluate,
    quickstart.quickstart,
  ):
    assert inspect.signature(function).parameters["progress"].default is None
