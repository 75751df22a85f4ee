"""What does a merge cost, against mergekit in the same run?

  python -m venv peer && peer/bin/pip install mergekit==0.1.5
  python benchmarks/merge.py --mergekit=peer/bin/mergekit-yaml
                                                (about 10 minutes on 2 cores)

Run it on Linux at the head of the repository. It makes directories of a Llama
of 738M random parameters in bfloat16 (1.48 GB each; 12 GB of disk in all) and
prints four tables:

1. The plain average of two, as whole processes that take turns: median
   seconds after one run that is not counted, the processors' seconds of that
   run, highest peak of memory, and ratios to jaxmerge. Files are in the page
   cache. The last row only reads the same bytes and writes as many.
2. jaxmerge with 2 and with 16 inputs; in memory the ratio is to be within 1.3.
   The 16 are directories of their own, but only four differ: the tensors of
   the others are hard links to these, and are opened and read like any file.
3. Each output against the mean of its inputs in float64. The unit of an error
   is the largest that one rounding to bfloat16 can make, half of the spacing
   at that mean; so 1.000 is as good as it gets.
4. Methods that act on tensors, of directories of 20,000 small tensors each:
   processors' seconds, which are to be within 3 times those of `uniform`.

On a machine that does other work, compare busy seconds, on one core
(`taskset -c 0 python benchmarks/merge.py ...`). `--other` names a checkout of
another state, which takes its turns too.

Memory is what /proc says of the process and its children: resident is VmHWM
(the kernel's own high-water mark), or the highest sum of VmRSS in looks 20 ms
apart where that is more. It includes pages of mapped files, through which
mergekit reads; private is the highest sum of RssAnon, without these.

mergekit runs as it comes and with small output shards: it holds a whole shard
(by default 5 billion parameters, so all of this model) before it writes it.
Its other options gain nothing here: --lazy-unpickle is for pickled
checkpoints, --low-cpu-memory, --read-to-gpu and --multi-gpu for accelerators,
and --async-write, -j and --no-copy-tokenizer made no difference.
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import psutil
import tokenizers
from safetensors import safe_open
from safetensors.numpy import save_file

WIDTH, MLP_WIDTH, DEPTH, VOCABULARY, HEADS = 2048, 5504, 12, 32_000, 16
DISTINCT, MANY = 4, 16
LOOK_SECONDS = 0.02
CHUNK = 1 << 22
OURS, OTHER = "jaxmerge", "jaxmerge, other state"
SMALL, SMALL_SHAPE = 20_000, (8, 16)
SMALL_BOUND = 3.0
# --weights of the methods of table 4, and whether they have a base.
PER_TENSOR = {
  "uniform": ("", False),
  "slerp": ("--weights=.5,.5", False),
  "karcher": ("", False),
  "task_arithmetic": ("", True),
  "ties": ("", True),
  "dare": ("", True),
  "dare_ties": ("", True),
  "model_stock": ("", True),
}
BOUND = 1.3


class Cost(NamedTuple):
  """Of a process with its children; busy are processor seconds."""

  seconds: float
  busy: float
  resident: int
  private: int


def shapes() -> dict[str, tuple[int, ...]]:
  layer = {
    "input_layernorm": (WIDTH,),
    "mlp.down_proj": (WIDTH, MLP_WIDTH),
    "mlp.gate_proj": (MLP_WIDTH, WIDTH),
    "mlp.up_proj": (MLP_WIDTH, WIDTH),
    "post_attention_layernorm": (WIDTH,),
    "self_attn.k_proj": (WIDTH, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.v_proj": (WIDTH, WIDTH),
  }
  found = {
    f"model.layers.{i}.{name}.weight": shape
    for i in range(DEPTH)
    for name, shape in layer.items()
  }
  ends = {"lm_head.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,)}
  return {**ends, "model.embed_tokens.weight": (VOCABULARY, WIDTH), **found}


def tensors(seed: int) -> Iterator[tuple[str, np.ndarray]]:
  rng = np.random.default_rng(seed)
  for name, shape in shapes().items():
    values = 0.02 * rng.standard_normal(shape, np.float32)
    values += 1.0 if len(shape) == 1 else 0.0  # a norm's scale
    yield name, values.astype(ml_dtypes.bfloat16)


def write_texts(directory: Path) -> None:
  """config.json and a tokenizer, the same for all."""
  config = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": MLP_WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "torch_dtype": "bfloat16",
  }
  end = "<|endoftext|>"
  words = {end: 0} | {f"w{i}": i for i in range(1, VOCABULARY)}
  model = tokenizers.models.WordLevel(words, unk_token=end)
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.add_special_tokens([end])
  tokenizer.save(str(directory / "tokenizer.json"))
  names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end}
  for file, value in {
    "config.json": config,
    "tokenizer_config.json": names,
  }.items():
    (directory / file).write_text(json.dumps(value, indent=2) + "\n")


def make_inputs(scratch: Path) -> list[Path]:
  """MANY directories; tensors of all but the first DISTINCT are hard links."""
  found = scratch / "inputs"
  if not found.exists():
    part = scratch / "part"
    shutil.rmtree(part, ignore_errors=True)
    inputs = [part / f"input-{i:02d}" for i in range(MANY)]
    for i, directory in enumerate(inputs):
      directory.mkdir(parents=True)
      write_texts(directory)
      if i < DISTINCT:
        file = directory / "model.safetensors"
        save_file(dict(tensors(seed=i)), file, {"format": "pt"})
        continue
      for file in inputs[i % DISTINCT].glob("*.safetensors"):
        os.link(file, directory / file.name)
    part.rename(found)
  return sorted(found.iterdir())


def make_small(scratch: Path) -> list[Path]:
  """Three directories of SMALL tensors, as of a mixture of experts."""
  found = scratch / "small"
  for i in range(3):
    directory = found / f"input-{i}"
    if directory.exists():
      continue
    directory.mkdir(parents=True)
    rng = np.random.default_rng(i)
    value = {"model_type": "mixture", "architectures": ["Mixture"]}
    (directory / "config.json").write_text(json.dumps(value))
    arrays = {
      f"layers.{n // 400}.experts.{n % 400}.weight": rng.standard_normal(
        SMALL_SHAPE, np.float32
      ).astype(ml_dtypes.bfloat16)
      for n in range(SMALL)
    }
    save_file(arrays, directory / "model.safetensors", {"format": "pt"})
  return sorted(found.iterdir())


def look(process: psutil.Process) -> tuple[int, int, int]:
  """VmHWM, and VmRSS and RssAnon with all children, in bytes."""
  statuses = []
  with contextlib.suppress(psutil.Error):
    for one in [process, *process.children(recursive=True)]:
      with contextlib.suppress(OSError):  # it has just ended
        statuses.append(Path(f"/proc/{one.pid}/status").read_text())
  found = {"VmHWM": [0], "VmRSS": [0], "RssAnon": [0]}
  for line in "".join(statuses).splitlines():
    name, _, value = line.partition(":")
    if name in found:
      found[name].append(1024 * int(value.split()[0]))
  return max(found["VmHWM"]), sum(found["VmRSS"]), sum(found["RssAnon"])


def measured(command: Sequence[str]) -> Cost:
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
  environment.pop("PYTHONDONTWRITEBYTECODE", "")  # else each run compiles
  resident = private = 0
  with tempfile.TemporaryFile("w+") as log:
    before = children_busy()
    began = time.perf_counter()
    process = psutil.Popen(
      command, env=environment, stdout=log, stderr=subprocess.STDOUT
    )
    while process.poll() is None:
      highest, together, anonymous = look(process)
      resident = max(resident, highest, together)
      private = max(private, anonymous)
      time.sleep(LOOK_SECONDS)
    seconds = time.perf_counter() - began
    if process.returncode:
      log.seek(0)
      sys.exit(
        f"{' '.join(command)}\nended with {process.returncode}:\n"
        f"{log.read()[-2000:]}"
      )
  return Cost(seconds, children_busy() - before, resident, private)


def children_busy() -> float:
  usage = resource.getrusage(resource.RUSAGE_CHILDREN)
  return usage.ru_utime + usage.ru_stime


def copying(inputs: Sequence[Path], output: Path) -> Cost:
  """Reads all inputs and writes as many bytes as the first has."""
  buffer = memoryview(bytearray(1 << 24))
  output.mkdir()
  began, before = time.perf_counter(), time.process_time()
  with (output / "copy").open("wb", buffering=0) as written:
    for i, directory in enumerate(inputs):
      for path in directory.glob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
          while count := file.readinto(buffer):
            if i == 0:
              written.write(buffer[:count])
  busy = time.process_time() - before
  return Cost(time.perf_counter() - began, busy, 0, 0)


def our_command(python: str, inputs: Sequence[Path], output: Path) -> list[str]:
  return [
    python,
    "-m",
    "jaxmerge.merge",
    "--config=configs/merge/uniform.py",
    f"--inputs={','.join(map(str, inputs))}",
    f"--output={output}",
    "--allow_unrelated",
  ]


def mergekit_commands(
  mergekit: str, inputs: Sequence[Path], output: Path
) -> dict[str, list[str]]:
  config = output.parent / "mergekit.yaml"
  weight = 1 / len(inputs)
  models = [
    {"model": str(directory), "parameters": {"weight": weight}}
    for directory in inputs
  ]
  value = {"merge_method": "linear", "dtype": "bfloat16", "models": models}
  config.write_text(json.dumps(value, indent=2))  # JSON is YAML
  plain = [mergekit, str(config), str(output), "--quiet"]
  return {
    "mergekit": plain,
    "mergekit, small shards": [*plain, "--out-shard-size", "100M"],
  }


def remove(output: Path) -> None:
  """And waits until the disk has nothing left to write."""
  shutil.rmtree(output, ignore_errors=True)
  os.sync()


def take_turns(
  commands: Mapping[str, Sequence[str]],
  inputs: Sequence[Path],
  output: Path,
  repeats: int,
) -> dict[str, Cost]:
  """Median run and highest memory; the last output of each is kept.

  It is kept beside `output`, under the name of its command.
  """
  costs: dict[str, list[Cost]] = {name: [] for name in (*commands, "copying")}
  for repeat in range(repeats + 1):
    for name in costs:
      remove(output)
      if name in commands:
        cost = measured(commands[name])
      else:
        cost = copying(inputs, output)
      if repeat > 0:  # the first fills caches
        costs[name].append(cost)
      if repeat == repeats and name in commands:
        output.rename(output.parent / name)
  remove(output)
  return {name: summary(runs) for name, runs in costs.items()}


def summary(runs: Sequence[Cost]) -> Cost:
  middle = sorted(runs)[(len(runs) - 1) // 2]
  resident, private = (max(sizes) for sizes in list(zip(*runs))[2:])
  return middle._replace(resident=resident, private=private)


def errors(output: Path, inputs: Sequence[Path]) -> tuple[float, int, int]:
  """Largest error in roundings, entries not correctly rounded, entries."""
  worst, wrong, total = 0.0, 0, 0
  with contextlib.ExitStack() as stack:
    merged = opened(output, stack)
    sources = [opened(directory, stack) for directory in inputs]
    if any(set(source) != set(merged) for source in sources):
      sys.exit(f"{output} has other tensors than its inputs")
    for name, file in merged.items():
      got = file.get_tensor(name)
      arrays = [source[name].get_tensor(name) for source in sources]
      if any((a.shape, a.dtype) != (got.shape, got.dtype) for a in arrays):
        sys.exit(f"{output}: tensor {name} is {got.dtype} of {got.shape}")
      flat = [array.reshape(-1) for array in (got, *arrays)]
      for start in range(0, got.size, CHUNK):
        error, count = chunk_errors(*(a[start : start + CHUNK] for a in flat))
        worst, wrong = max(worst, error), wrong + count
      total += got.size
  return worst, wrong, total


def opened(directory: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
  """The file of each tensor, by the tensor's name."""
  found = {}
  for path in directory.glob("*.safetensors"):
    file = stack.enter_context(safe_open(path, framework="numpy"))
    found |= dict.fromkeys(file.keys(), file)
  return found


