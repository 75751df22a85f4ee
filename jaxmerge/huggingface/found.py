"""Says what lies in a directory that cannot be taken for a model."""

import itertools
import re
from collections.abc import Iterator, Sequence

from etils import epath

from jaxmerge.huggingface.carried import CONFIG, WEIGHTS

_MOST_LISTED = 10_000
_MOST_FOLDERS = 100
_MOST_SHOWN = 4
_SHARD = re.compile(r"(.+)-\d+-of-\d+\.(safetensors|bin)")
# Kinds of files, and what is to be done with each.
_KINDS = (
  (
    r"consolidated.*\.(pth|safetensors)",
    "in the form of Llama's or Mistral's own code; transformers has a script "
    "that makes a Hugging Face directory of it",
  ),
  (r".*\.gguf", "made for llama.cpp; take the model that it was made of"),
  (
    r".*\.distcp|pytorch_model_fsdp_\d+",
    "shards of torch.distributed.checkpoint; make one file of them "
    "(dcp_to_torch_save)",
  ),
  (
    r"zero_to_fp32\.py|global_step\d+|.*_(model|optim)_states\.pt",
    "a checkpoint of DeepSpeed; its zero_to_fp32.py makes the model of it",
  ),
  (
    r"latest_checkpointed_iteration\.txt|iter_\d{7}",
    "a checkpoint of Megatron, whose tools make a Hugging Face directory of it",
  ),
  (
    r".*\.nemo|model_weights|model_config\.yaml",
    "of NeMo, whose scripts make a Hugging Face directory of it",
  ),
  (
    r"(tf_model.*|flax_model.*|rust_model.*|.*\.(h5|msgpack|onnx|ckpt|pt|pth))",
    "of a kind that is not read; save the model as safetensors",
  ),
  (r"model_index\.json", "a pipeline of diffusers; name one of its folders"),
)


def found_instead(path: epath.Path) -> str:
  """The end of a message that there is no model: "; it holds ...", or "".

  Args:
    path: of what a user has named.
  """
  try:
    if not path.is_dir():
      return "; it is a file: name the directory that holds it"
    names = sorted(
      p.name for p in itertools.islice(path.iterdir(), _MOST_LISTED)
    )
    if not names:
      return "; it is empty"
    found = list(_findings(path, names))
  except OSError:
    return ""
  return "; it holds " + "; and ".join(found) if found else ""


def _findings(path: epath.Path, names: Sequence[str]) -> Iterator[str]:
  told: set[str] = set()
  for form, what in _KINDS:
    files = [n for n in names if n not in told and re.fullmatch(form, n)]
    told |= {*files}
    if files:
      yield f"{_listed(files)}, {what}"
  yield from _own_weights(names)
  models = list(itertools.islice(_models_below(path, names), _MOST_SHOWN + 1))
  if models:
    yield f"a model in {_listed(models)}: name that folder"


def _own_weights(names: Sequence[str]) -> Iterator[str]:
  """Weights that would be read under other names or with another file."""
  files = [n for n in names if re.fullmatch(r".*\.(safetensors|bin)", n)]
  files = [n for n in files if not n.startswith("consolidated")]
  shards = [name for name in files if _SHARD.fullmatch(name)]
  stems = sorted({_SHARD.sub(r"\1.\2", name) for name in shards})
  for stem in stems:
    if f"{stem}.index.json" not in names:
      yield (
        f"shards of {stem} without the index {stem}.index.json, which says "
        "where each tensor lies"
      )
  if CONFIG not in names and not shards:
    indices = [name for name in names if name.endswith(".index.json")]
    yield from (f"{name} without its shards" for name in indices)
  alone = [n for n in files if n not in shards and n != "training_args.bin"]
  if alone and CONFIG not in names:
    yield f"{_listed(alone)}, but no {CONFIG}"
  elif len(alone) == 1:
    [name] = alone
    yield f"{name}: call it model.{name.rpartition('.')[2]} if it is the model"
  elif alone:
    yield f"{_listed(alone)}, none of which is called model.safetensors"


def _models_below(path: epath.Path, names: Sequence[str]) -> Iterator[str]:
  """Folders with a config.json and weights, one or two levels below."""
  folders = [n for n in names if not n.startswith(".")][:_MOST_FOLDERS]
  for name in folders:
    if not (path / name).is_dir():
      continue
    inside = [p.name for p in itertools.islice((path / name).iterdir(), 1000)]
    if CONFIG in inside and any(map(WEIGHTS.fullmatch, inside)):
      yield name
      continue
    for below in sorted(inside)[:_MOST_FOLDERS]:
      if (path / name / below / CONFIG).exists():
        yield f"{name}/{below}"


def _listed(names: Sequence[str]) -> str:
  more = len(names) - _MOST_SHOWN
  return ", ".join(names[:_MOST_SHOWN]) + (f" and {more} more" * (more > 0))
