"""The recipes of docs/from_mergekit.md, run as a reader would."""

import re

import numpy as np
import yaml

from tests.helpers import ROOT
from tests.merging.fixtures import command, hugging_face, loaded

LAYERS = 4
NAMES = (
  "model.embed_tokens.weight",
  *(
    f"model.layers.{layer}.{name}.weight"
    for layer in range(LAYERS)
    for name in ("input_layernorm", "self_attn.q_proj", "mlp.up_proj")
  ),
  "model.norm.weight",
)


def _tensors(seed):
  rng = np.random.default_rng(seed)
  return {n: rng.normal(size=(8, 4)).astype(np.float32) for n in NAMES}


def test_every_recipe_of_the_page(tmp_path, monkeypatch, capsys):
  page = (ROOT / "docs/from_mergekit.md").read_text()
  theirs, ours = (
    re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL)
    for kind in ("yaml", "python")
  )
  titles = re.findall(r"\n## ([a-z_]+)\n", page)
  assert len(theirs) == len(ours) == len(titles)
  for seed, name in enumerate(("base", "model_a", "model_b")):
    hugging_face(tmp_path / name, _tensors(seed))
  monkeypatch.chdir(tmp_path)
  for title, recipe, text in zip(titles, theirs, ours):
    known = yaml.safe_load(recipe)
    assert known["merge_method"] == (
      "linear" if title in ("filter", "gradient") else title
    )
    (tmp_path / "recipe.py").write_text(text)
    output = f"--output={title}"
    assert command("--config=recipe.py", output) == 0, capsys.readouterr()
    if title in ("filter", "gradient"):
      _check(
        tmp_path / title, [m["parameters"]["weight"] for m in known["models"]]
      )
  readme, about = (ROOT / "README.md", ROOT / "docs/merge.md")
  assert "docs/from_mergekit.md" in readme.read_text()
  assert "(from_mergekit.md)" in about.read_text()


def _check(path, settings):
  """Compares with the weights that mergekit's documentation says."""
  models = [_tensors(1), _tensors(2)]
  for name, found in loaded(path).items():
    weights = [_weight(name, setting) for setting in settings]
    expected = sum(w * model[name] for w, model in zip(weights, models))
    np.testing.assert_allclose(found, expected / sum(weights), atol=1e-6)


def _weight(name, setting):
  """The first filter that the name contains, or a place in a list."""
  if isinstance(setting[0], dict):
    return next(s["value"] for s in setting if s.get("filter", "") in name)
  layer = re.search(r"layers\.(\d+)\.", name)
  depth = int(layer[1]) / (LAYERS - 1) if layer else float("embed" not in name)
  return np.interp(depth * (len(setting) - 1), range(len(setting)), setting)
