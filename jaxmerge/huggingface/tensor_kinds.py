"""Tells tensors that are weights from those that must not be averaged.

By names, dtypes, shapes and what config.json says: no tensor is read.
"""

import contextlib
import re
from collections.abc import Container, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxmerge.errors import InputError, check, grouped
from jaxmerge.formats.lazy_tensors import TensorSpec
from jaxmerge.huggingface.families import table
from jaxmerge.huggingface.families.family import architectures, hf_shape
from jaxmerge.model.shapes import param_shapes
from jaxmerge.reading import read_file, read_json

ADAPTER = "adapter_config.json"
# Files and keys in which tools say that weights are quantized.
_QUANTIZED_FILE = re.compile(
  r"(\w*_)?(quant|quantize|quantization|quanto|compression)(_\w+)?\.json"
)
_QUANTIZED_KEY = re.compile(
  r"(hf_|bnb_)?(quant|quantize|quantization|compression)_config"
  r"|quantization(_bit)?|quant_(method|algo)"
)
# Names that only the parts of a quantized weight have, whatever their dtype.
_QUANTIZED_NAME = re.compile(
  r"(.*\.)?(qweight|qzeros|Qidxs|SCB|scaled_fp8|weight_format|absmax"
  r"|quant_map|nested_(absmax|quant_map)|_packed_params|weight_packed"
  r"|weight_(global_)?scale(_inv|_\d)?|weight_zero_point|scale_weight"
  r"|\w*_scale_inv)|.*\.(quant_state|(weight|input|output)_quantizer"
  r"|\w*fake_quant|activation_post_process)\..*"
)
# What lies beside numbers of few bits and says how large they are.
_SCALE = re.compile(r"\w*(scale|absmax|zero|quant|codebook)\w*", re.I)
_WEIGHT = re.compile(r"(.*[._])?(weight|kernel)")
# A product with what lies beside it is the weight: of PEFT, of LyCORIS, of
# torch.nn.utils.prune (https://huggingface.co/docs/peft).
_FACTOR = re.compile(
  r"(^|[._])((rand|vb)?lora[._]?(a|b|e|up|down|mid|left|right)\d*"
  r"|lora_(embedding_[ab]|magnitude_vector|(linear_)?layer)"
  r"|(up|down)_lora|dora_scale|hada_[wt][12]|lokr_[wt][12]|vera_(a|b|lambda)|ia3_l"
  r"|b?oft_(r|s|diag|blocks)|fourierft_spectrum|weight_mask|base_layer)"
  r"(?![a-z0-9])",
  re.I,
)
# Computed from config.json, wherever a model keeps it.
_DERIVED = re.compile(
  r"(.*\.)?((rot|rope)\w*\.((\w*_)?inv_freq|(cos|sin)_cached|periods)"
  r"|freqs_(cis|cos|sin)"
  r"|(position|token_type)_ids"
  r"|relative_position_index|relative_coords_table|masked_bias"
  r"|num_batches_tracked)"
)
# Of torch.nn.utils: weight_norm, spectral_norm and parametrizations. weight_g
# and original0 are the lengths of weight_norm.
_OF_NORM = re.compile(r"((?:.*\.)?weight\w*)_(v|u|orig)")
_PARAMETRIZED = re.compile(r"(.*\.)?parametrizations\.\w+\.(?!original0$).+")
# Numbers that say where weights lie or in which order.
_PLACES = re.compile(
  r"(.*[._])?(indices|indptr|g?_?idx|(inv)?perm(utation)?|(row|col)_offsets)"
)
# What a module of Transformer Engine keeps beside its weights, as bytes.
_EXTRA_STATE = re.compile(r"(.*\.)?_extra_state\w*")
_MASK = re.compile(r"(.*\.)?((attn_|attention_|causal_)?mask|tril)")
_COMPUTED_MASK = re.compile(r"(.*\.)?((attn|attention|causal)_mask|tril)")
_ATTENTION_BIAS = re.compile(r"(.*\.)?(attn|attention)\.bias")


def is_floating(dtype: Any) -> bool:
  return bool(jnp.issubdtype(dtype, jnp.floating))


def is_derived(name: str, shape: tuple[int, ...]) -> bool:
  """Says whether a model does without a tensor, as it can be computed.

  Angles, positions, causal masks of attention; also the count of batches that
  a BatchNorm has seen, which changes nothing that it computes.
  """
  is_square = len(shape) > 2 and shape[-1] == shape[-2] and shape[0] == 1
  bias = is_square and _ATTENTION_BIAS.fullmatch(name)
  return bool(bias or _DERIVED.fullmatch(name))


def may_be_missing(name: str, shape: tuple[int, ...]) -> bool:
  """Says whether inputs that have a tensor may be merged with one that has not.

  Derived tensors, and masks between all positions, which models compute.
  """
  is_square = len(shape) > 1 and shape[-1] == shape[-2]
  mask = is_square and _COMPUTED_MASK.fullmatch(name)
  return bool(mask or is_derived(name, shape))


def is_mask(name: str) -> bool:
  """Says whether a tensor is named as what is added to attention."""
  return bool(_MASK.fullmatch(name))


def is_part_of_weight(name: str, names: Container[str]) -> bool:
  """Says whether a weight is computed from a tensor, not linearly, and others.

  The lengths of weight_norm are no such part: the weight is linear in them.

  Args:
    name: of the tensor.
    names: of all tensors of the model.
  """
  if _PARAMETRIZED.fullmatch(name):
    return True
  match = _OF_NORM.fullmatch(name)
  if not match:
    return False
  stem, part = match[1], match[2]
  is_spectral = f"{stem}_orig" in names and f"{stem}_u" in names
  return is_spectral or (part == "v" and f"{stem}_g" in names)


