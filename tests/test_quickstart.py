"""The main job in miniature: from nothing to a report, twice the same."""

import json
import os
import pathlib
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest

import jaxmerge
from jaxmerge import evaluate, merge, quickstart
from jaxmerge.checkpoints.store import restore_params
from jaxmerge.convert import convert
from jaxmerge.errors import InputError
from jaxmerge.formats.records.metadata import read_metadata
from jaxmerge.pretrain import train
from tests.helpers import REPORT, ROOT, config_of, quiet

VERBS = ("pretrain", "search", "evaluate")
ROW = (
  "name evaluations weights search_loss report_loss report_delta_vs_last "
  "report_delta_stderr report_clusters"
)


def tiny_configs() -> dict:
  return {verb: config_of(verb) for verb in VERBS}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> pathlib.Path:
  """A finished quickstart."""
  workdir = tmp_path_factory.mktemp("quickstart") / "run"
  quickstart.quickstart(workdir, tiny_configs(), progress=quiet)
  return workdir


def test_a_bad_config_stops_before_training(tmp_path):
  configs = tiny_configs()
  configs["search"].alpha = 1.0
  configs["evaluate"].split = "train set"
  with pytest.raises(InputError) as error:
    quickstart.quickstart(tmp_path / "run", configs, progress=quiet)
  assert [p.split(":")[0] for p in error.value.problems] == [
    "search",
    "evaluate",
  ]
  configs = tiny_configs()
  configs["search"].checkpoint_steps = (8, 10, 20)
  with pytest.raises(InputError, match=r"has 10.*\n.*has 20"):
    quickstart.quickstart(tmp_path / "run", configs, progress=quiet)
  assert not (tmp_path / "run").exists()


def test_results_have_their_exact_shape(workdir):
  results = json.loads((workdir / f"{REPORT}/results.json").read_text())
  assert list(results) == [
    *("study", "rows", "tokens_trained", "tokens_saved", "precision")
  ]
  known = results["precision"]
  assert list(known) == ["stderr", "excess", "advice", "passes"]
  [stderr] = known["stderr"].values()
  assert list(stderr) == ["8", "12"]
  rows = {row["name"]: row for row in results["rows"]}
  assert list(rows) == [
    "last",
    "step_4",
    "step_8",
    "uniform",
    "grid",
    "gp_hedge",
  ]
  for row in rows.values():
    assert list(row) == ROW.split()
    assert np.isclose(sum(row["weights"].values()), 1.0)
  assert rows["last"]["weights"] == {"8": 0.0, "12": 1.0}
  assert rows["last"]["report_delta_vs_last"] == 0.0
  assert rows["grid"]["evaluations"] == rows["gp_hedge"]["evaluations"] == 5
  assert rows["gp_hedge"]["search_loss"] <= rows["last"]["search_loss"]
  assert results["tokens_trained"] == 12 * 8 * 32


def test_the_report_has_its_figures(workdir):
  names = {p.name for p in (workdir / REPORT).iterdir()}
  figures = {"training_curve", "posterior", "convergence", "baselines"}
  assert names >= {f"{name}.png" for name in figures}
  page = (workdir / f"{REPORT}/report.html").read_text()
  assert page.count("data:image/png;base64,") >= 4


def test_the_merged_checkpoint_is_one_like_any_other(workdir):
  path = workdir / "search/pair/merged/12"
  metadata = read_metadata(path)
  assert metadata.kind == "merged"
  sources = metadata.provenance["sources"]
  assert [source["step"] for source in sources] == [8, 12]
  weights = [source["weight"] for source in sources]
  trees = [restore_params(workdir / f"checkpoints/{s}") for s in (8, 12)]
  by_hand = jaxmerge.weighted_average(trees, weights)
  jax.tree.map(np.testing.assert_array_equal, restore_params(path), by_hand)
  logits = jaxmerge.load_model(path)(np.zeros((1, 4), np.int32))
  assert logits.shape == (1, 4, metadata.model["vocab_size"])


def test_the_card_of_an_exported_merge_has_the_searchs_numbers(
  workdir, tmp_path
):
  path = workdir / "search/pair/merged/12"
  results = json.loads((workdir / f"{REPORT}/results.json").read_text())
  last, merged = results["rows"][0], results["rows"][-1]
  measured = read_metadata(path).provenance["search"]
  assert measured["last"] == last["report_loss"]
  assert measured["merged"] == merged["report_loss"]
  assert measured["delta"] == merged["report_delta_vs_last"]
  assert measured["stderr"] == merged["report_delta_stderr"]
  assert (workdir / measured["report"]).exists()
  convert(str(path), tmp_path / "hf", "hf")
  card = (tmp_path / "hf/README.md").read_text()
  delta, stderr = measured["delta"], measured["stderr"]
  assert f"{measured['merged']:.4f} | {delta:+.4f} +- {stderr:.4f} |" in card
  assert f"`{REPORT}/report.html`" in card
  assert "AutoTokenizer" in card
  assert "| run@8 |" in card
  assert str(workdir) not in card


