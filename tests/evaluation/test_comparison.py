"""Models of several sizes and tokenizers are scored on one text."""

import itertools
import json
import math

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxmerge import evaluate
from jaxmerge.data.splits import split_of
from jaxmerge.errors import InputError
from jaxmerge.evaluation import statistics
from jaxmerge.files import write_json
from jaxmerge.formats.lazy_tensors import leaves_of
from jaxmerge.huggingface.families import table
from jaxmerge.huggingface.families.family import FAMILIES
from tests.helpers import (
  ROOT,
  Telling,
  config_of,
  decoder,
  quiet,
  random_params,
)

LLAMA, UNIGRAM, SYMBOLS = (
  (ROOT / f"tests/data/sentencepiece/{name}.model").read_bytes()
  for name in ("llama", "unigram", "symbols")
)


def random_model(path, content, layers=1, vocab_size=400, **changes):
  """A Hugging Face directory of random weights with a tokenizer.model."""
  config = decoder(vocab_size=vocab_size, num_hidden_layers=layers, **changes)
  leaves = leaves_of(random_params(config, layers))
  path.mkdir()
  tensors = dict(table.to_tensors(leaves, config, FAMILIES["llama"]))
  save_file(tensors, path / "model.safetensors")
  write_json(path / "config.json", FAMILIES["llama"].write_config(config))
  (path / "tokenizer.model").write_bytes(content)
  return str(path)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
  """Texts of the train split by the names of their files, and their folder."""
  folder, found = tmp_path_factory.mktemp("texts"), {}
  for number in range(60):
    line = f"Document {number}: it is there {number * 7} times.\n"
    text = line * (1 + number % 7)
    (folder / f"{number}.txt").write_text(text)
    if split_of(f"{number}.txt") == "train":
      found[f"{number}.txt"] = text
  return folder, found


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  """One and two layers of one tokenizer, and one layer of another."""
  folder = tmp_path_factory.mktemp("models")
  small = random_model(folder / "small", LLAMA, tie_word_embeddings=True)
  large = random_model(folder / "large", LLAMA, 2, rope_theta=50.0)
  return small, large, random_model(folder / "other", UNIGRAM)


def _rows(texts, inputs, sequences=1000, progress=quiet, **kwargs):
  config = config_of("evaluate", seq_len=32, split="train", sequences=sequences)
  config.data.source = "text_files"
  config.data.globs = (str(texts[0] / "*.txt"),)
  return evaluate.evaluate(config, inputs, progress=progress, **kwargs)


def test_models_of_other_sizes_are_paired_by_sequence(texts, models):
  small, large, _ = models
  alone = [_rows(texts, [name], 16)[0].score for name in (small, large)]
  notes = []
  progress = Telling(lambda stage, done, total, note: notes.append(note))
  rows = _rows(texts, [small, large, small], 16, progress)
  for row, score in zip(rows, [*alone, alone[0]], strict=True):
    assert row.score.values_N.tolist() == score.values_N.tolist()
    assert row.score.weights_N.tolist() == score.weights_N.tolist()
    assert row.score.unit == "nats/token"
  for row, score in zip(rows[1:], [alone[1], alone[0]]):
    delta = statistics.difference(score, alone[0])
    assert (row.delta, row.delta_stderr) == delta[:2]
  opened = [note for note in notes if "train tokens" in note]
  assert len(opened) == 2  # equal models share a program


def test_a_token_that_the_model_does_not_know_is_refused(texts, tmp_path):
  """JAX would take another row of the embedding, or NaN."""
  small = random_model(tmp_path / "model", LLAMA, vocab_size=64)
  with pytest.raises(InputError, match="its model knows 64 tokens"):
    _rows(texts, [small])


def test_other_tokenizers_are_compared_by_bits_a_byte_of_documents(
  texts, models, tmp_path, capsys
):
  small, large, other = models
  alone = [_rows(texts, [name])[0].score for name in (small, other, large)]
  capsys.readouterr()
  rows = _rows(texts, [small, other, large], output=tmp_path / "out")
  sizes = sorted(len(text.encode()) for text in texts[1].values())
  for row, score in zip(rows, alone, strict=True):
    assert row.score.unit == "bits/byte"
    assert sorted(row.score.weights_N) == sizes
    bits = score.values_N.sum() / math.log(2)
    assert row.score.mean == pytest.approx(bits / sum(sizes))
    assert row.score.extras == {"nats/token": pytest.approx(score.mean)}
    # Random weights: about as many bits in every byte.
    each_D = row.score.values_N / row.score.weights_N
    np.testing.assert_allclose(each_D, row.score.mean, rtol=0.2)
  bits_KxD = np.array([row.score.values_N for row in rows])
  bytes_D = rows[0].score.weights_N
  for row, bits_D in zip(rows, bits_KxD):
    assert row.score.weights_N.tolist() == bytes_D.tolist()
    delta_D = bits_D - bits_KxD[0]
    assert row.delta == pytest.approx(delta_D.sum() / sum(sizes))
    errors_D = delta_D - row.delta * bytes_D
    count = len(errors_D)
    stderr = math.sqrt(count / (count - 1) * (errors_D**2).sum()) / sum(sizes)
    assert row.delta_stderr == pytest.approx(stderr)
  table = capsys.readouterr().out
  assert f"bits/byte are compared, over {len(sizes)} whole documents" in table
  assert "bits/byte  stderr  nats/token  vs first" in table
  written = json.loads((tmp_path / "out/evaluation.json").read_text())
  assert written["documents"] == len(sizes)
  assert written["bytes"] == sum(sizes)
  assert list(written["rows"][0])[1:4] == [
    "bits_per_byte",
    "stderr",
    "nats_per_token",
  ]
  _rows(texts, [small], 16, output=tmp_path / "out")
  written = json.loads((tmp_path / "out/evaluation.json").read_text())
  assert written["sequences"] == 16


