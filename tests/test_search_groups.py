"""The search verb with weights for groups of parameters by a text."""

import jax
import numpy as np
import pytest

from jaxmerge import search
from jaxmerge.checkpoints.store import restore_params
from jaxmerge.errors import InputError
from jaxmerge.formats.records.metadata import read_metadata
from jaxmerge.merging.average import grouped_average
from jaxmerge.merging.groups import groups_of
from tests.helpers import REPORT, config_of, contents, quiet


def _config(text):
  return config_of(
    "search",
    checkpoint_steps=(8, 12),
    num_trials=3,
    batch_size=4,
    baselines=(),
    layer_groups=text,
  )


def test_the_merge_has_the_weights_of_its_groups(workdir):
  text = "*.attention*, embed.*"
  path = search.search(_config(text), workdir, progress=quiet)
  trees = [restore_params(workdir / f"checkpoints/{s}") for s in (8, 12)]
  groups = groups_of(trees[0], text)
  known = read_metadata(path).provenance["groups"]
  assert tuple(known) == groups.names_G
  expected = grouped_average(trees, [*known.values()], groups)
  jax.tree.map(np.testing.assert_array_equal, restore_params(path), expected)
  page = (workdir / f"{REPORT}/report.html").read_text()
  assert f"weights of {groups.names_G[1]}" in page


def test_texts_that_the_model_does_not_know(workdir):
  before = contents(workdir)
  for text, words in (
    ("layers.*,layers.7.*", r"'layers\.7\.\*' matches no parameter"),
    ("router.*", r"there are embed\.embedding"),
    ("4,*", r"config\.layer_groups must be empty, a number of bands"),
  ):
    with pytest.raises(InputError, match=words):
      search.search(_config(text), workdir, progress=quiet)
  assert contents(workdir) == before
