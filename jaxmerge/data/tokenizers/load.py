"""Loads any tokenizer."""

import os

from jaxmerge.data.tokenizers.hugging_face import HuggingFaceTokenizer
from jaxmerge.data.tokenizers.protocol import Tokenizer
from jaxmerge.data.tokenizers.sentence_piece import SentencePieceTokenizer
from jaxmerge.errors import InputError
from jaxmerge.files import expanded
from jaxmerge.reading import read_file


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
  """Loads a tokenizer whose tokens say what bytes they stand for.

  They do in a byte-level tokenizer.json, as of GPT-2, Llama 3, Qwen or SmolLM,
  in one made from a SentencePiece model, as of Llama 2, and in such a model
  itself, as of Llama or Baichuan 2: a file whose name ends in `.model`.

  Raises:
    InputError: no such file, not a tokenizer, no end-of-text token, or of
      another kind (the bytes that a token stands for could not be counted).
  """
  path = expanded(os.fspath(path))
  tokenizer: Tokenizer
  try:
    content = read_file(path)
    if path.endswith(".model"):
      tokenizer = SentencePieceTokenizer(content, path)
    else:
      text = content.decode("utf-8-sig")
      tokenizer = HuggingFaceTokenizer.parse(text, path)
  except (OSError, UnicodeDecodeError) as error:
    reason = getattr(error, "strerror", None) or error
    raise InputError(f"cannot read tokenizer {path}: {reason}") from error
  if isinstance(tokenizer, HuggingFaceTokenizer) and not tokenizer.spelling:
    raise InputError(
      f"tokenizer {path} is not byte-level nor made from a SentencePiece "
      "model, so that bits per byte cannot be counted; use a byte-level BPE"
    )
  _ = tokenizer.end_of_text
  return tokenizer