def test_tokens_are_of_one_tokenizer(models, tmp_path):
  (tmp_path / "a.jsonl").write_text('{"input_ids": [5, 6]}')
  config = config_of("evaluate", seq_len=32)
  config.data.source = "tokenized_files"
  config.data.globs = (str(tmp_path / "a.jsonl"),)
  with pytest.raises(InputError, match="has the tokens of one tokenizer"):
    evaluate.evaluate(config, [models[0], models[2]], progress=quiet)


def test_as_many_documents_as_the_sequences_allow_are_whole(texts, models):
  small, _, other = models
  whole = _rows(texts, [small, other])
  for inputs in ([small, other], [other, small]):
    rows = _rows(texts, inputs, 40)
    count = len(rows[0].score.values_N)
    assert 2 < count < len(whole[0].score.values_N)
    for row in rows:
      [same] = [each for each in whole if each.name == row.name]
      assert row.score.weights_N.tolist() == (
        same.score.weights_N[:count].tolist()
      )
      np.testing.assert_allclose(
        row.score.values_N, same.score.values_N[:count], rtol=1e-6
      )
  with pytest.raises(
    InputError, match="are [0-9]+ sequences; config.sequences is 1"
  ):
    _rows(texts, [small, other], 1)


def test_documents_that_a_tokenizer_changes_are_left_out(models, tmp_path):
  lossy = random_model(tmp_path / "lossy", SYMBOLS)
  texts = {}
  words = itertools.permutations(("it", "is", "there", "has", "times"))
  for number, text in zip(range(60), map(" ".join, words)):
    name = f"{number}.txt"
    texts[name] = text if number % 6 else text.capitalize()
    (tmp_path / name).write_text(texts[name])
  notes = []
  progress = Telling(lambda stage, done, total, note: notes.append(note))
  rows = _rows((tmp_path,), [models[0], lossy], progress=progress)
  train = [text for name, text in texts.items() if split_of(name) == "train"]
  kept = [text for text in train if text.islower()]
  assert len(rows[0].score.values_N) == len(kept) < len(train)
  for row in rows:
    assert sum(row.score.weights_N) == sum(map(len, kept))
  said = f"{len(train) - len(kept)} of {len(train)} documents left out"
  assert any(note.startswith(said) for note in notes)


def test_the_corpus_is_that_of_the_first_ones_run(tiny_run, models):
  """Which another model, of another tokenizer, has not been trained on."""
  run = f"{tiny_run}@8"
  config = config_of("evaluate", seq_len=256, sequences=150)
  rows = evaluate.evaluate(config, [run, models[2]], progress=quiet)
  ours, other = (row.score for row in rows)
  assert ours.weights_N.tolist() == other.weights_N.tolist()
  assert ours.mean < other.mean
  with pytest.raises(InputError, match="names no corpus"):
    evaluate.evaluate(config, [models[2], run], progress=quiet)


def test_questions_are_asked_of_any_tokenizer(models, tmp_path):
  """They need no corpus; bits/byte of answers are of the same texts."""
  rows = [
    {"question": f"It is {n}", "choices": ["there", f"{n} times"], "answer": 1}
    for n in range(12)
  ]
  file = tmp_path / "questions.jsonl"
  file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
  config = config_of("evaluate", tasks=(f"choice:{file}",), seq_len=24)
  found = evaluate.evaluate(config, models, progress=quiet)
  sizes = [len(f" {n} times") for n in range(12)]
  for row in found:
    assert row.score.unit == "accuracy"
    assert row.by("gold").score.weights_N.tolist() == sizes
  # One tokenizer alone gives the same as beside another.
  alone = evaluate.evaluate(config, models[2:], progress=quiet)[0]
  other = found[2].by("gold").score.values_N
  np.testing.assert_allclose(alone.by("gold").score.values_N, other, rtol=1e-6)
  config.seq_len = 0
  with pytest.raises(InputError, match="of how long its texts may be") as error:
    evaluate.evaluate(config, models, progress=quiet)
  assert len(error.value.problems) == 3
