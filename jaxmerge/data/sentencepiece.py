"""A SentencePiece `tokenizer.model` as the tokenizer.json of equal ids."""

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers

from jaxmerge.data.charsmap import charsmap_parts
from jaxmerge.data.sentencepiece_model import (
  SPACE,
  Model,
  Piece,
  Spec,
  Type,
  read_model,
)
from jaxmerge.errors import InputError

# A piece that stands for no text of its own must never win against others.
_NEVER = 1e4


def tokenizer_json(model: bytes) -> str:
  """A tokenizer.json that gives the ids of a SentencePiece model.

  Ids are those without begin and end of text; names of control pieces in a
  text are text where the tokenizer has `encode_special_tokens`. BPE is exact,
  but for a text that is nothing but one user-defined symbol (it gets no dummy
  prefix) and for combining characters under normalisation rules (`tokenizers`
  applies them to one grapheme at a time). Unigram models cut runs of the same
  character, where several ways are equally likely, in another of these ways.

  Raises:
    InputError: it is damaged, too large, of words or characters, or has what a
      tokenizer.json cannot say.
  """
  try:
    spec = read_model(model)
    tokenizer = _tokenizer(_pipeline(spec))
    _check_symbols(tokenizer, spec.names(Type.USER_DEFINED))
  except InputError as error:
    problem = error.problems[0]
    raise InputError(f"tokenizer.model cannot be used: {problem}") from error
  return tokenizer.to_str()


def _tokenizer(pipeline: dict[str, Any]) -> tokenizers.Tokenizer:
  content = json.dumps(pipeline, ensure_ascii=False)
  try:
    return tokenizers.Tokenizer.from_str(content)
  except Exception as error:  # the library raises plain Exception
    raise InputError(str(error)) from error


def _pipeline(spec: Spec) -> dict[str, Any]:
  """The tokenizer.json, without what `tokenizers` fills in."""
  symbols = spec.names(Type.USER_DEFINED)
  is_bpe = spec.model == Model.BPE
  added = [
    (piece.name, number, piece.type != Type.USER_DEFINED)
    for number, piece in enumerate(spec.pieces)
    if piece.type in (Type.UNKNOWN, Type.CONTROL)
    or (is_bpe and piece.type == Type.USER_DEFINED)
  ]
  return {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
      _added(name, number, is_special) for name, number, is_special in added
    ],
    "normalizer": _normalizer(spec, symbols if is_bpe else []),
    "pre_tokenizer": None if is_bpe else _pre_tokenizer(spec),
    "post_processor": _end_of_text(spec),
    "decoder": _decoder(spec),
    "model": _bpe(spec) if is_bpe else _unigram(spec),
  }


def _added(name: str, number: int, is_special: bool) -> dict[str, Any]:
  """A symbol is looked for in the text after it is normalised, as theirs."""
  return {
    "id": number,
    "content": name,
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": not is_special,
    "special": is_special,
  }


def _replace(pattern: str, content: str, kind: str = "Regex") -> dict[str, Any]:
  return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def _normalizer(spec: Spec, symbols: Sequence[str]) -> dict[str, Any]:
  """Rules, spaces, dummy prefix.

  `tokenizers` normalises the symbols too, to look for them: they must not get
  the prefix.
  """
  space = SPACE if spec.escape else " "
  prefix = {"type": "Prepend", "prepend": space}
  if symbols:
    names = "|".join(re.escape(name) for name in symbols)
    prefix = _replace(rf"\A(?!(?:{names})\z)", space)
  parts: list[dict[str, Any]] = []
  # A text that the rules empty has a prefix, if it is not stripped again.
  if spec.dummy_prefix and not spec.strip:
    parts.append(prefix)
  if spec.charsmap:
    parts += charsmap_parts(spec.charsmap)
  if spec.strip:
    end = rf"[ {SPACE}]" if spec.escape else " "
    parts += [_replace(" {2,}", " "), _replace(rf"\A +|{end}+\z", "")]
  if spec.escape:
    parts.append(_replace(" ", SPACE, "String"))
  if spec.dummy_prefix and spec.strip:
    parts.append(prefix)
  return {"type": "Sequence", "normalizers": parts}


