"""Items per second, against lm-eval's Hugging Face backend.

  python benchmarks/evaluate.py                 (10 minutes of one core)
  python benchmarks/evaluate.py --width=64 --depth=2 --items=8       (one)
  python benchmarks/evaluate.py --large                (a GPU, bfloat16)

in an environment with lm-eval, torch and transformers beside jaxmerge; without
lm-eval our side is measured alone. Both score the same texts of one random
model, in turns, and must give the same log-likelihoods: on one core with
float32, in the processor's time, or on a GPU with bfloat16, in the clock's.
From texts to log-likelihoods: tokenizing is in it, compiling (a round before)
is not.
"""

import argparse
import dataclasses
import importlib.util
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

_IS_LARGE = "--large" in sys.argv[1:]
if not _IS_LARGE:
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
  os.environ |= {"JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false"}
os.environ["HF_HUB_OFFLINE"] = "1"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from jaxmerge.checkpoints import models  # noqa: E402
from jaxmerge.data.heldout import HeldOut  # noqa: E402
from jaxmerge.data.tokenizers.hugging_face import train_tokenizer  # noqa: E402
from jaxmerge.data.tokenizers.load import load_tokenizer  # noqa: E402
from jaxmerge.evaluation.evaluators.choices import Choices  # noqa: E402
from jaxmerge.evaluation.evaluators.heldout_loss import (  # noqa: E402
  HeldOutLoss,
)
from jaxmerge.evaluation.tasks.task import ChoiceItem  # noqa: E402
from jaxmerge.model.decoder import abstract_decoder  # noqa: E402
from jaxmerge.parallel.mesh import make_mesh  # noqa: E402

_HAS_PEER = importlib.util.find_spec("lm_eval") is not None
if _HAS_PEER:
  from lm_eval.api.instance import Instance
  from lm_eval.models.huggingface import HFLM

_CONTEXT, _BATCH = 512, 128 if _IS_LARGE else 16
_DTYPE, _DEVICE = ("bfloat16", "cuda") if _IS_LARGE else ("float32", "cpu")
# Relative: of sums over the tokens of a text.
_TOLERANCE = 2e-2 if _IS_LARGE else 1e-4
_clock = time.perf_counter if _IS_LARGE else time.process_time
_END = "<|endoftext|>"


def make_model(folder: pathlib.Path, text: str, width: int, depth: int) -> None:
  """A random Llama and a tokenizer of some text, as a directory."""
  tokenizer = train_tokenizer([text], vocab_size=8192 if width > 64 else 1024)
  tokenizer.save(folder)
  config = transformers.LlamaConfig(
    vocab_size=tokenizer.size,
    hidden_size=width,
    intermediate_size=11 * width // 4,
    num_hidden_layers=depth,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=_CONTEXT,
    tie_word_embeddings=True,
  )
  torch.manual_seed(0)
  transformers.LlamaForCausalLM(config).save_pretrained(folder)
  transformers.PreTrainedTokenizerFast(
    tokenizer_file=str(folder / tokenizer.file_name),
    bos_token=_END,
    eos_token=_END,
    pad_token=_END,
  ).save_pretrained(folder)


def make_items(
  words: Sequence[str], count: int, choice_words: int
) -> list[ChoiceItem]:
  """Prompts of 60 to 110 words, and four choices of about so many."""
  random = np.random.default_rng(0)

  def some(least: int, most: int) -> str:
    start = int(random.integers(len(words) - most))
    return " ".join(words[start : start + int(random.integers(least, most))])

  return [
    ChoiceItem(
      f"{i}",
      some(60, 110),
      tuple(
        f" {some(choice_words // 2, 2 * choice_words)}"
        if choice_words
        else f" {letter}"
        for letter in "ABCD"
      ),
      0,
      f"{i}",
      f"{i}",
    )
    for i in range(count)
  ]


