"""The files of JSON that transformers needs beside tensors of our own."""

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from jaxmerge.data.tokenizers.protocol import Tokenizer
from jaxmerge.errors import InputError
from jaxmerge.formats.records.metadata import Metadata
from jaxmerge.huggingface.tensors import CONFIG


def made_files(
  model: Mapping[str, Any],
  tokenizer: str,
  files: Mapping[str, str],
  trained_length: int | None,
) -> dict[str, str]:
  """Texts of config.json and of what says how to tokenize and generate.

  The token that stood before every document in training begins, ends and pads
  a text. A config.json has no pad_token_id: transformers would not train its
  row of the embedding.

  Args:
    model: the keys of config.json that say what the model is.
    tokenizer: tokenizer.json, "" without.
    files: what is carried along, a tokenizer.model maybe.
    trained_length: targets in a sequence of the training; None: not known.
  """
  length = {"max_position_embeddings": trained_length} if trained_length else {}
  known = _tokenizer(tokenizer, files)
  number = known.end_of_text if known else None
  ids = {"bos_token_id": number, "eos_token_id": number}
  made: dict[str, Any] = {CONFIG: {**length, **model, **ids}}
  if known:
    made["generation_config.json"] = {**ids, "pad_token_id": number}
  if known and tokenizer:
    name = next(n for n, i in known.vocabulary.items() if i == number)
    made["tokenizer_config.json"] = {
      # That of the model's own family adds tokens that ours does not have.
      "tokenizer_class": "PreTrainedTokenizerFast",
      "bos_token": name,
      "eos_token": name,
      "pad_token": name,
      "padding_side": "left",
      "model_input_names": ["input_ids", "attention_mask"],
      "clean_up_tokenization_spaces": False,
      **({"model_max_length": trained_length} if trained_length else {}),
    }
  return {n: json.dumps(v, indent=2) + "\n" for n, v in made.items()}


def _tokenizer(text: str, files: Mapping[str, str]) -> Tokenizer | None:
  """The tokenizer, None without one that says where a text ends."""
  kept = Metadata("imported", {}, tokenizer=text, files=files)
  with contextlib.suppress(InputError):
    for tokenizer in kept.tokenizers():
      _ = tokenizer.end_of_text
      return tokenizer
  return None