def chunk_errors(got: np.ndarray, *inputs: np.ndarray) -> tuple[float, int]:
  # The sum of two bfloat16 is exact in float64 but for what is far below a
  # rounding, and in float32 wherever it is near the middle of two bfloat16; so
  # NumPy, which rounds by way of float32, rounds their mean correctly.
  mean = sum(widened(array) for array in inputs) / len(inputs)
  values = widened(got)
  wrong = np.count_nonzero(values != widened(mean.astype(ml_dtypes.bfloat16)))
  # Half of the spacing of bfloat16 (8 bits) at the mean: its power of two.
  power = (mean.view(np.uint64) & np.uint64(0x7FF << 52)).view(np.float64)
  unit = np.maximum(power, 2.0**-126) * 2.0**-8
  return float((np.abs(values - mean) / unit).max()), wrong


def widened(array: np.ndarray) -> np.ndarray:
  """bfloat16 is the upper half of float32; faster than astype."""
  bits = array.view(np.uint16).astype(np.uint32) << 16
  return bits.view(np.float32).astype(np.float64)


def gibibytes(size: int) -> str:
  return f"{size / 2**30:.2f}"


def print_costs(costs: Mapping[str, Cost]) -> None:
  ours = costs[OURS]
  print("| | seconds | | busy seconds | | resident GiB | | private GiB | |")
  print("|---|" + "---|" * 8)
  for name, cost in costs.items():
    cells = []
    for value, mine, text in zip(cost, ours, shown(cost)):
      cells += [text, f"{value / mine:.2f}x"] if value else ["", ""]
    print(f"| {name} | {' | '.join(cells)} |")
  print(flush=True)


