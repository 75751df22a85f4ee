"""BLiMP on SmolLM2-135M, here and by lm-eval's Hugging Face backend.

  python -m tests.parity.blimp FOLDER BLIMP_DIR [ITEMS]

FOLDER gets the model, if it is not there, and the same items for both. Needs
the extra `parity` and lm-eval with what its backend `hf` wants.
"""

import json
import pathlib
import sys
import time

import lm_eval
import numpy as np
from lm_eval.models.huggingface import HFLM

from jaxmerge.checkpoints import models
from jaxmerge.data.tokenizers.load import load_tokenizer
from jaxmerge.evaluation.evaluators.choices import Choices
from jaxmerge.evaluation.tasks.task import parse_task
from jaxmerge.parallel.mesh import make_mesh
from tests.parity import smollm2

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


def theirs(model: pathlib.Path, files: list[pathlib.Path]) -> dict:
  """(accuracy, log-likelihoods N x 2) of each file."""
  folder = files[0].parent / "tasks"
  folder.mkdir(exist_ok=True)
  for file in files:
    task = {
      **_TASK,
      "task": file.stem,
      "dataset_kwargs": {"data_files": {"validation": str(file)}},
    }
    (folder / f"{file.stem}.yaml").write_text(json.dumps(task))  # YAML too
  lm = HFLM(str(model), device="cpu", dtype="float32", batch_size=32)
  found = lm_eval.simple_evaluate(
    model=lm,
    tasks=[file.stem for file in files],
    task_manager=lm_eval.tasks.TaskManager(
      include_path=str(folder), include_defaults=False
    ),
    bootstrap_iters=0,
    log_samples=True,
  )
  return {
    name: (
      found["results"][name]["acc,none"],
      np.array(
        [
          [log for log, _ in sample["filtered_resps"]]
          for sample in sorted(samples, key=lambda sample: sample["doc_id"])
        ],
        np.float64,
      ),
    )
    for name, samples in found["samples"].items()
  }


def ours(model: pathlib.Path, files: list[pathlib.Path]) -> dict:
  saved = models.load(model)
  tokenizer = load_tokenizer(model / "tokenizer.json")
  found = {}
  for file in files:
    items = parse_task(f"pairs:{file}").read(template=" ")
    task = Choices(
      saved.config,
      make_mesh(),
      items,
      tokenizer,
      context=smollm2.CONFIG["max_position_embeddings"],
      batch_size=32,
    )
    logs_NxC = task.log_likelihoods(saved.params)
    found[file.stem] = (
      float((logs_NxC[:, 0] > logs_NxC[:, 1]).mean()),
      logs_NxC,
    )
  return found


def main(folder: pathlib.Path, source: pathlib.Path, count: int) -> None:
  model = folder / "smollm2"
  if not model.exists():
    smollm2.make(model)
  files = []
  for file in sorted(source.glob("*.jsonl")):
    files.append(folder / file.name)
    lines = file.read_text().splitlines(keepends=True)[:count]
    files[-1].write_text("".join(lines))
  start = time.process_time()
  a = ours(model, files)
  middle = time.process_time()
  b = theirs(model, files)
  end = time.process_time()
  print(
    f"CPU seconds: jaxmerge {middle - start:.0f}, lm-eval {end - middle:.0f}"
  )
  print("| paradigm | jaxmerge | lm-eval | max difference, nats |")
  print("|---|---|---|---|")
  for name, (accuracy, logs_NxC) in a.items():
    other, their_logs_NxC = b[name]
    most = np.abs(logs_NxC - their_logs_NxC).max()
    print(f"| {name} | {accuracy:.3f} | {other:.3f} | {most:.1e} |")


if __name__ == "__main__":
  main(
    pathlib.Path(sys.argv[1]),
    pathlib.Path(sys.argv[2]),
    int((*sys.argv, "200")[3]),
  )
