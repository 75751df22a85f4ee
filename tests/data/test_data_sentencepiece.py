"""tokenizer.model files: ids, bytes, the end of a text, what is refused.

`sentencepiece/` holds models and what SentencePiece 0.2.3 makes of texts.json
with them, made in that folder (with a file rules.tsv in it, not kept) by:

    import argparse, decimal, io, json, random, re, string, subprocess, textwrap
    import sentencepiece
    with open("texts.json") as file:
      texts = json.load(file)
    modules = (argparse, decimal, random, re, string, subprocess, textwrap)
    lines = [line for m in modules for line in m.__doc__.splitlines()]
    for line in list(lines):
      lines.append(line.upper())
    lines += [t for t in texts if t.strip()] * 5 + [string.punctuation] * 20
    with open("rules.tsv", "w") as file:
      for code in range(65, 91):
        file.write(f"{code:X}\\t{code + 32:X}\\n")
      file.write("9\\t20\\nA\\t20\\nD\\t20\\n")
      file.write("FB01\\t66 69\\n65 301\\tE9\\n200B\\n")
    llama = {
      "normalization_rule_name": "identity", "byte_fallback": True,
      "split_digits": True, "remove_extra_whitespaces": False,
      "allow_whitespace_only_pieces": True, "vocab_size": 400,
    }
    rules = {"normalization_rule_tsv": "rules.tsv", "vocab_size": 300}
    symbols = {"user_defined_symbols": ["<sep>", "\\n", "<mask>"]}
    options = {
      "llama": {"model_type": "bpe", **llama},
      "baichuan": {
        "model_type": "bpe", **llama, **symbols, "add_dummy_prefix": False,
      },
      "symbols": {
        "model_type": "bpe", **rules, "user_defined_symbols": ["<sep>"],
      },
      "unigram": {"model_type": "unigram", **llama, **symbols},
      "rules": {"model_type": "unigram", **rules, "eos_piece": "<eot>"},
    }
    expected = {}
    for name, option in options.items():
      model = io.BytesIO()
      sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model,
        hard_vocab_limit=False, character_coverage=0.98, minloglevel=2,
        **option,
      )
      with open(f"{name}.model", "wb") as file:
        file.write(model.getvalue())
      made = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
      ids = [made.encode(text) for text in texts]
      expected[name] = [[row, made.decode(row)] for row in ids]
    with open("expected.json", "w") as file:
      json.dump(expected, file, separators=(",", ":"))
"""

import json
import pathlib
import random
import subprocess
import sys

import numpy as np
import pytest

from jaxmerge.data.tokenizers.load import load_tokenizer
from jaxmerge.data.tokenizers.sentence_piece import SentencePieceTokenizer
from jaxmerge.errors import InputError

FOLDER = pathlib.Path(__file__).parent / "sentencepiece"
TEXTS = json.loads((FOLDER / "texts.json").read_text())
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
NAMES = sorted(EXPECTED)


def content_of(name):
  return (FOLDER / f"{name}.model").read_bytes()


def made(name):
  return SentencePieceTokenizer(content_of(name))


def tokens(content, text):
  tokenizer = SentencePieceTokenizer(content)
  names = {number: name for name, number in tokenizer.vocabulary.items()}
  return [names[number] for number in tokenizer.encode_batch([text])[0]]


def varint(number):
  low = bytes([number & 0x7F | 0x80]) if number > 0x7F else bytes([number])
  return low + (varint(number >> 7) if number > 0x7F else b"")


def field(number, value):
  if isinstance(value, int):
    return varint(number << 3) + varint(value)
  return varint(number << 3 | 2) + varint(len(value)) + value


NORMAL, UNKNOWN, CONTROL, SYMBOL, BYTE = 1, 2, 3, 4, 6


def piece(name, score=0.0, kind=NORMAL):
  """A field of ModelProto."""
  number = varint(2 << 3 | 5) + np.float32(score).tobytes()
  return field(1, field(1, name.encode()) + number + field(3, kind))


SPECS = field(2, b"") + field(3, b"")  # with their defaults
UNK = SPECS + piece("<unk>", kind=UNKNOWN)
BPE = field(2, field(3, 2))
LETTERS = b"".join(piece(letter, -9.0 - i) for i, letter in enumerate("▁abc"))


@pytest.mark.parametrize("name", NAMES)
def test_ids_and_texts_are_those_of_sentencepiece(name):
  tokenizer = made(name)
  assert len(EXPECTED[name]) == len(TEXTS)
  ids, texts = zip(*EXPECTED[name])
  assert tokenizer.encode_batch(TEXTS) == list(ids)
  assert [tokenizer.decode(row) for row in ids] == list(texts)


def test_a_batch_on_all_cores_is_each_text_alone():
  tokenizer = made("unigram")
  rng = random.Random(0)
  texts = [" ".join(rng.choices(TEXTS, k=rng.randrange(9))) for _ in range(400)]
  alone = [tokenizer.encode_batch([text])[0] for text in texts]
  for _ in range(3):
    assert tokenizer.encode_batch(texts) == alone


@pytest.mark.parametrize("name", ["llama", "baichuan", "unigram"])
def test_bytes_add_up(name):
  tokenizer = made(name)
  bytes_V = tokenizer.bytes_per_token_V
  assert bytes_V.shape == (tokenizer.size,) == (400,)
  assert bytes_V.dtype == np.int32
  assert bytes_V[:3].tolist() == [0, 0, 0]  # <unk> <s> </s>
  prefix = name != "baichuan"
  for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS)):
    if "▁" not in text:
      more = 1 if prefix and text else 0
      assert bytes_V[ids].sum() == len(text.encode()) + more