def shown(cost: Cost) -> list[str]:
  times = [f"{seconds:.2f}" for seconds in cost[:2]]
  return times + [gibibytes(size) for size in cost[2:]]


def print_many(few: Cost, many: Cost) -> None:
  print("| inputs | seconds | busy seconds | resident GiB | private GiB |")
  print("|---|" + "---|" * 4)
  for count, cost in {2: few, MANY: many}.items():
    print(f"| {count} | {' | '.join(shown(cost))} |")
  ratios = [b / a for a, b in zip(few, many)]
  print(f"| ratio | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |\n")
  grown = many.resident / few.resident
  within = "within" if grown <= BOUND else "NOT within"
  print(f"Resident memory is {within} {BOUND}.\n", flush=True)


def print_errors(found: Mapping[str, tuple[float, int, int]]) -> None:
  print("| output | largest error | not correctly rounded | entries |")
  print("|---|---|---|---|")
  for name, (worst, wrong, total) in found.items():
    print(f"| {name} | {worst:.3f} | {wrong:,} | {total:,} |")


def print_small(costs: Mapping[str, Cost]) -> None:
  uniform = costs["uniform"].busy
  print("| method | busy seconds | to `uniform` |")
  print("|---|---|---|")
  for name, cost in costs.items():
    print(f"| {name} | {cost.busy:.2f} | {cost.busy / uniform:.2f}x |")
  slowest = max(costs[name].busy for name in PER_TENSOR) / uniform
  within = "within" if slowest <= SMALL_BOUND else "NOT within"
  print(f"\nAll methods are {within} {SMALL_BOUND:g} times `uniform`.\n")


