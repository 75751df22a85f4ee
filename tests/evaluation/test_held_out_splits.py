"""Models whose only tokenizer is a SentencePiece one are scored with it."""

import base64
import dataclasses
import pathlib

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxmerge import evaluate
from jaxmerge.checkpoints import model_inputs
from jaxmerge.checkpoints.compatibility import check_comparable
from jaxmerge.checkpoints.inputs import open_inputs
from jaxmerge.convert import convert
from jaxmerge.errors import InputError
from jaxmerge.evaluation.evaluator import Setting
from jaxmerge.evaluation.evaluators.heldout_loss import heldout_loss
from jaxmerge.evaluation.held_out_splits import (
  open_scorer,
  text_of,
  tokenizer_of,
)
from jaxmerge.files import write_json
from jaxmerge.formats.lazy_tensors import leaves_of
from jaxmerge.formats.records.metadata import read_metadata
from jaxmerge.huggingface.families import table
from jaxmerge.huggingface.families.family import FAMILIES
from jaxmerge.huggingface.vocabularies import vocabulary_difference
from jaxmerge.parallel.mesh import make_mesh
from tests.helpers import Device, config_of, decoder, quiet, random_params

TESTS = pathlib.Path(__file__).parent.parent
LLAMA, BAICHUAN = (
  (TESTS / f"data/sentencepiece/{name}.model").read_bytes()
  for name in ("llama", "baichuan")
)
CONFIG = decoder(vocab_size=400, num_hidden_layers=1, num_attention_heads=2)


def theirs(path, seed, content):
  """A Hugging Face directory with a tokenizer.model and no tokenizer.json."""
  params = random_params(CONFIG, seed)
  path.mkdir()
  tensors = dict(table.to_tensors(leaves_of(params), CONFIG, FAMILIES["llama"]))
  save_file(tensors, path / "model.safetensors")
  write_json(path / "config.json", FAMILIES["llama"].write_config(CONFIG))
  (path / "tokenizer.model").write_bytes(content)
  return str(path)


@pytest.fixture
def texts(tmp_path):
  folder = tmp_path / "texts"
  folder.mkdir()
  for number in range(60):
    text = f"Document {number}: it is 你好 {number * 7} times.\n" * 3
    (folder / f"{number}.txt").write_text(text)
  return folder


def test_they_are_evaluated_and_get_no_other_tokenizer(tmp_path, texts):
  inputs = [theirs(tmp_path / f"{i}", i, LLAMA) for i in range(2)]
  config = config_of("evaluate")
  config.data.source = "text_files"
  config.data.globs = (str(texts / "*.txt"),)
  config.seq_len = 32
  rows = evaluate.evaluate(config, inputs, progress=quiet)
  nats = np.array([row.score.mean for row in rows])
  # Random weights: about as likely as any other token.
  np.testing.assert_allclose(nats, np.log(400), atol=1)
  bits = np.array([row.score.extras["bits/byte"] for row in rows])
  bytes_per_token = nats / np.log(2) / bits
  assert (bytes_per_token > 1).all()
  assert (bytes_per_token < 2).all()
  convert(inputs[0], tmp_path / "orbax", "orbax")
  assert read_metadata(tmp_path / "orbax").tokenizer == ""
  convert(str(tmp_path / "orbax"), tmp_path / "back", "hf")
  assert (tmp_path / "back/tokenizer.model").read_bytes() == LLAMA
  assert not (tmp_path / "back/tokenizer.json").exists()


def test_other_tokenizer_models_are_other_tokenizers(tmp_path):
  same = [theirs(tmp_path / f"{i}", i, LLAMA) for i in range(2)]
  other = theirs(tmp_path / "other", 2, BAICHUAN)
  for opened in (open_inputs, model_inputs.open_models):
    a, b, c = opened([*same, other])
    check_comparable([a, b])
    with pytest.raises(InputError, match="tokenizer"):
      check_comparable([a, c])


def test_the_tokenizer_is_the_checkpoints_own(tiny_run):
  metadata = read_metadata(tiny_run / "checkpoints/8")
  carried = {"tokenizer.model": base64.b64encode(BAICHUAN).decode()}
  with_both = dataclasses.replace(metadata, files=carried)
  assert tokenizer_of(with_both).content == metadata.tokenizer.encode()
  assert not vocabulary_difference(with_both, metadata)
  alone = dataclasses.replace(with_both, tokenizer="")
  assert tokenizer_of(alone).content == BAICHUAN
  assert vocabulary_difference(alone, metadata)
  mesh = make_mesh(data=-1, fsdp=1, tensor=1)
  setting = Setting(alone, mesh, 8, allow_unrelated=True)
  scorer = open_scorer(setting, lambda text: None, heldout_loss)
  assert scorer.corpus.tokenizer.bytes_per_token_V.shape == (400,)
  assert scorer.corpus.parts[""].splits["search"].end_of_text == 2


def test_sequences_that_the_mesh_does_not_divide_are_refused(tiny_run):
  metadata = read_metadata(tiny_run / "checkpoints/8")
  devices = [Device(i) for i in range(2)]
  mesh = make_mesh(data=1, context=2, devices=devices)
  assert text_of(Setting(metadata, mesh, 8))[2] == 32
  with pytest.raises(InputError, match=r"33 is not a multiple of .*context 2"):
    text_of(Setting(metadata, mesh, 8, seq_len=33))


def test_one_without_a_tokenizer_or_with_a_damaged_one_is_refused(tiny_run):
  metadata = read_metadata(tiny_run / "checkpoints/8")
  none = dataclasses.replace(metadata, tokenizer="")
  with pytest.raises(InputError, match="carries no tokenizer"):
    tokenizer_of(none)
  damaged = base64.b64encode(LLAMA[:1000]).decode()
  files = {"tokenizer.model": damaged}
  with pytest.raises(InputError, match=r"tokenizer\.model cannot be used"):
    tokenizer_of(dataclasses.replace(none, files=files))