def _pre_tokenizer(spec: Spec) -> dict[str, Any] | None:
  """Cuts the names of pieces without text where they would be taken for them.

  To `tokenizers` an unknown character is less likely than any piece. Every way
  of cutting a text has a cut between one and a known character, if the two
  stand together in no piece.
  """
  text = (Type.NORMAL, Type.USER_DEFINED)
  names = [piece.name for piece in spec.pieces if piece.type in text]
  known = {name for name in names if len(name) == 1}
  together = {name[i : i + 2] for name in names for i in range(len(name) - 1)}
  cuts = [
    rf"(?<={re.escape(name[:i])})(?={re.escape(name[i:])})"
    for name in (p.name for p in spec.pieces if p.type not in text)
    for i in range(1, len(name))
    if (name[i - 1] in known) != (name[i] in known)
    and name[i - 1 : i + 1] not in together
  ]
  if not cuts:
    return None
  pattern = {"Regex": "|".join(cuts)}
  how = {"behavior": "Isolated", "invert": False}
  return {"type": "Split", "pattern": pattern, **how}


def _decoder(spec: Spec) -> dict[str, Any]:
  parts: list[dict[str, Any]] = [_replace(SPACE, " ", "String")]
  if spec.byte_fallback:
    parts.append({"type": "ByteFallback"})
  parts.append({"type": "Fuse"})
  if spec.dummy_prefix or spec.strip:
    parts.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
  return {"type": "Sequence", "decoders": parts}


def _end_of_text(spec: Spec) -> dict[str, Any] | None:
  """A template that adds no token, and knows the one that ends a text."""
  if not spec.end:
    return None
  number = [piece.name for piece in spec.pieces].index(spec.end)
  known = {"id": spec.end, "ids": [number], "tokens": [spec.end]}
  first = {"Sequence": {"id": "A", "type_id": 0}}
  second = {"Sequence": {"id": "B", "type_id": 1}}
  return {
    "type": "TemplateProcessing",
    "single": [first],
    "pair": [first, second],
    "special_tokens": {spec.end: known},
  }


def _bpe(spec: Spec) -> dict[str, Any]:
  return {
    "type": "BPE",
    "unk_token": spec.names(Type.UNKNOWN)[0],
    "fuse_unk": True,
    "byte_fallback": spec.byte_fallback,
    "vocab": {piece.name: i for i, piece in enumerate(spec.pieces)},
    "merges": _merges(spec.pieces),
  }


def _merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
  """All pairs that give a piece, the piece of the highest score first.

  SentencePiece joins any two neighbours whose text is a piece. A pair's place
  decides here what the score does there, so no two pieces may share a score.
  """
  names = {piece.name for piece in pieces}
  normal = [piece for piece in pieces if piece.type == Type.NORMAL]
  symbols = {piece.name for piece in pieces if piece.type == Type.USER_DEFINED}
  parts = {piece.name for piece in normal}
  parts |= {character for piece in normal for character in piece.name}
  parts -= symbols
  merges: list[tuple[str, str]] = []
  owner: dict[float, str] = {}
  for name, score, _ in sorted(normal, key=lambda piece: -piece.score):
    cuts = [(name[:i], name[i:]) for i in range(len(name) - 1, 0, -1)]
    pairs = [(a, b) for a, b in cuts if a in parts and b in parts]
    if pairs and owner.setdefault(score, name) != name:
      raise InputError(
        f"pieces {owner[score]!r} and {name!r} have the same score, which a "
        "tokenizer.json cannot say"
      )
    missing = sorted({part for pair in pairs for part in pair} - names)
    if missing:
      raise InputError(f"it has a piece {name!r}, but none for {missing[0]!r}")
    merges += pairs
  return merges


def _unigram(spec: Spec) -> dict[str, Any]:
  """The scores, as SentencePiece takes them for pieces that are not normal."""
  normal = [piece.score for piece in spec.pieces if piece.type == Type.NORMAL]
  if not normal:
    raise InputError("it has no pieces of text")
  highest = max(*normal, float(np.finfo(np.float32).tiny))
  never = min(normal) - _NEVER

  def score(piece: Piece) -> float:
    if piece.type == Type.NORMAL:
      return piece.score
    if piece.type == Type.USER_DEFINED:
      return len(piece.name.encode()) * highest - 0.1
    return never

  types = [piece.type for piece in spec.pieces]
  return {
    "type": "Unigram",
    "unk_id": types.index(Type.UNKNOWN),
    "byte_fallback": spec.byte_fallback,
    "vocab": [(piece.name, score(piece)) for piece in spec.pieces],
  }


def _check_symbols(
  tokenizer: tokenizers.Tokenizer, symbols: Sequence[str]
) -> None:
  """SentencePiece leaves symbols as they are; so must the rules here."""
  normalizer = tokenizer.normalizer
  for name in symbols:
    if name not in normalizer.normalize_str(f"x{name}x"):
      raise InputError(
        f"its rules change the user-defined symbol {name!r}, which a "
        "tokenizer.json cannot say otherwise"
      )
