"""Merges whose weights Newton's method finds, against the search verb."""

import re
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmerge import convert, evaluate, merge, search
from jaxmerge.checkpoints.inputs import open_inputs
from jaxmerge.checkpoints.model_inputs import load_params, open_models
from jaxmerge.checkpoints.store import restore_params
from jaxmerge.errors import InputError
from jaxmerge.evaluation.merged_loss import MergedLoss
from jaxmerge.files import human_bytes
from jaxmerge.formats.records.metadata import abstract_params, read_metadata
from jaxmerge.merging import resident
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.parallel.rules import shardings
from jaxmerge.progress import Progress
from tests.helpers import config_of, contents, quiet

STEPS = (4, 8, 12)


class _Notes(Progress):
  """Keeps what is said of a merge."""

  def __init__(self):
    self.notes = []

  def note(self, name, text):
    self.notes.append((name, text))


def _config(**keys):
  config = config_of("merge", "uniform")
  config.update({"method": "newton", "search_sequences": 8, "batch_size": 8})
  config.update(keys)
  return config


def _searched(tiny_run, tmp_path, **keys):
  """The weights by group that the search verb recommends."""
  config = config_of("search", "tiny")
  config.update({"checkpoint_steps": STEPS, "num_trials": 12, "baselines": ()})
  config.update({"solver": "newton", "search_sequences": 8, "batch_size": 8})
  config.update(keys)
  inputs = [f"{tiny_run}@{step}" for step in STEPS]
  path = search.search(config, tmp_path / "s", inputs=inputs, progress=quiet)
  return read_metadata(path).provenance


@pytest.mark.parametrize(
  "keys", [{}, {"layer_groups": "layer", "negative": True}]
)
def test_it_is_the_merge_of_a_search(tiny_run, tmp_path, keys):
  inputs = [f"{tiny_run}@{step}" for step in STEPS]
  merge.merge(_config(**keys), inputs, tmp_path / "m", progress=quiet)
  said = read_metadata(tmp_path / "m").provenance
  wanted = _searched(tiny_run, tmp_path, **keys)
  weights = [[s["weight"] for s in p["sources"]] for p in (said, wanted)]
  np.testing.assert_allclose(*weights, atol=1e-9)
  rows, others = (list(p.get("groups", {}).values()) for p in (said, wanted))
  np.testing.assert_allclose(rows, others, atol=1e-9)
  assert said["method"] == "newton"
  assert bool(rows) == bool(keys)
  # So early in a run only what goes beyond it is better than the last step.
  assert (weights[0] != [0.0, 0.0, 1.0]) == bool(keys)


def test_a_killed_merge_leaves_no_study(tiny_run, tmp_path, monkeypatch):
  """Nor is there one while it is at work, which may end at any time."""
  folder = tmp_path / "temporary"
  folder.mkdir()
  monkeypatch.setattr(tempfile, "tempdir", str(folder))
  score, there = MergedLoss.score, []

  def looking(*arguments, **named):
    there.extend(folder.rglob("*"))
    there.extend(tmp_path.rglob("*journal*"))
    return score(*arguments, **named)

  monkeypatch.setattr(MergedLoss, "score", looking)
  inputs = [f"{tiny_run}@{step}" for step in STEPS]
  merge.merge(_config(), inputs, tmp_path / "m", progress=quiet)
  assert there == []


def test_any_order_of_inputs_gives_the_same(tiny_run, tmp_path):
  inputs = [f"{tiny_run}@{step}" for step in STEPS]
  merge.merge(_config(), inputs, tmp_path / "a", progress=quiet)
  merge.merge(_config(), inputs[::-1], tmp_path / "b", progress=quiet)
  trees = [restore_params(tmp_path / name) for name in ("a", "b")]
  jax.tree.map(np.testing.assert_array_equal, *trees)


@pytest.mark.parametrize(
  ("ours", "theirs"),
  [
    ("attention_mlp", "attention_mlp"),
    ("*.query.*,layers.0.*", "*.q_proj.*,model.layers.0.*"),
  ],
)
def test_directories_are_merged_as_their_models_are(
  tiny_run, tmp_path, ours, theirs
):
  of_ours, of_theirs = (
    _config(layer_groups=text, negative=True) for text in (ours, theirs)
  )
  steps = [f"{tiny_run}@{step}" for step in STEPS]
  directories = [str(tmp_path / f"step{step}") for step in STEPS]
  for one, other in zip(steps, directories):
    convert.convert(one, other, "hf")
  merge.merge(of_ours, steps, tmp_path / "m", progress=quiet)
  merge.merge(of_theirs, directories, tmp_path / "t", progress=quiet)
  [model] = open_models([str(tmp_path / "t")])
  where = shardings(abstract_params(model.metadata), make_mesh())
  size = model.metadata.model["vocab_size"]

  def same(a, b):
    # Rows that pad the vocabulary are not exported.
    rows = slice(size if a.ndim == 2 and a.shape[0] > size else None)
    np.testing.assert_allclose(a[rows], b[rows], rtol=1e-4, atol=1e-6)

  merged = restore_params(tmp_path / "m")
  jax.tree.map(same, load_params(model, where), merged)
  groups = [
    read_metadata(tmp_path / "m").provenance["groups"],
    model.metadata.provenance["groups"],
  ]
  np.testing.assert_allclose(
    [*groups[0].values()], [*groups[1].values()], atol=1e-4
  )
  names = [list(rows) for rows in groups]
  if ours == theirs:
    assert names[0] == names[1]
  else:
    assert names == [[*t.split(","), "rest"] for t in (ours, theirs)]


