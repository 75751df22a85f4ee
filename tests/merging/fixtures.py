"""Checkpoints made by hand, of any tensors, for tests of the merge verb."""

import json
import math
import pickle
import zipfile

import numpy as np
from safetensors.numpy import load_file, save_file

from jaxmerge import merge
from jaxmerge.checkpoints.store import save_params
from jaxmerge.cli import runner
from jaxmerge.formats.lazy_tensors import TensorSpec
from jaxmerge.formats.records.metadata import (
  Metadata,
  describe_leaves,
  versions,
)
from jaxmerge.huggingface.shards import write_tensors
from tests import helpers
from tests.helpers import ROOT, quiet

_STORAGES = {
  "float32": "FloatStorage",
  "float16": "HalfStorage",
  "bfloat16": "BFloat16Storage",
  "int64": "LongStorage",
  "bool": "BoolStorage",
}


def config_of(method, **changes):
  return helpers.config_of("merge", "uniform", method=method, **changes)


def run(inputs, output, method="uniform", *, changes=None, **kwargs):
  """The merge verb's function; inputs may be paths."""
  merge.merge(
    config_of(method, **(changes or {})),
    [str(path) for path in inputs],
    output,
    progress=quiet,
    **kwargs,
  )


def run_rows(inputs, output, rows, **changes):
  """The method `weights` with a row of weights a group; gives the output."""
  weights = [w for row in rows for w in row]
  run(
    inputs,
    output,
    "weights",
    weights=weights,
    changes=changes,
    allow_unrelated=True,
  )
  return output


def command(*words):
  """What a user types behind `python -m jaxmerge.merge`; the exit code."""
  argv = [f"--config={ROOT / 'configs/merge/uniform.py'}", *map(str, words)]
  return runner.run("merge", lambda: merge.main(argv))


def specs_of(tensors):
  return {n: TensorSpec(x.shape, x.dtype) for n, x in tensors.items()}


def hugging_face(
  path, tensors, *, form="one file", files=None, step=None, **config
):
  """A directory of these tensors, in their order.

  Args:
    form: "one file", "shards" or "bin".
    files: texts by name, beside config.json and tokenizer.json.
    step: of a jaxmerge.json; None: there is none.
    config: what config.json says beside its model_type.
  """
  path.mkdir(parents=True)
  value = {"model_type": "anything", "hidden_size": 3, **config}
  texts = {
    "config.json": json.dumps(value, indent=3),
    "tokenizer.json": '{"version": "1.0"}',
    **(files or {}),
  }
  if step is not None:
    texts["jaxmerge.json"] = json.dumps(origin(step))
  for name, text in texts.items():
    (path / name).write_text(text)
  if form == "bin":
    (path / "pytorch_model.bin").write_bytes(b"")
    write_torch_file(path / "pytorch_model.bin", tensors)
  elif form == "shards":
    total = sum(x.nbytes for x in tensors.values())
    write_tensors(path, specs_of(tensors), tensors.values(), total // 3 + 1)
    assert (path / "model.safetensors.index.json").exists()
  else:
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
  return path


def origin(step):
  return {
    "format": 1,
    "kind": "trained",
    "step": step,
    "tokens": step * 10,
    "run_id": "a run",
    "parent": "",
    "data": {},
    "corpus": "",
    "provenance": {},
    "versions": versions(),
  }


def loaded(path):
  """All tensors of a directory as safetensors itself reads them."""
  found = {}
  for file in sorted(path.glob("*.safetensors")):
    found |= load_file(file)
  return found


def write_torch_file(path, tensors):
  """What torch.save writes of contiguous tensors, opcode by opcode."""

  def value(x):
    return pickle.dumps(x, protocol=2)[2:-1]  # without its frame

  content = [b"\x80\x02}("]
  for key, (name, array) in enumerate(tensors.items()):
    strides = [math.prod(array.shape[i + 1 :]) for i in range(array.ndim)]
    storage = _STORAGES[str(array.dtype)]
    content += [
      value(name) + b"ctorch._utils\n_rebuild_tensor_v2\n((",
      value("storage") + f"ctorch\n{storage}\n".encode() + value(str(key)),
      value("cpu") + value(array.size) + b"tQ" + value(0),
      value(array.shape) + value(tuple(strides)) + b"\x89}tR",
    ]
  content.append(b"u.")
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("model/data.pkl", b"".join(content))
    for key, array in enumerate(tensors.values()):
      archive.writestr(f"model/data/{key}", array.tobytes())


def step_directory(path, tree, step=1, run_id="a run"):
  """A step directory of any tree of arrays."""
  metadata = Metadata(
    kind="trained",
    step=step,
    tokens=step * 10,
    run_id=run_id,
    parent="",
    model={},
    data={},
    corpus="",
    tokenizer="{}",
    leaves={"params": describe_leaves(tree)},
    iterator="",
    provenance={},
    versions=versions(),
  )
  save_params(path, tree, metadata)
  return path


def assert_same_bytes(a, b):
  assert a.keys() == b.keys()
  for name, array in a.items():
    other = np.asarray(b[name])
    array = np.asarray(array)
    assert array.dtype == other.dtype, name
    assert array.shape == other.shape, name
    assert array.tobytes() == other.tobytes(), name


def stacked(seed, depth=3):
  rng = np.random.default_rng(seed)
  return {
    "layers": {"kernel": rng.normal(size=(depth, 4, 5)).astype(np.float32)},
    "norm": rng.normal(size=6).astype(np.float32),
  }


def unstacked(tree):
  kernel = tree["layers"]["kernel"]
  parts = {f"layer_{i}": kernel[i] for i in range(len(kernel))}
  return {**parts, "norm": tree["norm"]}
