"""Log-likelihoods of choices against transformers, of every family."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from jaxmerge.checkpoints import models  # noqa: E402
from jaxmerge.evaluation.evaluators.choices import Choices  # noqa: E402
from jaxmerge.parallel.mesh import make_mesh  # noqa: E402
from tests.evaluation.letters import CONTEXT, ITEMS, Letters  # noqa: E402
from tests.parity import their_models  # noqa: E402
from tests.parity.choice_logs import check_close, their_logs  # noqa: E402


@pytest.mark.parametrize("name", their_models.MODELS)
def test_log_likelihoods_are_theirs(name, tmp_path):
  theirs = their_models.make(name, tmp_path / "theirs")
  expected_NxC, tokens_NxC = their_logs(theirs, ITEMS, Letters(), CONTEXT)
  saved = models.load(tmp_path / "theirs")
  ours = Choices(
    saved.config,
    make_mesh(),
    ITEMS,
    Letters(),
    context=CONTEXT,
    batch_size=8,
  )
  found_NxC = ours.log_likelihoods(saved.params)
  check_close(found_NxC, expected_NxC, tokens_NxC, name)
