"""Items of every shape, and a tokenizer that has a token a letter."""

from jaxmerge.evaluation.choice_scores import encode
from jaxmerge.evaluation.tasks.task import ChoiceItem

CONTEXT = 60


class Letters:
  """Of 48 tokens and the end of text."""

  end_of_text = 0

  def encode_batch(self, texts):
    return [[1 + ord(letter) % 48 for letter in text] for text in texts]


def item(number: int, prompt: str, *choices: str) -> ChoiceItem:
  answer = number % len(choices)
  return ChoiceItem(
    f"{number}", prompt, choices, answer, f"{number // 2}", f"{number}"
  )


def check_same(found_NxC, expected_NxC, items) -> None:
  """Log-likelihoods of all choices, to 1e-5 nats a token."""
  for number, one in enumerate(encode(items, Letters(), CONTEXT)):
    for choice, ids in enumerate(one.choices):
      place = number, choice
      difference = abs(found_NxC[place] - expected_NxC[place])
      assert difference <= 1e-5 * len(ids), (place, difference)


ITEMS = [
  item(0, "a short question", " yes", " perhaps", " no, never"),
  item(1, "which letter", "A", "B", "C", "D"),
  item(2, "", "a sentence of a pair", "a sentense of a pair"),
  item(3, "one", " long choice that is alone", " another which is alone too"),
  item(4, "a question that is longer than those before", " x", " y", " zz"),
  item(5, "a question that is too long for the context, " * 3, " a", " bcd"),
  item(6, "again", " 1", " 22", " 333", " 4444"),
]
