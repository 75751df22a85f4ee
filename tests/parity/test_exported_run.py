"""An exported run in transformers: loads, tokenizes, pads and generates."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import jaxmerge  # noqa: E402
from jaxmerge.convert import convert  # noqa: E402
from jaxmerge.formats.records.metadata import read_metadata  # noqa: E402

TEXTS = ["import os", "x = [1 , 2] # 好"]


@pytest.fixture(scope="module")
def path(tiny_run, tmp_path_factory):
  path = tmp_path_factory.mktemp("exported") / "hf"
  convert(f"{tiny_run}@8", path, "hf")
  return path


@pytest.fixture
def theirs(path):
  load = transformers.AutoModelForCausalLM.from_pretrained
  return load(path).eval(), transformers.AutoTokenizer.from_pretrained(path)


def test_its_tokens_are_those_of_the_run(theirs, tiny_run):
  _, tokenizer = theirs
  [ours] = read_metadata(tiny_run / "checkpoints/8").tokenizers()
  ids = tokenizer(TEXTS)["input_ids"]
  assert ids == ours.encode_batch(TEXTS)
  assert [tokenizer.decode(row) for row in ids] == TEXTS
  ends = tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token
  assert ends == ("<|endoftext|>",) * 3
  assert tokenizer.bos_token_id == ours.end_of_text
  assert tokenizer.model_max_length == 32


def test_a_padded_batch_generates_what_each_text_does(theirs, path):
  model, tokenizer = theirs
  assert model.config.max_position_embeddings == 32
  assert model.generation_config.pad_token_id == 0

  def generated(texts):
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    done = model.generate(**batch, min_new_tokens=20, max_new_tokens=20)
    return batch, done[:, batch["input_ids"].shape[1] :].numpy()

  batch, together = generated(TEXTS)
  assert batch["attention_mask"].sum() < batch["input_ids"].numel()
  assert together.shape == (2, 20)
  for text, row in zip(TEXTS, together):
    alone, [tokens] = generated([text])
    np.testing.assert_array_equal(row, tokens)
    ids = alone["input_ids"].numpy().astype(np.int32)
    logits_V = np.asarray(jaxmerge.load_model(path)(ids))[0, -1]
    # min_new_tokens forbids the end of a text, id 0
    assert tokens[0] == 1 + logits_V[1:].argmax()
