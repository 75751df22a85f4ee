"""Templates of prompts, and what belongs between a prompt and a choice.

A template is one text: "HEADER{shots}ITEM". ITEM is repeated for each shot,
with its answer and an empty line behind it, and then for the item; HEADER
stands once before them. Without "{shots}" all of it is ITEM.
"""

import difflib
import string
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from jaxmerge.errors import InputError, check

SHOTS = "shots"
CHOICES = "choices"
QUESTION = "question"
# Text and the name of the field behind it, if there is one.
_Parts = Sequence[tuple[str, str]]


class Shown(Protocol):
  """A question that a template shows."""

  @property
  def where(self) -> str: ...
  @property
  def fields(self) -> Mapping[str, str]: ...
  @property
  def choices(self) -> Sequence[str]: ...


class Template(NamedTuple):
  """A template, taken apart."""

  before: _Parts
  repeated: _Parts

  @classmethod
  def parse(
    cls, text: str, *, shows_choices: bool, has_question: bool
  ) -> "Template":
    """Takes a template apart.

    Args:
      shows_choices: it must name {choices}.
      has_question: it must name {question}; else it is plain text.

    Raises:
      InputError: lists what is wrong with it.
    """
    parts = _parts(text)
    names = [name for _, name in parts if name]
    cut = names.index(SHOTS) if SHOTS in names else -1
    wanted = [QUESTION] * has_question + [CHOICES] * shows_choices
    check(
      f"the template {text!r} {problem}"
      for problem in (
        *(
          f"lacks {{{name}}} behind {{shots}}"
          if name in names
          else f"lacks {{{name}}}"
          for name in wanted
          if name not in names[cut + 1 :]
        ),
        *(
          f"names {{{name}}}; before these items goes plain text alone"
          for name in names
          if not has_question
        ),
        *["names {shots} twice"] * (names.count(SHOTS) > 1),
      )
    )
    place = next((i for i, (_, n) in enumerate(parts) if n == SHOTS), None)
    if place is None:
      return cls((), parts)
    last_text = parts[place][0]
    return cls([*parts[:place], (last_text, "")], parts[place + 1 :])

  def header(self, question: Shown) -> str:
    return _filled(self.before, question)

  def item(self, question: Shown) -> str:
    return _filled(self.repeated, question)

  def missing(self, questions: Sequence[Shown]) -> Iterable[str]:
    """Lists fields that no question has, or one of them has not."""
    known = {CHOICES}.union(*(question.fields for question in questions))
    for _, name in [*self.before, *self.repeated]:
      if not name or name == CHOICES or not questions:
        continue
      if name in known:
        yield from (
          f"{question.where}: no {name!r}, which the template names"
          for question in questions
          if name not in question.fields
        )
        continue
      near = difflib.get_close_matches(name, known, 1)
      meant = f", did you mean {near[0]!r}?" if near else ";"
      listed = ", ".join(sorted(known))
      yield (
        f"the template names {name!r}{meant} there are {listed} (braces that "
        "are text are doubled)"
      )


def _parts(text: str) -> list[tuple[str, str]]:
  try:
    found = list(string.Formatter().parse(text))
  except ValueError as error:
    raise InputError(
      f"the template {text!r} cannot be read ({error}); braces that are text "
      "are doubled"
    ) from error
  check(
    f"the template {text!r} names a field that is no plain name: "
    f"{name!r}{'!' + how if how else ''}{':' + form if form else ''}"
    for _, name, form, how in found
    if name is not None and (form or how or not name.isidentifier())
  )
  return [(literal, name or "") for literal, name, _, _ in found]


def _filled(parts: _Parts, question: Shown) -> str:
  lines = (f"{letter(i)}. {text}" for i, text in enumerate(question.choices))
  fields = {**question.fields, CHOICES: "\n".join(lines), "": ""}
  return "".join(text + fields[name] for text, name in parts)


def letter(number: int) -> str:
  """The letter of a choice: 0 is A."""
  return chr(ord("A") + number)


def continuation(prompt: str, choice: str) -> str:
  """The choice with a space before it, where one belongs behind the prompt.

  None does at the beginning, behind or before white space, and behind a wide
  character, as of Chinese.
  """
  if not prompt or prompt[-1].isspace() or choice[:1].isspace():
    return choice
  is_wide = unicodedata.east_asian_width(prompt[-1]) in ("W", "F")
  return choice if is_wide else f" {choice}"