def test_a_plan_measures_nothing(tiny_run, tmp_path, capsys):
  inputs = [f"{tiny_run}@{step}" for step in STEPS]
  config = _config(layer_groups="2", negative=True)
  merge.merge(config, inputs, tmp_path / "m", dry_run=True, progress=quiet)
  plan = capsys.readouterr().out
  # Four groups, two differences of checkpoints in each.
  assert "of 8 sequences, 8 directions); a step: 1" in plan
  assert "weights of each group from -1 to 2" in plan
  params = restore_params(tiny_run / "checkpoints/12")
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  # The inputs, two merges and what derivatives are made of.
  assert f"trees on the devices, {human_bytes(6 * size)} in all" in plan
  assert "newton" in plan
  assert "the time of measuring" in plan
  assert not (tmp_path / "m").exists()


def test_the_memory_of_devices_is_not_the_hosts(
  tiny_run, tmp_path, monkeypatch
):
  """Where nobody says how much there is, each is asked."""
  asked = []
  monkeypatch.setattr(
    resident, "device_budget", lambda gb: asked.append(gb) or 2**40
  )
  inputs = [f"{tiny_run}@{step}" for step in STEPS]
  for given in (0.0, 3.0):
    merge.merge(
      _config(),
      inputs,
      tmp_path / "m",
      memory_budget_gb=given,
      dry_run=True,
      progress=quiet,
    )
  assert asked == [0.0, 3.0]


def test_bad_groups_are_told_once(tiny_run, tmp_path):
  inputs = [f"{tiny_run}@{step}" for step in STEPS]
  with pytest.raises(InputError) as caught:
    merge.merge(
      _config(layer_groups="@@"), inputs, tmp_path / "m", progress=quiet
    )
  assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
  ("keys", "told"),
  [
    ({"layer_groups": "model.embed*"}, "matches no parameter"),
    ({"layer_groups": "99"}, "layers"),
    ({"layer_groups": "0"}, "must be empty"),
  ],
)
def test_groups_that_it_cannot_have(tiny_run, tmp_path, keys, told):
  inputs = [f"{tiny_run}@{step}" for step in STEPS]
  with pytest.raises(InputError, match=told):
    merge.merge(
      _config(**keys), inputs, tmp_path / "m", dry_run=True, progress=quiet
    )
  assert not (tmp_path / "m").exists()


def test_weights_are_not_typed(tiny_run, tmp_path):
  inputs = [f"{tiny_run}@{step}" for step in STEPS]
  with pytest.raises(InputError, match="takes no --weights"):
    merge.merge(
      _config(), inputs, tmp_path / "m", weights=[1, 1, 1], progress=quiet
    )


def test_identical_inputs_give_themselves(tiny_run, tmp_path):
  inputs = [f"{tiny_run}@12"] * 3
  told = _Notes()
  merge.merge(_config(layer_groups="2"), inputs, tmp_path / "m", progress=told)
  [note] = [text for name, text in told.notes if name == "newton"]
  found = re.fullmatch(r"loss (\S+) on .* after \d trials, (\S+) of .*", note)
  assert found[1] == found[2]
  [source] = open_inputs(inputs[:1])
  before = restore_params(source.path)
  after = restore_params(tmp_path / "m")
  jax.tree.map(np.testing.assert_array_equal, before, after)


def test_inf_is_refused(tiny_run, tmp_path):
  convert.convert(f"{tiny_run}@8", tmp_path / "bad", "hf")
  convert.convert(f"{tiny_run}@12", tmp_path / "good", "hf")
  from safetensors.numpy import load_file, save_file

  file = tmp_path / "bad/model.safetensors"
  tensors = load_file(file)
  name = next(n for n in tensors if n.endswith("q_proj.weight"))
  tensors[name][0, 0] = jnp.inf
  save_file(tensors, file, metadata={"format": "pt"})
  (tmp_path / "bad/jaxmerge.json").unlink()
  (tmp_path / "good/jaxmerge.json").unlink()
  config = _config(seq_len=32)
  config.data.source = "python_source"
  before = contents(tmp_path)
  with pytest.raises(InputError, match="bad has parameters that are not fin"):
    merge.merge(
      config,
      [str(tmp_path / name) for name in ("bad", "good")],
      tmp_path / "m",
      allow_unrelated=True,
      progress=quiet,
    )
  assert contents(tmp_path) == before


@pytest.mark.parametrize("method", ["newton", "fisher"])
def test_it_says_what_it_has_measured(tiny_run, tmp_path, method):
  """And so does a merge of it; evaluate refuses to score them on that."""
  inputs = [f"{tiny_run}@{step}" for step in STEPS]
  config = _config(method=method)
  merge.merge(config, inputs, tmp_path / "m", progress=quiet)
  [seen] = read_metadata(tmp_path / "m").provenance["search"]["seen"]
  assert (seen["split"], seen["items"]) == ("search", 8)
  again = [str(tmp_path / "m"), inputs[0]]
  merge.merge(
    config_of("merge", "uniform"), again, tmp_path / "n", progress=quiet
  )
  assert read_metadata(tmp_path / "n").provenance["search"]["seen"] == [seen]
  # What a merge starts from is in it too.
  config = config_of(
    "merge", "uniform", method="task_arithmetic", base=again[0]
  )
  merge.merge(config, inputs[:2], tmp_path / "b", progress=quiet)
  assert read_metadata(tmp_path / "b").provenance["search"]["seen"] == [seen]
  asked = config_of("evaluate", split="search")
  with pytest.raises(InputError, match="searched on the search split"):
    evaluate.evaluate(asked, [str(tmp_path / "n")], progress=quiet)
  evaluate.evaluate(
    asked, [str(tmp_path / "n")], allow_seen=True, progress=quiet
  )
