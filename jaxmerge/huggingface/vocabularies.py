"""The vocabularies of tokenizer files, compared by what they mean.

One vocabulary is written in many ways: by versions of a library, and in files
of several kinds beside each other.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxmerge.data.tokenizers.hugging_face import TOKENIZER_JSON
from jaxmerge.data.tokenizers.sentence_piece import SentencePieceTokenizer
from jaxmerge.formats.records.file_texts import to_bytes
from jaxmerge.formats.records.metadata import Metadata
from jaxmerge.reading import read_json

_CONFIG = "tokenizer_config.json"
_ADDED = "added_tokens.json"
_VOCAB, _MERGES, _TEKKEN = "vocab.json", "merges.txt", "tekken.json"
_SENTENCEPIECE = re.compile(r".*\.(model|spm)|.*\.model\.v\w+")
_TIKTOKEN = re.compile(r".*\.tiktoken")
# Of one of two languages, of entities; of fairseq, GPT-2's first code, XLM.
_OTHER_VOCAB = re.compile(r"(.+[-_])?vocab([-_].+)?\.json|encoder\.json")
_OTHER_LINES = re.compile(r"dict(\.\w+)?\.txt|(.+[-_])?vocab([-_].+)?\.txt")
_OTHER_MERGES = re.compile(r"vocab\.bpe|bpe\.codes|bpecodes")
# Files whose tokens are spelled alike, so that one kind tells another.
_NAMED = re.compile(
  rf"tokenizer\.json|vocab\.(json|txt)|{_SENTENCEPIECE.pattern}"
)
_SHOWN = 40


def is_tokenizer_file(name: str) -> bool:
  """Says whether a file beside a model says what its tokens are."""
  return "/" not in name and (
    name in (_CONFIG, _ADDED) or _reader(name) is not None
  )


class Vocabulary(NamedTuple):
  """The contents of a tokenizer's file; None: it does not say.

  Attributes:
    ids: of tokens, by their names.
    merges: of BPE, in order.
    added: ids of tokens that stand apart from the others.
  """

  ids: Mapping[str, int]
  merges: tuple[str, ...] | None = None
  added: Mapping[str, int] | None = None


def has_tokenizer(metadata: Metadata) -> bool:
  """Says whether a checkpoint has a file of a vocabulary."""
  return any(map(_reader, _files(metadata)))


def vocabulary_difference(first: Metadata, other: Metadata) -> str:
  """Says in which way the tokenizers of two checkpoints differ.

  "" where they do not, or where one of them has none.
  """
  a, b = _files(first), _files(other)
  if not has_tokenizer(first) or not has_tokenizer(other):
    return ""
  shared = [name for name in a if name in b and _reader(name)]
  both = _added_tokens(a), _added_tokens(b)
  if TOKENIZER_JSON in shared:  # which says itself what was added
    both = {}, {}
  for name in shared:
    if a[name] != b[name] or both[0] != both[1]:
      found = _difference(_read(name, a, both[0]), _read(name, b, both[1]))
      if found:
        return f"{name}: {found}"
  return "" if shared else _across(a, b, both)


def _files(metadata: Metadata) -> dict[str, str]:
  """Texts of its tokenizer's files, by name."""
  own = {TOKENIZER_JSON: metadata.tokenizer} if metadata.tokenizer else {}
  files = metadata.files
  return own | {n: files[n] for n in sorted(files) if is_tokenizer_file(n)}


def _across(
  a: Mapping[str, str],
  b: Mapping[str, str],
  both: tuple[Mapping[str, int], Mapping[str, int]],
) -> str:
  """As vocabulary_difference, of files of several kinds."""
  names = [next(filter(_NAMED.fullmatch, files), "") for files in (a, b)]
  if not all(names):
    kinds = " and ".join(sorted(filter(_reader, {*a, *b})))
    return f"{kinds} cannot be compared"
  found = _difference(
    *(_read(n, f, added) for n, f, added in zip(names, (a, b), both))
  )
  one_json = f"of which only one is a {TOKENIZER_JSON}"
  return found and f"{one_json}: {found}"


def _read(
  name: str, files: Mapping[str, str], added: Mapping[str, int]
) -> Vocabulary | str:
  """The vocabulary of a file; its text where it cannot be understood."""
  reader = _reader(name)
  assert reader is not None
  try:
    found = reader(to_bytes(name, files[name]))
  except (ValueError, LookupError, TypeError, AttributeError):
    return files[name]
  if name == _VOCAB and _MERGES in files:
    found = found._replace(merges=_merges_txt(files[_MERGES].encode()).merges)
  if _NAMED.fullmatch(name):
    found = found._replace(ids={**found.ids, **added})
  return found


