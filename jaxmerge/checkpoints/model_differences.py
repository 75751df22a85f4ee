"""Compares what checkpoints say of their models, by what it means."""

import contextlib
import dataclasses
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from jaxmerge.errors import InputError
from jaxmerge.formats.records.metadata import Metadata
from jaxmerge.huggingface.carried import CONFIG, find_carried, is_needed
from jaxmerge.huggingface.families.family import FAMILIES
from jaxmerge.huggingface.families.reader import ConfigReader
from jaxmerge.model.config import DecoderConfig
from jaxmerge.reading import read_json
from jaxmerge.redaction import presentable

# Keys of a model's config that say how it is computed, not what it is.
HOW_IT_RUNS = ("dtype",)
# Parsed settings that may differ where the tensors are the same.
_NOT_THE_MODEL = (*HOW_IT_RUNS, "vocab_multiple")
_TYPE, _LABELS = "model_type", "id2label"
_UNSUPPORTED = "unsupported"
# Settings of models of any family that change what equal tensors compute, by
# the names that libraries give them.
_MEANING = re.compile(
  r"_class_name|pruned_heads\.\d+|tie_word_embeddings|(.*\.)?("
  r"n(um)?_(\w+_)?heads?(_kv)?|\w+_attention_heads|(\w+_)?head_(dim|size)|d_kv"
  r"|(\w+_)?(hidden_act|hidden_activation|activation|activation_function|act_fn)"
  r"|feed_forward_proj|(\w+_)?(layer)?norm_eps(ilon)?|layernorm_epsilon"
  r"|rope_theta|rope_local_base_freq|rotary_(emb_base|pct|dim)"
  r"|partial_rotary_factor|position_embedding_type|alibi|layer_types"
  r"|(\w+_)?(scaling_factor|multiplier|softcapping)|query_pre_attn_scalar"
  r"|logit_scale|scale_(embedding|attn_\w+)|do_layer_norm_before"
  r"|(use_)?parallel_(attn|residual)|new_decoder_architecture|multi_query"
  r"|rope_interleaved?|norm_type|norm_topk_prob|scoring_func)"
)
# Where versions of transformers write the same settings.
_ROPE = re.compile(r"(?<![^.])rope_(parameters|scaling)\.")
# Names of one function.
_ACTIVATIONS = {
  "swish": "silu",
  "gelu_new": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_accurate": "gelu_tanh",
  "gelu_python": "gelu",
}
_SHOWN = 60
_MOST_TOLD = 100


def model_differences(
  first: Mapping[str, Any], other: Mapping[str, Any], *, are_theirs: bool
) -> dict[str, tuple[Any, Any]]:
  """Settings that give the same tensors another meaning.

  Of families that jaxmerge knows these are the settings as they are read, with
  the defaults of what is not written out; of other models those that both
  write, of names that tell their meaning. Also classes that have changed
  places.

  Args:
    first, other: of two checkpoints.
    are_theirs: each is a config.json, not the fields of a DecoderConfig.

  Returns:
    By name, the value of the first and of the other.
  """
  if first == other:
    return {}
  read = _theirs if are_theirs else _ours
  a, b = read(first), read(other)
  x, y = _by_name(first), _by_name(other)
  keys = sorted(
    key for key in x.keys() & y.keys() if not _alike(x[key], y[key])
  )
  named = {key: (x[key], y[key]) for key in keys}
  if a is None or b is None:
    kinds = first.get(_TYPE), other.get(_TYPE)
    found = {_TYPE: kinds} if all(kinds) and kinds[0] != kinds[1] else named
  else:
    keys = sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))
    found = {k: (a.get(k), b.get(k)) for k in keys}
    if keys == [_UNSUPPORTED] and named:
      found = named
  return found | _moved_label(first.get(_LABELS), other.get(_LABELS))


def stated_differences(
  checkpoints: Sequence[Metadata],
) -> dict[str, list[str]]:
  """All settings that are not written alike, whatever they mean.

  Returns:
    By their names, the value in the config.json of each, as JSON and cut; ""
    where it is not written.
  """
  return _differing([_config(metadata) for metadata in checkpoints])


