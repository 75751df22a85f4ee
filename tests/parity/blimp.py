"""BLiMP on SmolLM2-135M, here and by lm-eval's Hugging Face backend.

  python -m tests.parity.blimp FOLDER BLIMP_DIR [ITEMS]

FOLDER gets the model, if it is not there, the same items for both and what
they have found, BLOCK items of a paradigm at a time: a run that is stopped goes
on there, and the table is of all that is there. Needs the extra `parity` and
lm-eval with what its backend `hf` wants.

N pairs of sentences.
"""

import json
import pathlib
import sys
import time
from collections.abc import Callable

import jax
import lm_eval
import numpy as np
from lm_eval.models.huggingface import HFLM

from jaxmerge.checkpoints import models
from jaxmerge.data.tokenizers.load import load_tokenizer
from jaxmerge.evaluation.evaluators.choices import Choices
from jaxmerge.evaluation.tasks.task import parse_task
from jaxmerge.parallel.mesh import make_mesh
from tests.parity import smollm2

BLOCK = 100
# As lm-eval's own tasks have it; the text before a sentence is empty.
_TASK = {
  "dataset_path": "json",
  "output_type": "multiple_choice",
  "validation_split": "validation",
  "doc_to_text": "",
  "doc_to_target": 0,
  "doc_to_choice": "{{[sentence_good, sentence_bad]}}",
  "metric_list": [{"metric": "acc"}],
}
# Of a file: which are right, float64[N], and log-likelihoods, float64[N, 2].
Find = Callable[[pathlib.Path], tuple[np.ndarray, np.ndarray]]


def theirs(model: pathlib.Path) -> Find:
  lm = HFLM(str(model), device="cpu", dtype="float32", batch_size=32)

  def find(file: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    folder = file.with_suffix("")
    folder.mkdir(exist_ok=True)
    task = {
      **_TASK,
      "task": file.stem,
      "dataset_kwargs": {"data_files": {"validation": str(file)}},
    }
    (folder / f"{file.stem}.yaml").write_text(json.dumps(task))  # YAML too
    found = lm_eval.simple_evaluate(
      model=lm,
      tasks=[file.stem],
      task_manager=lm_eval.tasks.TaskManager(
        include_path=str(folder), include_defaults=False
      ),
      bootstrap_iters=0,
      log_samples=True,
    )
    [samples] = found["samples"].values()
    samples.sort(key=lambda sample: sample["doc_id"])
    logs = [[log for log, _ in each["filtered_resps"]] for each in samples]
    return np.array([s["acc"] for s in samples], float), np.array(logs, float)

  return find


def ours(model: pathlib.Path) -> Find:
  saved = models.load(model)
  params = jax.device_put(saved.params)
  tokenizer = load_tokenizer(model / "tokenizer.json")

  def find(file: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    task = Choices(
      saved.config,
      make_mesh(),
      parse_task(f"pairs:{file}").read(template=" "),
      tokenizer,
      context=smollm2.CONFIG["max_position_embeddings"],
      batch_size=32,
    )
    logs_Nx2 = task.log_likelihoods(params)
    return (logs_Nx2[:, 0] > logs_Nx2[:, 1]).astype(float), logs_Nx2

  return find


SIDES = {"jaxmerge": ours, "lm-eval": theirs}


def blocks(folder: pathlib.Path, source: pathlib.Path, count: int) -> list:
  """(paradigm, file) of each block, the first of every paradigm first."""
  found = []
  for start in range(0, count, BLOCK):
    for file in sorted(source.glob("*.jsonl")):
      block = folder / f"{file.stem}-{start}.jsonl"
      lines = file.read_text().splitlines(keepends=True)
      block.write_text("".join(lines[start : min(start + BLOCK, count)]))
      found.append((file.stem, block))
  return found


def measure(folder: pathlib.Path, files: list[pathlib.Path]) -> None:
  model = folder / "smollm2"
  if not model.exists():
    smollm2.make(model)
  sides = {}
  for file in files:
    for side, prepare in SIDES.items():
      place = file.with_suffix(f".{side}.npz")
      if place.exists():
        continue
      start = time.process_time()
      sides[side] = sides.get(side) or prepare(model)
      right_N, logs_Nx2 = sides[side](file)
      seconds = time.process_time() - start
      part = file.with_suffix(".part")
      with part.open("wb") as out:
        np.savez(out, right_N=right_N, logs_Nx2=logs_Nx2, seconds=seconds)
      part.rename(place)
    print(file.stem, flush=True)


def table(found: list) -> None:
  """Of the blocks that both have done."""
  done: dict[str, dict[str, list]] = {}
  for name, file in found:
    places = [file.with_suffix(f".{side}.npz") for side in SIDES]
    if all(place.exists() for place in places):
      for side, place in zip(SIDES, places):
        of_side = done.setdefault(name, {side: [] for side in SIDES})
        of_side[side].append(np.load(place))
  print(
    "| paradigm | pairs | jaxmerge | lm-eval | decided otherwise | "
    "max difference, nats |"
  )
  print("|---|---|---|---|---|---|")
  for name, each in done.items():
    a, b = (
      {
        k: np.concatenate([p[k] for p in each[side]])
        for k in ("right_N", "logs_Nx2")
      }
      for side in SIDES
    )
    other = int((a["right_N"] != b["right_N"]).sum())
    most = np.abs(a["logs_Nx2"] - b["logs_Nx2"]).max()
    print(
      f"| {name} | {len(a['right_N'])} | {a['right_N'].mean():.3f} | "
      f"{b['right_N'].mean():.3f} | {other} | {most:.1e} |"
    )
  for side in SIDES:
    seconds = sum(p["seconds"] for each in done.values() for p in each[side])
    print(f"{side}: {seconds:.0f} CPU seconds")


def main(folder: pathlib.Path, source: pathlib.Path, count: int) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  found = blocks(folder, source, count)
  try:
    measure(folder, [file for _, file in found])
  finally:
    table(found)


if __name__ == "__main__":
  main(
    pathlib.Path(sys.argv[1]),
    pathlib.Path(sys.argv[2]),
    int((*sys.argv, "1000")[3]),
  )
