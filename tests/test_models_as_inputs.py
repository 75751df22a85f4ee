"""Hugging Face directories as inputs of search, evaluate and merge."""

import json
import shutil

import jax
import numpy as np
import pytest

from jaxmerge import convert, evaluate, merge, search
from jaxmerge.checkpoints.inputs import open_inputs
from jaxmerge.checkpoints.model_inputs import load_params, numbered, open_models
from jaxmerge.checkpoints.store import restore_params
from jaxmerge.errors import InputError
from jaxmerge.formats.records.metadata import abstract_params, read_metadata
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.parallel.rules import shardings
from tests.helpers import REPORT, config_of, quiet

STEPS = (8, 12)


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):
  """Exports of the run's steps, by step."""
  folder = tmp_path_factory.mktemp("exported")
  for step in STEPS:
    convert.convert(f"{tiny_run}@{step}", folder / f"step{step}", "hf")
  return [str(folder / f"step{step}") for step in STEPS]


@pytest.fixture
def foreign(exported, tmp_path):
  """The same without a word of where they come from."""
  for number, path in enumerate(exported, start=1):
    shutil.copytree(path, tmp_path / f"train_{number:03d}B")
    (tmp_path / f"train_{number:03d}B/jaxmerge.json").unlink()
  return [str(tmp_path / f"train_{n:03d}B") for n in (1, 2)]


def _same(a, b, metadata, **tolerance):
  """Equal but for the rows that pad the vocabulary, which are not exported."""
  size = metadata.model["vocab_size"]
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    padded = x.shape[0] > size and x.ndim == 2
    rows = slice(size if padded else None)
    np.testing.assert_allclose(x[rows], y[rows], **tolerance)


def _own_corpus(config):
  config.seq_len = 32
  config.data.source = "python_source"
  config.data.max_documents = 120
  return config


def _rows(workdir):
  return json.loads((workdir / f"{REPORT}/results.json").read_text())["rows"]


def test_the_parameters_are_those_of_the_step(tiny_run, exported):
  for path, step in zip(exported, STEPS):
    [model] = open_models([path])
    where = shardings(abstract_params(model.metadata), make_mesh())
    known = restore_params(tiny_run / f"checkpoints/{step}")
    _same(load_params(model, where), known, model.metadata, rtol=0)
    metadata = read_metadata(tiny_run / f"checkpoints/{step}")
    for key in ("step", "tokens", "run_id", "corpus", "data", "tokenizer"):
      assert getattr(model.metadata, key) == getattr(metadata, key), key


def test_a_search_finds_what_it_finds_among_the_steps(
  tiny_run, exported, tmp_path
):
  steps = [f"{tiny_run}@{step}" for step in STEPS]
  paths = []
  for name, inputs in (("steps", steps), ("theirs", exported)):
    # Nothing fits on the devices, so every merge is of what lies in storage.
    budget = 0.0003 if name == "theirs" else 0.0
    paths.append(
      search.search(
        config_of("search", memory_budget_gb=budget),
        tmp_path / name,
        inputs=inputs,
        progress=quiet,
      )
    )
  ours, theirs = _rows(tmp_path / "steps"), _rows(tmp_path / "theirs")
  assert [row["weights"] for row in ours] == [row["weights"] for row in theirs]
  for a, b in zip(ours, theirs):
    assert a["report_loss"] == pytest.approx(b["report_loss"], rel=1e-6)
  metadata = read_metadata(paths[1])
  assert metadata.kind == "merged"
  _same(*map(restore_params, paths), metadata, rtol=1e-6)


def test_a_foreign_model_needs_a_corpus_and_gets_numbers(foreign, tmp_path):
  with pytest.raises(InputError) as error:
    search.search(
      config_of("search"), tmp_path / "run", inputs=foreign, progress=quiet
    )
  assert "config.data.source" in str(error.value)
  assert "config.seq_len" in str(error.value)
  assert not (tmp_path / "run").exists()
  config = _own_corpus(config_of("search"))
  search.search(config, tmp_path / "run", inputs=foreign, progress=quiet)
  assert {key for row in _rows(tmp_path / "run") for key in row["weights"]} == {
    "1",
    "2",
  }
  results = json.loads((tmp_path / f"run/{REPORT}/results.json").read_text())
  assert results["tokens_saved"] is None
  page = (tmp_path / f"run/{REPORT}/report.html").read_text()
  assert "last merged step</th><td>not known" in page


def test_numbers_of_names_or_of_the_order(foreign, exported, tmp_path):
  assert [c.metadata.step for c in numbered(open_models(exported))] == [8, 12]
  assert [c.metadata.step for c in numbered(open_models(foreign))] == [1, 2]
  for name, path in zip(("b", "a"), foreign):
    shutil.copytree(path, tmp_path / name)
  plain = open_models([str(tmp_path / "b"), str(tmp_path / "a")])
  assert [c.metadata.step for c in numbered(plain)] == [1, 2]


def test_evaluate_takes_both_formats_together(tiny_run, exported):
  config = config_of("evaluate")
  rows = evaluate.evaluate(
    config, [f"{tiny_run}@8", exported[0], exported[1]], progress=quiet
  )
  assert rows[0].score.mean == rows[1].score.mean
  assert rows[1].delta == 0
  assert rows[2].delta < 0


@pytest.mark.parametrize("method", ["greedy", "fisher", "regmean"])
def test_what_measures_merges_their_directories_too(
  tiny_run, exported, tmp_path, method
):
  config = config_of("merge", "uniform")
  config.update({"method": method, "search_sequences": 8, "batch_size": 8})
  steps = [f"{tiny_run}@{step}" for step in STEPS]
  merge.merge(config, steps, tmp_path / "steps", progress=quiet)
  merge.merge(config, exported, tmp_path / "theirs", progress=quiet)
  [model] = open_models([str(tmp_path / "theirs")])
  where = shardings(abstract_params(model.metadata), make_mesh())
  merged = restore_params(tmp_path / "steps")
  theirs = load_params(model, where)
  _same(theirs, merged, model.metadata, rtol=1e-4, atol=1e-6)
  said = model.metadata.provenance
  assert said["method"] == method
  assert [source["step"] for source in said["sources"]] == list(STEPS)


@pytest.mark.parametrize(
  "text", ["", "[]", "{", '{"format": 1}', '{"format": 2, "kind": "x"}']
)
def test_a_damaged_origin_is_refused(exported, tmp_path, text):
  shutil.copytree(exported[0], tmp_path / "x")
  (tmp_path / "x/jaxmerge.json").write_text(text)
  for read in (open_inputs, open_models):
    with pytest.raises(InputError, match=r"jaxmerge\.json is damaged"):
      read([str(tmp_path / "x")])


def test_an_origin_with_values_of_other_kinds_is_refused(exported, tmp_path):
  shutil.copytree(exported[0], tmp_path / "x")
  path = tmp_path / "x/jaxmerge.json"
  value = json.loads(path.read_text())
  path.write_text(json.dumps({**value, "step": "8"}))
  with pytest.raises(InputError, match="its step is '8'"):
    open_models([str(tmp_path / "x")])
