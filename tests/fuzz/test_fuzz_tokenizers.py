"""Damaged tokenizers: refused, or they tokenize any text."""

import json
import pathlib

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from jaxmerge.data.tokenizers.hugging_face import train_tokenizer
from jaxmerge.data.tokenizers.load import load_tokenizer
from tests.data.test_data_sentencepiece import FOLDER
from tests.fuzz.damage import byte_files, json_files
from tests.fuzz.lanes import judged, lane

TEXTS = [
  "a b  ab",
  "",
  "Hello\n\0 world",
  "\u4f60\u597d \U0001f600 \u2581\u2581 e\u0301 \ufb01 \uff12 \ud55c",
  "a" * 100 + "X",
]


def use(path: pathlib.Path) -> None:
  """All that a run asks of a tokenizer."""
  with judged(path.stat().st_size):
    tokenizer = load_tokenizer(path)
    assert len(tokenizer.bytes_per_token_V) == tokenizer.size
    for ids in [*tokenizer.encode_batch(TEXTS), [0], [tokenizer.size - 1]]:
      assert isinstance(tokenizer.decode(ids), str)


def byte_level():
  return json.loads(train_tokenizer(TEXTS, vocab_size=300).content)


def unigram():
  vocabulary = [("<unk>", 0.0), ("</s>", -1.0), ("\u2581a", -2.0), ("b", -3.0)]
  tokenizer = Tokenizer(models.Unigram(vocabulary, 0))
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
  tokenizer.decoder = decoders.Metaspace()
  tokenizer.add_special_tokens(["<|x|>"])
  return json.loads(tokenizer.to_str())


KINDS = {"byte-level BPE": byte_level(), "Unigram": unigram()}


@lane
@given(data=st.data())
def test_tokenizer_json(tmp_path_factory, data):
  path = tmp_path_factory.getbasetemp() / "tokenizer.json"
  kind = data.draw(st.sampled_from(sorted(KINDS)))
  path.write_bytes(data.draw(json_files(KINDS[kind])))
  use(path)


MODELS = [path.read_bytes() for path in sorted(FOLDER.glob("*.model"))]


@lane
@given(data=st.data())
def test_tokenizer_model(tmp_path_factory, data):
  path = tmp_path_factory.getbasetemp() / "tokenizer.model"
  whole = data.draw(st.sampled_from(MODELS))
  # The settings of a model follow on its pieces.
  start = data.draw(st.sampled_from([0, len(whole) - 1500, len(whole) - 300]))
  path.write_bytes(data.draw(byte_files(whole, start)))
  use(path)
