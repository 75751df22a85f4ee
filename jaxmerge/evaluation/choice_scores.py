"""Multiple choice in tokens, and scores from log-likelihoods of choices.

N items, C choices of an item at most.
"""

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxmerge.data.tokenizers.protocol import Tokenizer
from jaxmerge.errors import InputError, check, grouped
from jaxmerge.evaluation.score import Direction, Score
from jaxmerge.evaluation.tasks.task import ChoiceItem

ACCURACY = "accuracy"
BITS = "bits/byte"
_BATCH = 256  # items tokenized at once: the tokens of all take much memory


class Encoded(NamedTuple):
  """A prompt and its choices, int32 tokens each.

  Attributes:
    prompt: one token or more, before any of the choices.
    choices: one token or more each.
    is_cut: the prompt has lost its left end.
  """

  prompt: np.ndarray
  choices: tuple[np.ndarray, ...]
  is_cut: bool


def encode(
  items: Sequence[ChoiceItem],
  tokenizer: Tokenizer,
  context: int,
) -> list[Encoded]:
  """Tokenizes items as lm-eval does, prompt and choice together.

  White space at the end of a prompt goes to its choices, as tokenizers join it
  to words. Prompt and choice are tokenized as one text, and so many tokens cut
  off its beginning as the prompt alone has. Before an empty prompt stands the
  end of text, which is a token to begin with. A prompt that is too long for
  its longest choice loses its left end, the same for all choices.

  Args:
    context: positions of the model: tokens of a prompt and a choice but one.

  Raises:
    InputError: lists choices that alone take more than the context.
  """
  encoded: list[Encoded] = []
  problems: list[str] = []
  for start in range(0, len(items), _BATCH):
    batch = items[start : start + _BATCH]
    for item, (prompt, choices) in zip(batch, _pairs(batch, tokenizer)):
      problems += _problems(item, choices, context)
      if not len(prompt):
        prompt = np.append(_array([tokenizer.end_of_text]), prompt)
      room = max(context + 1 - max(map(len, choices)), 1)
      encoded.append(Encoded(prompt[-room:], choices, len(prompt) > room))
  check(problems)
  return encoded


@contextlib.contextmanager
def naming(task: str) -> Iterator[None]:
  """Names the task in what is wrong with its items, and but one of these."""
  try:
    yield
  except InputError as error:
    problems = (f"{task}: {problem}" for problem in error.problems)
    raise InputError(grouped(problems)) from error


def _problems(
  item: ChoiceItem, choices: Sequence[np.ndarray], context: int
) -> Iterator[str]:
  for text, ids in zip(item.choices, choices):
    if not len(ids):
      yield f"item {item.id!r}: the tokenizer has no token for {text!r}"
    elif len(ids) > context:
      yield (
        f"item {item.id!r}: choice {text.strip()!r} has {len(ids)} tokens, and "
        f"the model {context} positions"
      )


def _pairs(
  items: Sequence[ChoiceItem], tokenizer: Tokenizer
) -> Iterator[tuple[np.ndarray, tuple[np.ndarray, ...]]]:
  """Yields each item's prompt in tokens, maybe none, and its choices."""
  prompts = [item.prompt.rstrip() for item in items]
  texts = [
    [item.prompt[len(prompt) :] + choice for choice in item.choices]
    for item, prompt in zip(items, prompts)
  ]
  alone = iter(tokenizer.encode_batch([*prompts, *itertools.chain(*texts)]))
  wholes = iter(
    tokenizer.encode_batch(
      [prompt + text for prompt, each in zip(prompts, texts) for text in each]
    )
  )
  for prompt, each in zip([_array(next(alone)) for _ in prompts], texts):
    # A token that begins in the prompt may have swallowed the choice.
    tails = [(next(wholes)[len(prompt) :], next(alone)) for _ in each]
    yield prompt, tuple(_array(tail or own) for tail, own in tails)


def _array(ids: Sequence[int]) -> np.ndarray:
  return np.array(ids, np.int32)


def scores(
  items: Sequence[ChoiceItem], logs_NxC: np.ndarray, tokens: int
) -> dict[str, Score]:
  """Scores by name: acc, acc_norm, and gold, the right answer's bits/byte.

  `acc` is the share of items whose answer is likelier than every other choice
  (a tie is not right: of a pair of twice the same sentence nobody can tell);
  `acc_norm` compares the log-likelihood by UTF-8 byte of a choice, without the
  white space before it. `gold` needs no other choice, and is the smoothest.

  Args:
    logs_NxC: nats, the log-likelihoods of choices; -inf where there is none.
    tokens: as Score's.
  """
  answer_N = np.array([item.answer for item in items])
  sizes_NxC = np.ones_like(logs_NxC)
  for row, item in enumerate(items):
    sizes = [len(choice.lstrip().encode()) for choice in item.choices]
    sizes_NxC[row, : len(sizes)] = sizes
  gold = [item.choices[item.answer].encode() for item in items]
  nats_N = -logs_NxC[np.arange(len(items)), answer_N]
  clusters_N = clusters(items)

  def score(
    values_N: np.ndarray, weights_N: np.ndarray, unit: str, way: Direction
  ) -> Score:
    return Score(values_N, weights_N, clusters_N, unit, way, tokens)

  ones_N = np.ones(len(items))
  return {
    "acc": score(_right(logs_NxC, answer_N), ones_N, ACCURACY, "maximize"),
    "acc_norm": score(
      _right(logs_NxC / sizes_NxC, answer_N), ones_N, ACCURACY, "maximize"
    ),
    "gold": score(
      nats_N / math.log(2), np.array([*map(len, gold)]), BITS, "minimize"
    ),
  }


def clusters(items: Sequence[ChoiceItem]) -> np.ndarray:
  """int[N], numbers of the items' clusters in the order in which they come."""
  names = {item.cluster: None for item in items}
  number = {name: index for index, name in enumerate(names)}
  return np.array([number[item.cluster] for item in items])


def _right(values_NxC: np.ndarray, answer_N: np.ndarray) -> np.ndarray:
  """1 where the answer's value is above all others, else 0; float64[N].

  NaN where a value is: a model that has diverged is not one that is wrong.
  """
  others_NxC = values_NxC.copy()
  rows_N = np.arange(len(answer_N))
  others_NxC[rows_N, answer_N] = -np.inf
  is_right_N = values_NxC[rows_N, answer_N] > others_NxC.max(axis=1)
  return np.where(np.isnan(values_NxC).any(axis=1), np.nan, is_right_N)