class Sides:
  """One model on both sides; each gives summed log-likelihoods."""

  def __init__(self, folder: pathlib.Path):
    saved = models.load(folder)
    self._params = jax.tree.map(lambda x: jnp.asarray(x, _DTYPE), saved.params)
    self._config = dataclasses.replace(saved.config, dtype=_DTYPE)
    self._mesh = make_mesh()
    self._tokenizer = load_tokenizer(folder / "tokenizer.json")
    if _HAS_PEER:
      self._lm = HFLM(
        str(folder), device=_DEVICE, dtype=_DTYPE, batch_size=_BATCH
      )

  def our_choices(self, items: Sequence[ChoiceItem]) -> np.ndarray:
    task = Choices(
      self._config,
      self._mesh,
      items,
      self._tokenizer,
      context=_CONTEXT,
      batch_size=_BATCH,
    )
    return task.log_likelihoods(self._params).ravel()

  def their_choices(self, items: Sequence[ChoiceItem]) -> np.ndarray:
    pairs = [(i.prompt, choice) for i in items for choice in i.choices]
    found = self._lm.loglikelihood(
      [
        Instance("loglikelihood", {}, pair, number)
        for number, pair in enumerate(pairs)
      ],
      disable_tqdm=True,
    )
    return np.array([log for log, _ in found])

  def our_losses(self, texts: Sequence[str]) -> np.ndarray:
    ids = self._tokenizer.encode_batch(texts)
    tokens_NxL1 = np.zeros((len(ids), _CONTEXT + 1), np.int32)
    mask_NxL = np.zeros((len(ids), _CONTEXT), bool)
    for row, each in enumerate(ids):
      tokens_NxL1[row, 0] = self._tokenizer.end_of_text
      tokens_NxL1[row, 1 : len(each) + 1] = each
      mask_NxL[row, : len(each)] = True
    numbers = np.arange(len(ids))
    held = HeldOut(tokens_NxL1, mask_NxL, numbers, numbers + 1, ("",))
    graph, _ = abstract_decoder(self._config)
    task = HeldOutLoss(graph, self._mesh, held, _BATCH)
    return -task.score(self._params).values_N

  def their_losses(self, texts: Sequence[str]) -> np.ndarray:
    requests = [
      Instance("loglikelihood_rolling", {}, (text,), number)
      for number, text in enumerate(texts)
    ]
    return np.array(self._lm.loglikelihood_rolling(requests, disable_tqdm=True))

  def cut(self, text: str, tokens: int) -> list[str]:
    """Texts of about so many tokens, and no more."""
    [ids] = self._tokenizer.encode_batch([text])
    parts = [
      self._tokenizer.decode(ids[start : start + tokens - 8])
      for start in range(0, len(ids) - tokens, tokens)
    ]
    return [
      part
      for part, found in zip(parts, self._tokenizer.encode_batch(parts))
      if len(found) <= tokens
    ]


def compare(
  name: str,
  ours: Callable[[], np.ndarray],
  theirs: Callable[[], np.ndarray],
  items: int,
  rounds: int,
) -> str:
  """A row of the table, after as many turns."""
  sides = {"ours": ours} | ({"theirs": theirs} if _HAS_PEER else {})
  seconds: dict[str, list[float]] = {side: [] for side in sides}
  results = {}
  for turn in range(rounds + 1):
    for side, work in sides.items():
      start = _clock()
      results[side] = work()
      if turn:
        seconds[side].append(_clock() - start)
  if not _HAS_PEER:
    rate = items / statistics.median(seconds["ours"])
    return f"| {name} | {items} | {rate:.3g} | no lm-eval | | |"
  a, b = results["ours"], results["theirs"]
  error = float(np.abs(a / b - 1).max())
  assert error < _TOLERANCE, f"{name}: log-likelihoods differ by {error:.1e}"
  speed = {k: items / statistics.median(each) for k, each in seconds.items()}
  ratios = sorted(b / a for a, b in zip(seconds["ours"], seconds["theirs"]))
  return (
    f"| {name} | {items} | {speed['ours']:.3g} | {speed['theirs']:.3g} | "
    f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) | "
    f"{error:.0e} |"
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--large", action="store_true", help="for a GPU")
  width, depth, items = (768, 12, 1024) if _IS_LARGE else (512, 8, 48)
  for name, value in (
    ("width", width),
    ("depth", depth),
    ("items", items),
    ("rounds", 3),
  ):
    parser.add_argument(f"--{name}", type=int, default=value)
  arguments = parser.parse_args()
  torch.set_num_threads(1)
  docs = pathlib.Path(__file__).parent.parent / "docs"
  text = "\n".join(f.read_text() for f in sorted(docs.glob("*.md")))
  count = arguments.items
  print(
    "| | items | jaxmerge, items/s | lm-eval, items/s | ratio | largest "
    "relative difference |\n|---|---|---|---|---|---|"
  )
  with tempfile.TemporaryDirectory() as path:
    folder = pathlib.Path(path)
    make_model(folder, text, arguments.width, arguments.depth)
    sides = Sides(folder)
    for name, choice_words in (
      ("four choices of 4 to 16 words", 8),
      ("four letters", 0),
    ):
      items = make_items(text.split(), count, choice_words)
      row = compare(
        name,
        lambda items=items: sides.our_choices(items),
        lambda items=items: sides.their_choices(items),
        count,
        arguments.rounds,
      )
      print(row, flush=True)
    texts = sides.cut(text, _CONTEXT)[:count]
    row = compare(
      f"losses of texts of {_CONTEXT} tokens",
      lambda: sides.our_losses(texts),
      lambda: sides.their_losses(texts),
      len(texts),
      arguments.rounds,
    )
    print(row, flush=True)


if __name__ == "__main__":
  main()
