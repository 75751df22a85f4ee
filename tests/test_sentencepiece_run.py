"""A run with a tokenizer.model: trained, scored, merged, exported with it."""

import base64
import dataclasses
import json
import pathlib
import shutil

import pytest

from jaxmerge import convert, evaluate, merge, pretrain, runner
from jaxmerge.checkpoints import model_inputs
from jaxmerge.checkpoints.compatibility import (
  check_comparable,
  check_mergeable,
)
from jaxmerge.checkpoints.inputs import open_inputs
from jaxmerge.data.tokenizers.sentence_piece import SentencePieceTokenizer
from jaxmerge.errors import InputError
from jaxmerge.formats.records.metadata import read_metadata
from jaxmerge.training.start import start_problems
from tests.helpers import quiet

ROOT = pathlib.Path(__file__).parent.parent
MODELS = ROOT / "tests/data/sentencepiece"
CONTENT = (MODELS / "llama.model").read_bytes()
ENCODED = base64.b64encode(CONTENT).decode()


def config_of(path, **changes):
  config = runner.load_config(str(ROOT / "configs/pretrain/tiny.py"))
  config.num_steps = 8
  config.data.vocab_size = 0 if path else 300
  config.data.tokenizer_path = str(path)
  config.update(changes)
  return config


@pytest.fixture(scope="module")
def model_run(tmp_path_factory):
  """Steps 4 and 8, and a tokenizer.model of which its config knows the path."""
  folder = tmp_path_factory.mktemp("sentencepiece")
  shutil.copy(MODELS / "llama.model", folder / "mine.model")
  config = config_of(folder / "mine.model")
  pretrain.train(config, folder / "run", progress=quiet)
  return folder


def test_a_run_keeps_its_model_and_goes_on(model_run, tmp_path):
  run = shutil.copytree(model_run / "run", tmp_path / "run")
  assert (run / "tokenizer.model").read_bytes() == CONTENT
  assert not (run / "tokenizer.json").exists()
  metadata = read_metadata(run / "checkpoints/8")
  assert metadata.tokenizer == ""
  assert metadata.files == {"tokenizer.model": ENCODED}
  assert metadata.model["vocab_size"] == 400
  path = model_run / "mine.model"
  pretrain.train(config_of(path, num_steps=12), run, progress=quiet)
  assert (run / "checkpoints/12").is_dir()
  (run / "tokenizer.model").write_bytes((MODELS / "unigram.model").read_bytes())
  with pytest.raises(InputError, match=r"its tokenizer\.model is not that"):
    pretrain.train(config_of(path, num_steps=16), run, progress=quiet)
  assert not (run / "checkpoints/16").exists()


def test_it_is_scored_exported_and_merged_with_it(model_run, tmp_path):
  run, export = model_run / "run", tmp_path / "hf"
  convert.convert(f"{run}@8", export, "hf")
  assert (export / "tokenizer.model").read_bytes() == CONTENT
  assert not (export / "tokenizer.json").exists()
  described = json.loads((export / "config.json").read_text())
  assert described["eos_token_id"] == described["bos_token_id"] == 2
  config = runner.load_config(str(ROOT / "configs/evaluate/tiny.py"))
  merge.main(
    [
      f"--config={ROOT}/configs/merge/uniform.py",
      f"--inputs={run}@4,{run}@8",
      f"--output={tmp_path}/merged",
    ]
  )
  merged = read_metadata(tmp_path / "merged")
  assert merged.files == {"tokenizer.model": ENCODED}
  inputs = [f"{run}@8", str(export), str(tmp_path / "merged")]
  rows = evaluate.evaluate(config, inputs, progress=quiet)
  bits = [row.score.extras["bits/byte"] for row in rows]
  assert bits[0] == bits[1]
  assert 3 < bits[2] < 10


def test_a_start_needs_the_tokenizer_of_its_checkpoint(model_run, tmp_path):
  run = model_run / "run"
  start = f"{run}@8"
  other = config_of(MODELS / "unigram.model")
  with pytest.raises(InputError, match="its tokenizer is another one"):
    pretrain.train(other, tmp_path / "a", init_from=start, progress=quiet)
  with pytest.raises(InputError, match=r"its own as .* tokenizer\.model"):
    pretrain.train(
      config_of(""), tmp_path / "b", init_from=start, progress=quiet
    )
  assert not (tmp_path / "b").exists()
  pretrain.train(
    config_of(run / "tokenizer.model", num_steps=1),
    tmp_path / "c",
    init_from=start,
    progress=quiet,
  )


def test_a_json_of_the_same_names_may_start_from_a_model(model_run, tiny_run):
  """As runs did that began with a tokenizer.json made from a model."""
  [checkpoint] = model_inputs.open_models([f"{model_run / 'run'}@8"])
  config = config_of("").model

  def problems(tokenizer):
    from jaxmerge.model.config import DecoderConfig

    model = DecoderConfig(vocab_size=400, **config)
    return start_problems(checkpoint, model, tokenizer)

  model = SentencePieceTokenizer(CONTENT)
  assert problems(model) == []
  model.file_name, model.hash = "tokenizer.json", "another"
  assert problems(model) == []
  model.vocabulary = {**model.vocabulary, "other": 400}
  assert "another one" in problems(model)[0]
  [ours] = read_metadata(tiny_run / "checkpoints/8").tokenizers()
  assert "another one" in problems(ours)[0]


def test_a_json_and_a_model_are_two_tokenizers(model_run, tiny_run):
  [first] = open_inputs([f"{model_run / 'run'}@8"])
  text = read_metadata(tiny_run / "checkpoints/8").tokenizer
  kept = dataclasses.replace(first.metadata, tokenizer=text, files={})
  other = dataclasses.replace(first, metadata=kept)
  for check in (check_comparable, check_mergeable):
    with pytest.raises(InputError, match="only one is a tokenizer.json"):
      check([first, other])
    check([first, first])
  with pytest.raises(InputError, match="only one is a tokenizer.json"):
    check_mergeable([first, other], allow_unrelated=True)
  check_mergeable([first, other], allow_other_tokenizer=True)