def compare_small(
  arguments: argparse.Namespace, inputs: Sequence[Path], output: Path
) -> None:
  base, *two = inputs
  commands = {}
  for method, (weights, has_base) in PER_TENSOR.items():
    more = [f"--config.method={method}", weights]
    more += [f"--config.base={base}"] if has_base else []
    command = our_command(arguments.python, two, output)
    commands[method] = [*command, *filter(None, more)]
  print(f"Two of {SMALL:,} tensors of shape {list(SMALL_SHAPE)}.\n")
  costs = take_turns(commands, two, output, arguments.repeats)
  for name in commands:
    remove(output.parent / name)
  print_small(costs)


def run(arguments: argparse.Namespace, scratch: Path) -> None:
  inputs = make_inputs(scratch)
  small = make_small(scratch)
  with tempfile.TemporaryDirectory(dir=scratch) as folder:
    compare_small(arguments, small, Path(folder) / "output")
    compare(arguments, inputs, Path(folder) / "output")


def compare(
  arguments: argparse.Namespace, inputs: Sequence[Path], output: Path
) -> None:
  two = inputs[:2]
  commands = {OURS: our_command(arguments.python, two, output)}
  if arguments.other:
    commands[OTHER] = ["env", "-C", arguments.other, *commands[OURS]]
  if arguments.mergekit:
    commands |= mergekit_commands(arguments.mergekit, two, output)
  costs = take_turns(commands, two, output, arguments.repeats)
  print(
    f"Two of 738M parameters in bfloat16, median of {arguments.repeats}, "
    f"{os.cpu_count()} CPU cores;\nratios are to jaxmerge in the same run.\n"
  )
  print_costs(costs)
  found = {name: errors(output.parent / name, two) for name in commands}
  for name in commands:
    remove(output.parent / name)
  many = {OURS: our_command(arguments.python, inputs, output)}
  all_costs = take_turns(many, inputs, output, arguments.repeats)
  print_many(costs[OURS], all_costs[OURS])
  print_errors(found)


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--mergekit", default="", help="its mergekit-yaml")
  parser.add_argument("--other", default="", help="another checkout")
  parser.add_argument("--python", default=sys.executable)
  parser.add_argument("--scratch", default="", help="where inputs are kept")
  parser.add_argument("--repeats", type=int, default=3)
  arguments = parser.parse_args()
  if arguments.scratch:
    Path(arguments.scratch).mkdir(parents=True, exist_ok=True)
    run(arguments, Path(arguments.scratch).absolute())
    return
  with tempfile.TemporaryDirectory() as scratch:
    run(arguments, Path(scratch))


if __name__ == "__main__":
  main()
