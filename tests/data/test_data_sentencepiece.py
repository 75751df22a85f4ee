"""tokenizer.model files give the ids that SentencePiece gives.

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

import base64
import json
import pathlib
import random

import numpy as np
import pytest
import tokenizers

from jaxmerge.data import charsmap, sentencepiece_model
from jaxmerge.data.sentencepiece import tokenizer_json
from jaxmerge.data.tokenizer import (
  end_of_text_id,
  load_tokenizer,
  token_bytes,
)
from jaxmerge.errors import InputError

FOLDER = pathlib.Path(__file__).parent / "sentencepiece"
TEXTS = json.loads((FOLDER / "texts.json").read_text())
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
NAMES = sorted(EXPECTED)


def content_of(name):
  return (FOLDER / f"{name}.model").read_bytes()


def made_of(content, tmp_path):
  path = tmp_path / "tokenizer.json"
  path.write_text(tokenizer_json(content))
  return load_tokenizer(path)


def varint(number):
  low = bytes([number & 0x7F | 0x80]) if number > 0x7F else bytes([number])
  return low + (varint(number >> 7) if number > 0x7F else b"")


def field(number, value):
  if isinstance(value, int):
    return varint(number << 3) + varint(value)
  return varint(number << 3 | 2) + varint(len(value)) + value


def piece(name, score=0.0, kind=1):
  """A field of ModelProto; kinds as in `sentencepiece_model.Type`."""
  number = varint(2 << 3 | 5) + np.float32(score).tobytes()
  return field(1, field(1, name.encode()) + number + field(3, kind))


SPECS = field(2, b"") + field(3, b"")  # with their defaults
UNK = SPECS + piece("<unk>", kind=2)
BPE = field(2, field(3, 2))
LETTERS = b"".join(piece(letter, -9.0 - i) for i, letter in enumerate("▁abc"))


@pytest.mark.parametrize("name", NAMES)
def test_ids_and_texts_are_those_of_sentencepiece(name, tmp_path):
  tokenizer = made_of(content_of(name), tmp_path)
  unknown = sentencepiece_model.read_model(content_of(name)).byte_fallback
  assert len(EXPECTED[name]) == len(TEXTS)
  for text, (ids, decoded) in zip(TEXTS, EXPECTED[name]):
    found = tokenizer.encode(text, add_special_tokens=False).ids
    assert found == ids, text
    assert found == tokenizer.encode(text).ids
    if unknown:  # else <unk> is shown in another way
      assert tokenizer.decode(ids) == decoded, text


@pytest.mark.parametrize("name", ["llama", "baichuan"])
def test_texts_come_back(name, tmp_path):
  tokenizer = made_of(content_of(name), tmp_path)
  for text in TEXTS:
    if "▁" not in text:
      assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize("name", ["llama", "baichuan", "unigram"])
def test_bytes_add_up(name, tmp_path):
  tokenizer = made_of(content_of(name), tmp_path)
  bytes_V = token_bytes(tokenizer)
  assert bytes_V[:3].tolist() == [0, 0, 0]  # <unk> <s> </s>
  prefix = name != "baichuan"
  for text in TEXTS:
    if "▁" not in text:
      ids = tokenizer.encode(text).ids
      more = 1 if prefix and text else 0
      assert bytes_V[ids].sum() == len(text.encode()) + more


def test_byte_pieces_and_symbols_have_their_bytes(tmp_path):
  tokenizer = made_of(content_of("baichuan"), tmp_path)
  bytes_V = token_bytes(tokenizer)
  for token, size in {"<0xE4>": 1, "<sep>": 5, "\n": 1, "▁▁▁▁": 4}.items():
    assert bytes_V[tokenizer.token_to_id(token)] == size, token


@pytest.mark.parametrize(
  ("name", "end"), [("llama", "</s>"), ("rules", "<eot>")]
)
def test_the_end_of_a_text_is_the_models_own(name, end, tmp_path):
  tokenizer = made_of(content_of(name), tmp_path)
  assert tokenizer.id_to_token(end_of_text_id(tokenizer)) == end


def test_the_names_of_pieces_are_text(tmp_path):
  """Unigram models too, where a name is likelier than an unknown character."""
  model = [UNK, piece("<s>", kind=3), piece("</s>", kind=3), LETTERS]
  content = b"".join([*model, piece("s", -5.0), piece(">", -4.0)])
  tokenizer = made_of(content, tmp_path)
  ids = tokenizer.encode("a<s>b</s>").ids
  tokens = [tokenizer.id_to_token(number) for number in ids]
  shown = ["▁", "a", "<unk>", "s", ">", "b", "<unk>", "s", ">"]
  assert tokens == shown


def test_a_symbol_wins_against_other_ways(tmp_path):
  more = [piece("ab", -1.0), piece("bc", kind=4)]
  content = b"".join([UNK, piece("</s>", kind=3), LETTERS, *more])
  tokenizer = made_of(content, tmp_path)
  assert tokenizer.encode("abc").tokens == ["▁", "a", "bc"]


def test_pairs_are_joined_by_score_and_from_the_left(tmp_path):
  more = [piece("ab", -2.0), piece("bc", -1.0), piece("aa", -3.0)]
  content = b"".join([UNK, piece("</s>", kind=3), BPE, LETTERS, *more])
  tokenizer = made_of(content, tmp_path)
  assert tokenizer.encode("abc").tokens == ["▁", "a", "bc"]
  assert tokenizer.encode("aaab").tokens == ["▁", "aa", "ab"]
  assert tokenizer.encode("aaa").tokens == ["▁", "aa", "a"]


def test_a_line_break_of_two_characters_is_two(tmp_path):
  """One rule makes each a space, and no space goes."""
  rules = sentencepiece_model.read_model(content_of("rules")).charsmap
  content = UNK + LETTERS + field(3, field(2, rules) + field(4, 0))
  tokenizer = made_of(content + piece("</s>", kind=3), tmp_path)
  assert tokenizer.encode("a\r\nb").tokens == ["▁", "a", "▁", "▁", "b"]


REFUSED = {
  "a CHAR model": (UNK + field(2, field(3, 4)), "model_type is CHAR"),
  "a WORD model": (UNK + field(2, field(3, 3)), "model_type is WORD"),
  "a model of tomorrow": (UNK + field(2, field(3, 9)), "model_type is 9"),
  "spaces at the end": (UNK + field(2, field(24, 1)), "as_suffix"),
  "nothing": (b"", "it has no trainer_spec"),
  "no rules": (field(2, b"") + piece("a"), "it has no normalizer_spec"),
  "none unknown": (SPECS + piece("a"), "0 pieces for unknown characters"),
  "two unknown": (UNK + piece("?", kind=2), "2 pieces for unknown"),
  "equal names": (UNK + piece("a") + piece("a"), "two pieces 'a'"),
  "an empty piece": (UNK + piece(""), "a piece has 0 characters"),
  "a long piece": (UNK + piece("a" * 1001), "a piece has 1001 characters"),
  "an unused piece": (UNK + piece("a", kind=5), "'a' is of type 5"),
  "no number": (UNK + piece("a", float("nan")), "has the score nan"),
  "no text": (UNK, "no pieces of text"),
  "half the bytes": (UNK + piece("<0x00>", kind=6), "pieces for bytes"),
  "no bytes": (UNK + field(2, field(35, 1)), "pieces for bytes"),
  "equal scores": (
    UNK + BPE + LETTERS + piece("ab", -1.0) + piece("bc", -1.0),
    "'ab' and 'bc' have the same score",
  ),
  "a missing letter": (
    UNK + BPE + LETTERS + piece("ad", -1.0),
    "a piece 'ad', but none for 'd'",
  ),
  "a symbol in the rules": (
    UNK + LETTERS + piece("a  b", kind=4),
    "change the user-defined symbol 'a  b'",
  ),
  "damaged rules": (UNK + LETTERS + field(3, field(2, b"abc")), "rules are"),
  "not a message": (b"\x0b\x00", "unknown wire type 3"),
  "a field without a number": (b"\x00\x00", "the number 0"),
  "a long number": (b"\x80" * 11, "cut off or too long"),
  "a number for a text": (UNK + field(1, field(1, 5)), "another type"),
  "a text for a number": (UNK + field(2, field(3, b"x")), "another type"),
  "not UTF-8": (UNK + field(1, field(1, b"\xff")), "not UTF-8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
  content, message = REFUSED[name]
  with pytest.raises(InputError, match="tokenizer.model cannot be") as error:
    tokenizer_json(content)
  assert len(error.value.problems) == 1
  assert message in str(error.value)


def test_too_large_a_file_is_refused(monkeypatch):
  monkeypatch.setattr(sentencepiece_model, "_MOST_BYTES", 1 << 20)
  with pytest.raises(InputError, match="more than 1 MiB"):
    tokenizer_json(bytes((1 << 20) + 1))


@pytest.mark.parametrize("name", ["baichuan", "rules"])
def test_a_file_that_is_cut_off_is_refused(name):
  content = content_of(name)
  for size in range(0, len(content), 97):
    with pytest.raises(InputError):
      tokenizer_json(content[:size])


def test_damaged_files_are_refused_or_read(tmp_path):
  """Never a crash; a tokenizer that comes of one can be used."""
  rng = random.Random(0)
  refused = 0
  for number in range(600):
    content = bytearray(content_of(NAMES[number % len(NAMES)]))
    for _ in range(rng.choice([1, 3, 30])):
      content[rng.randrange(len(content))] = rng.randrange(256)
    try:
      made = tokenizer_json(bytes(content))
    except InputError:
      refused += 1
    else:
      tokenizer = tokenizers.Tokenizer.from_str(made)
      tokenizer.encode(" ".join(TEXTS))
  assert 100 < refused < 600


def test_damaged_rules_are_refused_before_they_are_used():
  """`tokenizers` would read outside the trie, or inside a character."""
  spec = sentencepiece_model.read_model(content_of("rules"))
  made = json.loads(tokenizer_json(content_of("rules")))
  parts = made["normalizer"]["normalizers"]
  (rules,) = [p for p in parts if p["type"] == "Precompiled"]
  assert base64.b64decode(rules["precompiled_charsmap"]) == spec.charsmap
  charsmap.check_charsmap(spec.charsmap)
  rng = random.Random(1)
  refused = 0
  for _ in range(400):
    content = bytearray(spec.charsmap)
    content[rng.randrange(len(content))] = rng.randrange(256)
    try:
      (*_, part) = charsmap.charsmap_parts(bytes(content))
    except InputError:
      refused += 1
    else:
      found = tokenizers.normalizers.Precompiled(bytes(content))
      assert part["type"] == "Precompiled"
      for text in TEXTS:
        found.normalize_str(text)
  assert 20 < refused < 400