def _difference(a: Vocabulary | str, b: Vocabulary | str) -> str:
  if isinstance(a, str) or isinstance(b, str):
    return "" if a == b else "it cannot be read as a vocabulary"
  for ids, others in ((a.ids, b.ids), (a.added, b.added)):
    if ids is None or others is None or ids == others:
      continue
    if len(ids) != len(others):
      return f"{len(others)} tokens against {len(ids)}"
    name = next(n for n in ids if others.get(n) != ids[n])
    return (
      f"token {name[:_SHOWN]!r} is {others.get(name, 'missing')} against "
      f"{ids[name]}"
    )
  is_other = a.merges is not None and b.merges is not None
  return "other merges" if is_other and a.merges != b.merges else ""


def _added_tokens(files: Mapping[str, str]) -> dict[str, int]:
  """Ids of tokens that the files of older libraries name apart."""
  found: dict[str, int] = {}
  try:
    found = dict(read_json(files.get(_ADDED, "{}")))
    listed = read_json(files.get(_CONFIG, "{}")).get("added_tokens_decoder")
    for number, token in (listed or {}).items():
      found[token["content"]] = int(number)
  except (ValueError, LookupError, TypeError, AttributeError):
    found["unreadable: " + json.dumps(files.get(_CONFIG, ""))] = -1
  return found


def _tokenizer_json(content: bytes) -> Vocabulary:
  value = read_json(content)
  model = value["model"]
  vocab, merges = model["vocab"], model.get("merges")
  if isinstance(vocab, list):  # of a unigram model: pieces and their scores
    vocab = {piece: i for i, (piece, _) in enumerate(vocab)}
  added = value.get("added_tokens") or []
  ids = {**vocab, **{token["content"]: token["id"] for token in added}}
  if merges is None:
    return Vocabulary(ids)
  pairs = (pair if isinstance(pair, str) else " ".join(pair) for pair in merges)
  return Vocabulary(ids, tuple(pairs))


def _sentencepiece(content: bytes) -> Vocabulary:
  return Vocabulary(SentencePieceTokenizer(content).vocabulary)


def _vocab_json(content: bytes) -> Vocabulary:
  return Vocabulary(dict(read_json(content)))


def _lines(content: bytes) -> list[str]:
  """Lines without their ends; a token may hold any other white space."""
  text = content.decode().replace("\r\n", "\n")
  return text.removesuffix("\n").split("\n")


def _vocab_txt(content: bytes) -> Vocabulary:
  return Vocabulary({token: i for i, token in enumerate(_lines(content))})


def _merges_txt(content: bytes) -> Vocabulary:
  kept = (n for n in _lines(content) if n and not n.startswith("#version"))
  return Vocabulary({}, tuple(kept))


def _tekken(content: bytes) -> Vocabulary:
  """Mistral's: special tokens first, then bytes by their rank."""
  value = read_json(content)
  special = value["config"]["default_num_special_tokens"]
  size = value["config"]["default_vocab_size"] - special
  ranks = {t["token_bytes"]: t["rank"] for t in value["vocab"]}
  ids = {name: rank + special for name, rank in ranks.items() if rank < size}
  tokens = value.get("special_tokens")
  if tokens is None:  # files of before do not say
    return Vocabulary(ids)
  return Vocabulary(ids, added={t["token_str"]: t["rank"] for t in tokens})


def _tiktoken(content: bytes) -> Vocabulary:
  pairs = (line.split() for line in _lines(content) if line.strip())
  return Vocabulary({token: int(rank) for token, rank in pairs})


def _reader(name: str) -> Callable[[bytes], Vocabulary] | None:
  """Returns what reads a file; None where it holds no vocabulary."""
  known = {
    TOKENIZER_JSON: _tokenizer_json,
    _VOCAB: _vocab_json,
    _MERGES: _merges_txt,
    "vocab.txt": _vocab_txt,
    _TEKKEN: _tekken,
  }
  forms = {
    _SENTENCEPIECE: _sentencepiece,
    _TIKTOKEN: _tiktoken,
    _OTHER_VOCAB: _vocab_json,
    _OTHER_LINES: _vocab_txt,
    _OTHER_MERGES: _merges_txt,
  }
  found = (read for form, read in forms.items() if form.fullmatch(name))
  return known.get(name) or next(found, None)