def differences_beside(
  directories: Sequence[epath.Path],
) -> dict[str, list[str]]:
  """As stated_differences, of JSON files beside the weights.

  As of a preprocessor; a merge takes those of its latest input.
  """
  carried = [find_carried(path) for path in directories]
  found: dict[str, list[str]] = {}
  for name in dict.fromkeys(name for c in carried for name in c.files):
    if not name.endswith(".json") or is_needed(name):
      continue
    beside = [c.read(name) if name in c.files else b"{}" for c in carried]
    with contextlib.suppress(ValueError):
      for key, row in _differing(list(map(read_json, beside))).items():
        found[presentable(f"{name} {key}".strip())] = row
  return dict(itertools.islice(found.items(), _MOST_TOLD))


def _differing(values: Sequence[Any]) -> dict[str, list[str]]:
  stated = [
    {key: json.dumps(inner, default=str) for key, inner in _flat(value).items()}
    for value in values
  ]
  keys = sorted({key for settings in stated for key in settings})
  rows = {key: [settings.get(key, "") for settings in stated] for key in keys}
  found = {key: row for key, row in rows.items() if len(set(row)) > 1}
  return {
    key: [presentable(text[:_SHOWN]) for text in found[key]]
    for key in list(found)[:_MOST_TOLD]
  }


def _config(metadata: Metadata) -> Any:
  if CONFIG in metadata.files:
    with contextlib.suppress(ValueError):
      return read_json(metadata.files[CONFIG])
  return metadata.model


def _flat(config: Any) -> dict[str, Any]:
  """Settings by name, those in others by a dot."""
  found: dict[str, Any] = {}
  todo = [("", config)]
  while todo:
    prefix, value = todo.pop()
    if isinstance(value, Mapping):
      todo += [(f"{prefix}.{key}", inner) for key, inner in value.items()]
    else:
      found[prefix.removeprefix(".")] = value
  return found


def _by_name(model: Mapping[str, Any]) -> dict[str, Any]:
  """The settings of any model whose names tell that they matter."""
  named = {_ROPE.sub("", key): value for key, value in _flat(model).items()}
  return {
    key: value
    for key, value in named.items()
    if value is not None and _MEANING.fullmatch(key)
  }


def _alike(a: Any, b: Any) -> bool:
  if isinstance(a, str) and isinstance(b, str):
    return _ACTIVATIONS.get(a, a) == _ACTIVATIONS.get(b, b)
  return bool(a == b or (a != a and b != b))  # NaN is NaN


def _moved_label(first: Any, other: Any) -> dict[str, tuple[Any, Any]]:
  """A label that is another class of the other model, if there is one."""
  if not isinstance(first, Mapping) or not isinstance(other, Mapping):
    return {}
  a, b = ({str(n).casefold(): k for k, n in x.items()} for x in (first, other))
  moved = (n for n in a if n in b and a[n] != b[n])
  return {f"label2id.{n}": (a[n], b[n]) for n in itertools.islice(moved, 1)}


def _ours(model: Mapping[str, Any]) -> dict[str, Any] | None:
  try:
    return _settings(DecoderConfig.from_dict(model))
  except InputError:  # a tree of no model
    return {k: v for k, v in model.items() if k not in _NOT_THE_MODEL}


def _theirs(model: Mapping[str, Any]) -> dict[str, Any] | None:
  """The settings of a config.json; None of a family that is not known."""
  family = FAMILIES.get(str(model.get(_TYPE)))
  if family is None:
    return None
  reader = ConfigReader(model)
  found = family.read(reader)
  problems = reader.problems
  try:
    found = _settings(DecoderConfig(**found))
  except InputError as error:
    problems += error.problems
  # What is not supported may still be the same in all.
  return {**found, _UNSUPPORTED: problems} if problems else found


def _settings(config: DecoderConfig) -> dict[str, Any]:
  found = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
  found["head_dim"] = config.head_size
  scaling = config.rope_scaling
  stretch = scaling and (scaling.factor, scaling.attention_factor)
  if scaling and scaling.kind != "dynamic" and stretch == (1, 1):
    found["rope_scaling"] = None
  return {k: v for k, v in found.items() if k not in _NOT_THE_MODEL}