def test_a_merge_is_not_scored_on_what_it_was_chosen_by(workdir, tmp_path):
  merged = workdir / "search/pair/merged/12"
  [seen] = read_metadata(merged).provenance["search"]["seen"]
  assert (seen["split"], seen["items"]) == ("search", 16)
  convert(str(merged), tmp_path / "hf", "hf")
  inputs = [f"{workdir}@12", str(merged), str(tmp_path / "hf")]
  config = config_of("evaluate", split="search")
  with pytest.raises(InputError) as error:
    evaluate.evaluate(config, inputs, progress=quiet)
  assert [p.partition(":")[0] for p in error.value.problems] == inputs[1:]
  assert "--allow_seen" in error.value.problems[0]
  evaluate.evaluate(config, inputs, allow_seen=True, progress=quiet)
  evaluate.evaluate(config, inputs[:1], progress=quiet)


def test_the_same_command_again_changes_nothing(workdir, trials_of):
  report = workdir / f"{REPORT}/report.html"
  before = trials_of(workdir), report.read_bytes()
  quickstart.quickstart(workdir, tiny_configs(), progress=quiet)
  assert (trials_of(workdir), report.read_bytes()) == before


def test_another_search_of_the_same_name_is_refused(workdir):
  configs = tiny_configs()
  configs["search"].seed = 1
  with pytest.raises(InputError, match="seed"):
    quickstart.quickstart(workdir, configs, progress=quiet)


def test_a_run_starts_from_a_merged_checkpoint_but_never_resumes_it(
  workdir, tmp_path
):
  config = config_of("pretrain")
  config.num_steps = 4
  merged = workdir / "search/pair/merged/12"
  train(config, tmp_path / "child", init_from=str(merged), progress=quiet)
  child = read_metadata(tmp_path / "child/checkpoints/4")
  assert child.parent == str(merged)
  assert child.run_id != read_metadata(merged).run_id
  first = json.loads(
    (tmp_path / "child/metrics.jsonl").read_text().splitlines()[0]
  )
  assert first["loss"] < 5.6  # a random start begins at log(300) = 5.7
  impostor = tmp_path / "child/checkpoints/5"
  impostor.symlink_to(merged)
  with pytest.raises(InputError, match="merged, not trained"):
    train(config, tmp_path / "child", init_from=str(merged), progress=quiet)


def test_merging_by_hand(workdir, tmp_path):
  config = config_of("merge", "weights")
  inputs = [f"{workdir}@4", f"{workdir}@8"]
  output = tmp_path / "merged"
  for dry_run in (True, False):
    assert not output.exists()
    merge.merge(
      config,
      inputs,
      output,
      weights=[1, 3],
      dry_run=dry_run,
      progress=quiet,
    )
  trees = [restore_params(workdir / f"checkpoints/{s}") for s in (4, 8)]
  expected = jax.tree.map(lambda a, b: 0.25 * a + 0.75 * b, *trees)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8),
    restore_params(output),
    expected,
  )
  config.method = "uniform"
  with pytest.raises(InputError, match="overwrite"):
    merge.merge(config, inputs, output, progress=quiet)
  merge.merge(config, inputs, output, overwrite=True, progress=quiet)
  assert read_metadata(output).provenance["method"] == "uniform"


def test_an_installed_wheel_gives_the_same_bits_outside_the_checkout(
  workdir, tmp_path
):
  subprocess.run(
    [
      *(sys.executable, "-m", "build", "--wheel", "--no-isolation"),
      *("--outdir", str(tmp_path), str(ROOT)),
    ],
    check=True,
    capture_output=True,
  )
  [wheel] = tmp_path.glob("*.whl")
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(tmp_path / "site")
  elsewhere = tmp_path / "elsewhere"
  elsewhere.mkdir()
  env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
  where = subprocess.run(
    [sys.executable, "-c", "import jaxmerge; print(jaxmerge.__file__)"],
    cwd=elsewhere,
    env=env,
    capture_output=True,
    text=True,
    check=True,
  )
  assert str(tmp_path / "site") in where.stdout
  configs = [f"--{verb}=configs/{verb}/tiny.py" for verb in VERBS]
  done = subprocess.run(
    [sys.executable, "-m", "jaxmerge.quickstart", *configs],
    cwd=elsewhere,
    env=env,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  again = elsewhere / "runs/quickstart"
  for name in (f"{REPORT}/results.json", "metrics.jsonl"):
    assert (again / name).read_text() == (workdir / name).read_text()
  leaves = [
    read_metadata(w / "search/pair/merged/12").leaves for w in (again, workdir)
  ]
  assert leaves[0] == leaves[1]
