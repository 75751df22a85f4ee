"""The recipes of docs/from_mergekit.md, run as a reader would."""

import re

import numpy as np
import yaml

from tests.helpers import ROOT
from tests.merging.fixtures import command, hugging_face


def test_every_recipe_of_the_page(tmp_path, monkeypatch, capsys):
  page = (ROOT / "docs/from_mergekit.md").read_text()
  theirs, ours = (
    re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL)
    for kind in ("yaml", "python")
  )
  assert len(theirs) == len(ours) == len(re.findall(r"\n## [a-z_]+\n", page))
  for seed, name in enumerate(("base", "model_a", "model_b")):
    noise = np.random.default_rng(seed).normal(size=(40, 8))
    hugging_face(tmp_path / name, {"w": noise.astype(np.float32)})
  monkeypatch.chdir(tmp_path)
  for recipe, text in zip(theirs, ours):
    known = yaml.safe_load(recipe)
    (tmp_path / "recipe.py").write_text(text)
    output = f"--output={known['merge_method']}"
    assert command("--config=recipe.py", output) == 0, capsys.readouterr()
  readme, about = (ROOT / "README.md", ROOT / "docs/merge.md")
  assert "docs/from_mergekit.md" in readme.read_text()
  assert "(from_mergekit.md)" in about.read_text()