def is_extra_state(name: str) -> bool:
  """Says whether bytes are the state of a module, not its weights."""
  return bool(_EXTRA_STATE.fullmatch(name))


def are_places(name: str) -> bool:
  """Says whether whole numbers are named as the places of weights."""
  return bool(_PLACES.fullmatch(name))


def _is_buffer(name: str, shape: tuple[int, ...]) -> bool:
  return is_mask(name) or is_derived(name, shape)


def check_no_adapter(path: epath.Path) -> None:
  """Refuses a directory that holds an adapter, alone or beside a model.

  Raises:
    InputError: it is one; says what to do.
  """
  if not (path / ADAPTER).exists():
    return
  base = None
  with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
    base = read_json(read_file(path / ADAPTER))["base_model_name_or_path"]
  raise InputError(
    f"{path} holds an adapter, says its {ADAPTER}: a mean of factors is not "
    f"the mean of their products; merge it into {base or 'its base model'} "
    "first (peft: merge_and_unload, then save_pretrained)"
  )


def check_are_weights(
  path: epath.Path, config: Any, tensors: Mapping[str, TensorSpec]
) -> None:
  """Refuses tensors that are not the weights of a whole model.

  Args:
    path: their directory.
    config: the value of its config.json.
    tensors: by name.

  Raises:
    InputError: they are quantized, factors or empty.
  """
  quantized = [*_said(path, config), *grouped(_seen(tensors))]
  problems = [
    f"{path} is quantized, {said}: its numbers mean nothing without their "
    "scales; merge what it was made of"
    for said in quantized[:1]
  ]
  if not any(is_floating(spec.dtype) for spec in tensors.values()):
    problems.append(f"{path} holds no tensor of floating-point numbers")
  empty = grouped(
    f"tensor {name} has shape {list(spec.shape)}: it was saved without its "
    "contents (by one process of several, as ZeRO-3 has them?)"
    for name, spec in tensors.items()
    if spec.shape == (0,) or (0 in spec.shape and _WEIGHT.fullmatch(name))
    if not is_extra_state(name)
  )
  factors = grouped(
    f"tensor {name} is a factor of a weight: a mean of factors is not the mean "
    "of their products; merge adapters into the model first (peft: "
    "merge_and_unload)"
    for name in tensors
    if _FACTOR.search(name)
  )
  check(problems + [f"{path}: {found}" for found in (*factors, *empty)])


def _said(path: epath.Path, config: Any, where: str = "") -> Iterator[str]:
  """Files and keys, at any depth of config.json, that say it is quantized."""
  if not where:
    for name in sorted(file.name for file in path.iterdir()):
      if _QUANTIZED_FILE.fullmatch(name):
        yield f"says {name}"
  for key, value in config.items() if isinstance(config, dict) else ():
    if _QUANTIZED_KEY.fullmatch(key) and value not in ("none", "None"):
      if value:
        yield f"says {where}{key} of its config.json"
    else:
      yield from _said(path, value, f"{where}{key}.")


def _seen(tensors: Mapping[str, TensorSpec]) -> Iterator[str]:
  """Tensors that only a quantized model has."""
  scales: dict[str, bool] = {}  # where there are some; whether of full width
  for name, spec in tensors.items():
    place, _, last = name.rpartition(".")
    if _SCALE.fullmatch(last):
      wide = is_floating(spec.dtype) and spec.dtype.itemsize > 1
      scales[place] = scales.get(place, False) or wide
  for name, spec in tensors.items():
    size, floating = spec.dtype.itemsize, is_floating(spec.dtype)
    # The scale lies beside it or, of NF4 and quanto, below its name.
    places = (name, name.rpartition(".")[0])
    if _QUANTIZED_NAME.fullmatch(name):
      yield f"as {name} shows"
    elif floating and size == 1 and any(scales.get(p) for p in places):
      yield f"as {name} of {spec.dtype} beside a scale shows"
    elif floating or spec.dtype == np.bool_ or _is_buffer(name, spec.shape):
      continue
    elif _WEIGHT.fullmatch(name):
      yield f"as {name} of {spec.dtype} shows"
    elif size < 8 and len(spec.shape) > 1 and any(p in scales for p in places):
      yield f"as {name} of {spec.dtype} beside a scale shows"


def contradictions(
  config: Any, tensors: Mapping[str, TensorSpec]
) -> Iterator[str]:
  """Says where a known family's config.json says another model.

  What else there is, as other heads, is nobody's business here.
  """
  try:
    family = table.family_of_type(config)
    model = family.read_config(config)
  except InputError:
    return  # any model may be merged
  try:
    table.check_layers(model, tensors)
  except InputError as error:
    yield from error.problems
    return
  shapes = param_shapes(model)
  known = {
    name: (tensor, hf_shape(tensor, shapes, model))
    for tensor in family.table(shapes)
    for name in tensor.names(model)
  }
  found = {family.other_names.get(name, name): name for name in tensors}
  whole = family.architecture in architectures(config)
  yield from grouped(
    f"tensor {name} has shape {list(tensors[found[name]].shape)}, its "
    f"config.json says {list(shape)}"
    for name, (_, shape) in known.items()
    if name in found and tensors[found[name]].shape != shape
  )
  # Another architecture's has no head, or other prefixes.
  if whole and next(iter(known)) in found:
    yield from grouped(
      f"no tensor {name}, which its config.json asks for"
      for name in known
      if name not in found
    )
  layers = {
    re.sub(r"\d+", "{}", name, count=1) for name in known if name in found
  }
  yield from grouped(
    f"tensor {name} is of a layer that its config.json does not have"
    for name in found
    if name not in known and re.sub(r"\d+", "{}", name, count=1) in layers
  )
