"""Multiple choice in tokens, and its scores."""

import dataclasses
import math

import numpy as np
import pytest

from jaxmerge.data.tokenizers.hugging_face import train_tokenizer
from jaxmerge.data.tokenizers.load import load_tokenizer
from jaxmerge.errors import InputError
from jaxmerge.evaluation import statistics
from jaxmerge.evaluation.choice_scores import encode, scores
from jaxmerge.evaluation.tasks.task import ChoiceItem
from tests.helpers import ROOT

SENTENCE_PIECE = ROOT / "tests/data/sentencepiece"
TEXT = (
  "the sky is blue and the sea is blue, the grass is green; the snow is white "
  "and cold. Answer: the sky. 天空是蓝的。\n\n"
)


@pytest.fixture(scope="module")
def tokenizer():
  return train_tokenizer([TEXT * 3], vocab_size=320)


def item(prompt, *choices, answer=0, cluster="c"):
  return ChoiceItem(f"{prompt}?", prompt, choices, answer, cluster, "h")


def of_one(tokenizer, text):
  return tokenizer.encode_batch([text])[0]


def test_prompt_and_choice_are_one_text(tokenizer):
  prompt = "the sky is"
  (found,) = encode([item(prompt, " blue", " green")], tokenizer, 64)
  assert found.prompt.tolist() == of_one(tokenizer, prompt)
  for choice, ids in zip((" blue", " green"), found.choices):
    whole = of_one(tokenizer, prompt + choice)
    assert [*found.prompt, *ids] == whole
    assert tokenizer.decode(ids.tolist()) == choice
  assert not found.is_cut


def test_white_space_goes_to_the_choice(tokenizer):
  """A space alone would be a token that no text of the training has."""
  (found,) = encode([item("the sky is ", "blue")], tokenizer, 64)
  (other,) = encode([item("the sky is", " blue")], tokenizer, 64)
  assert found.prompt.tolist() == other.prompt.tolist()
  assert found.choices[0].tolist() == other.choices[0].tolist()
  (found,) = encode([item("snow:\n\n", "the sky")], tokenizer, 64)
  assert tokenizer.decode(found.choices[0].tolist()) == "\n\nthe sky"


def test_an_end_of_text_begins_what_has_no_prompt(tokenizer):
  for prompt, choice in (("", "the sky"), (" ", "the sky")):
    (found,) = encode([item(prompt, choice)], tokenizer, 64)
    assert found.prompt.tolist() == [tokenizer.end_of_text]
    assert tokenizer.decode(found.choices[0].tolist()) == prompt + choice


def test_a_choice_within_a_token_of_the_prompt_is_scored(tokenizer):
  """Prompt and choice have as many tokens as the prompt alone."""
  prompt, choice = "is blu", "e"
  whole = of_one(tokenizer, prompt + choice)
  assert len(whole) <= len(of_one(tokenizer, prompt))
  (found,) = encode([item(prompt, choice, "ish")], tokenizer, 64)
  assert tokenizer.decode(found.choices[0].tolist()) == "e"


def pair_of(tokenizer, context, continuation):
  """As lm-eval's TemplateLM has it, apart from an empty context."""
  spaces = len(context) - len(context.rstrip())
  if spaces:
    continuation = context[-spaces:] + continuation
    context = context[:-spaces]
  before = of_one(tokenizer, context)
  whole = of_one(tokenizer, context + continuation)
  return before, whole[len(before) :]


@pytest.mark.parametrize(
  "name", ["own", "llama", "unigram", "baichuan", "rules"]
)
def test_boundaries_are_those_of_lm_eval(tokenizer, name):
  if name != "own":
    tokenizer = load_tokenizer(SENTENCE_PIECE / f"{name}.model")
  prompts = [
    "the sky is",
    "snow: ",
    "Answer:\n",
    "天空是",
    "A. x\n\n",
    "it's 1",
  ]
  choices = (" blue", "grey", "蓝的", " A", "\n2")
  items = [item(prompt, *choices) for prompt in prompts]
  for one, found in zip(items, encode(items, tokenizer, 64)):
    for choice, ids in zip(choices, found.choices):
      before, after = pair_of(tokenizer, one.prompt, choice)
      assert found.prompt.tolist() == before
      assert ids.tolist() == after or (not after and len(ids))