def test_byte_pieces_and_symbols_have_their_bytes():
  tokenizer = made("baichuan")
  sizes = {"<0xE4>": 1, "<sep>": 5, "\n": 1, "▁▁▁▁": 4}
  for token, size in sizes.items():
    number = tokenizer.vocabulary[token]
    assert tokenizer.bytes_per_token_V[number] == size, token
  # One that is only called like a byte.
  content = UNK + piece("</s>", kind=CONTROL) + piece("<0xE4>")
  assert SentencePieceTokenizer(content).bytes_per_token_V.tolist() == [0, 0, 6]


@pytest.mark.parametrize(
  ("name", "end"), [("llama", "</s>"), ("rules", "<eot>")]
)
def test_the_end_of_a_text_is_the_models_own(name, end):
  tokenizer = made(name)
  assert tokenizer.end_of_text == tokenizer.vocabulary[end] == 2


def test_a_model_without_an_end_of_text_is_refused(tmp_path):
  path = tmp_path / "spiece.model"
  path.write_bytes(UNK + LETTERS)
  with pytest.raises(InputError, match="no end-of-text token"):
    load_tokenizer(path)


def test_the_names_of_pieces_are_text():
  content = b"".join(
    [
      UNK,
      piece("<s>", kind=CONTROL),
      piece("</s>", kind=CONTROL),
      LETTERS,
      piece("s", -5.0),
      piece(">", -4.0),
    ]
  )
  shown = ["▁", "a", "<unk>", "s", ">", "b", "<unk>", "s", ">"]
  assert tokens(content, "a<s>b</s>") == shown


def test_pieces_that_share_a_score_are_taken_from_the_left():
  more = [piece("ab", -1.0), piece("bc", -1.0)]
  assert tokens(b"".join([UNK, BPE, LETTERS, *more]), "abc") == ["▁", "ab", "c"]


def test_a_file_is_loaded_by_its_name_and_is_its_own_hash(tmp_path):
  hashes = set()
  for name in NAMES:
    path = tmp_path / f"{name}.model"
    path.write_bytes(content_of(name))
    tokenizer = load_tokenizer(path)
    assert tokenizer.content == content_of(name)
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path / "tokenizer.model")
    assert again.hash == tokenizer.hash
    hashes.add(again.hash)
  assert len(hashes) == len(NAMES)
  (tmp_path / "tokenizer.json").write_bytes(content_of("llama"))
  with pytest.raises(InputError, match=r"tokenizer\.json"):
    load_tokenizer(tmp_path / "tokenizer.json")


def test_a_text_that_is_none_is_refused():
  for text in ("a\ud800b", "\udfff"):
    with pytest.raises(InputError, match="a text cannot be tokenized"):
      made("llama").encode_batch(["fine", text])


REFUSED = {
  "nothing": (b"", "unk is not defined"),
  "a model of tomorrow": (UNK + field(2, field(3, 9)), "no pieces"),
  "no rules": (
    field(2, b"") + piece("a") + piece("?", kind=UNKNOWN),
    "it is cut off",
  ),
  "no kind": (
    field(3, b"") + piece("a") + piece("?", kind=UNKNOWN),
    "it is cut off",
  ),
  "none unknown": (SPECS + piece("a"), "unk is not defined"),
  "two unknown": (UNK + piece("?", kind=UNKNOWN), "already defined"),
  "equal names": (UNK + piece("a") + piece("a"), "a is already defined"),
  "an empty piece": (UNK + piece(""), "must not be empty"),
  "no number": (UNK + piece("a", float("nan")), "NaN"),
  "half the bytes": (UNK + piece("<0x00>", kind=BYTE), "byte"),
  "no bytes": (UNK + field(2, field(35, 1)), "256 byte pieces"),
  "damaged rules": (UNK + LETTERS + field(3, field(2, b"abc")), "normaliz"),
  "not a message": (b"\x0b\x00", "no SentencePiece model"),
  "a field of another kind": (
    UNK + LETTERS + field(300, 1),
    "a field of wire type 0",
  ),
  "empty pieces": (b"\n\0" * 100_001 + UNK, "its tokens are empty"),
  "not UTF-8": (UNK + field(1, field(1, b"\xff")), "utf-8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name, tmp_path):
  content, message = REFUSED[name]
  path = tmp_path / "x.model"
  path.write_bytes(content)
  with pytest.raises(InputError, match=r"x\.model cannot be used") as error:
    load_tokenizer(path)
  assert len(error.value.problems) == 1
  assert message in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_cut_off_is_refused(name):
  """SentencePiece itself reads one that ends between two pieces."""
  content = content_of(name)
  for size in range(len(content)):
    with pytest.raises(InputError, match="cannot be used"):
      SentencePieceTokenizer(content[:size])


def test_damaged_files_are_refused_or_read():
  """Never a crash; a tokenizer that comes of one can be used."""
  rng = random.Random(0)
  refused = 0
  for number in range(600):
    content = bytearray(content_of(NAMES[number % len(NAMES)]))
    for _ in range(rng.choice([1, 3, 30])):
      content[rng.randrange(len(content))] = rng.randrange(256)
    try:
      tokenizer = SentencePieceTokenizer(bytes(content))
    except InputError:
      refused += 1
    else:
      for ids in tokenizer.encode_batch(TEXTS):
        assert tokenizer.bytes_per_token_V[ids].sum() >= 0
        tokenizer.decode(ids)
  assert 100 < refused < 600


def test_loading_starts_no_backend():
  code = """
import sys
from jaxmerge.data.tokenizers.load import load_tokenizer
load_tokenizer(sys.argv[1]).encode_batch(["a text"])
if "jax" in sys.modules:
  from jax._src import xla_bridge
  assert not xla_bridge._backends
"""
  path = str(FOLDER / "llama.model")
  subprocess.run([sys.executable, "-c", code, path], check=True)