def test_a_long_prompt_loses_its_left_end_and_no_answer(tokenizer):
  long = TEXT.strip()
  items = [item(long, " blue", " the snow is white"), item("the", " sky")]
  whole, short = encode(items, tokenizer, 1000)
  longest = max(map(len, whole.choices))
  for context in (longest, longest + 5, len(whole.prompt) + longest - 1):
    cut, same = encode(items, tokenizer, context)
    kept = context + 1 - longest
    np.testing.assert_array_equal(cut.prompt, whole.prompt[-kept:])
    assert cut.is_cut == (kept < len(whole.prompt))
    assert not same.is_cut
    np.testing.assert_array_equal(same.prompt, short.prompt)
    for one, other in zip(cut.choices, whole.choices):
      np.testing.assert_array_equal(one, other)
  with pytest.raises(InputError) as caught:
    encode([*items, items[0]], tokenizer, longest - 1)
  assert len(caught.value.problems) == 2
  assert f"has {longest} tokens, and the model {longest - 1}" in str(
    caught.value
  )


def test_a_choice_without_tokens_is_refused(tokenizer):
  class Deaf:
    end_of_text = 0

    def encode_batch(self, texts):
      return [[1] * text.count("a") for text in texts]

  with pytest.raises(InputError, match="no token for 'b'"):
    encode([item("a", "a", "b")], Deaf(), 8)


def test_many_items_are_as_each_alone(tokenizer, monkeypatch):
  monkeypatch.setattr("jaxmerge.evaluation.choice_scores._BATCH", 3)
  items = [item(f"the sky {i}", " is", f" is {i}") for i in range(8)]
  for one, many in zip(items, encode(items, tokenizer, 64)):
    (alone,) = encode([one], tokenizer, 64)
    np.testing.assert_array_equal(alone.prompt, many.prompt)
    for a, b in zip(alone.choices, many.choices):
      np.testing.assert_array_equal(a, b)


ITEMS = [
  item("a", " bb", " cccc", answer=0, cluster="x"),
  item("b", " bb", " cccc", answer=1, cluster="y"),
  item("c", " é", " d", " e", answer=0, cluster="x"),
]
LOGS = np.array([[-2.0, -3.0, -np.inf], [-3.0, -3.0, -np.inf], [-1.5, -1, -9]])


def test_scores_of_choices():
  found = scores(ITEMS, LOGS, tokens=7)
  assert found["acc"].values_N.tolist() == [1, 0, 0]
  # By byte: -1 and -.75; -1.5 and -.75; -.75 (of two bytes), -1 and -9.
  assert found["acc_norm"].values_N.tolist() == [0, 1, 1]
  assert found["acc"].mean == pytest.approx(1 / 3)
  gold = found["gold"]
  assert gold.weights_N.tolist() == [3, 5, 3]
  assert gold.mean == pytest.approx((2 + 3 + 1.5) / math.log(2) / 11)
  assert gold.direction == "minimize" != found["acc"].direction
  assert all(s.clusters_N.tolist() == [0, 1, 0] for s in found.values())
  assert all(s.tokens == 7 for s in found.values())


def test_a_tie_is_not_right_whichever_comes_first():
  pair = item("", "same", "same")
  for answer in (0, 1):
    one = [pair._replace(answer=answer)] * 2
    found = scores(one, np.full((2, 2), -4.0), tokens=0)
    assert found["acc"].mean == found["acc_norm"].mean == 0.0


def test_scores_are_paired_by_item():
  found = scores(ITEMS, LOGS, tokens=0)["acc"]
  other = dataclasses.replace(found, values_N=np.array([0.0, 0.0, 1.0]))
  assert statistics.difference(found, other).mean == 0.0
  assert statistics.difference(found, found) == (0.0, 0.0, 2)


def test_a_model_that_has_diverged_has_no_accuracy():
  """Which is neither right nor wrong, and no score to maximise or minimise."""
  items = [item("a", " b", " c", " d", answer=k) for k in range(3)]
  logs = np.array(
    [[-1.0, -2.0, -np.inf], [np.nan, -1.0, -np.inf], [np.nan, np.nan, np.nan]]
  )
  found = scores(items, logs, 1)
  assert found["acc"].values_N[0] == 1
  for metric in found:
    assert np.isnan(found[metric].values_N[2]), metric
    assert np.isnan(found[metric].mean), metric
  assert np.isnan(found["acc"].values_N[1])
