"""Keeps in a study what it is for: no other purpose under its name."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from optuna.study import Study

from jaxmerge.errors import InputError, check
from jaxmerge.old_names import renamed

IDENTITY = "fingerprint"
# Beside it, for people: what its hashes stand for.
_DESCRIBED = "fingerprint_described"


def _others(described: str, before: Any, now: Any) -> str:
  """Says what of "steps 1, 2" (a list's items) or of one thing has changed."""
  names = described.removeprefix("steps ").split(", ")
  if isinstance(before, list) and len(before) == len(now) == len(names):
    changed = [n for n, a, b in zip(names, before, now) if a != b]
    return f"{described}: of {', '.join(changed)} the content was another one"
  return f"{described}, whose content was another one"


def check_identity(
  study: Study,
  identity: Mapping[str, Any],
  described: Mapping[str, str],
  *,
  writes: bool = True,
  unknown: Collection[str] = (),
) -> None:
  """Compares the identity of an old study; writes that of a new one.

  Args:
    identity: JSON values that tell its purpose from others.
    described: what keys whose values are hashes stand for.
    writes: False leaves a study without an identity as it is.
    unknown: keys whose values are not known yet.

  Raises:
    InputError: the study is of another identity; a problem a differing key.
  """
  named = f"the study {study.study_name!r}"
  wanted = json.loads(json.dumps(dict(identity)))
  # Read before the identity, which another searcher writes before them.
  trials = study.get_trials(deepcopy=False)
  found = study.user_attrs.get(IDENTITY)
  before = study.user_attrs.get(_DESCRIBED, {})
  if found is None:
    if trials:
      raise InputError(
        f"{named} was not made by this program, or what it is for was taken "
        "out of it: choose another name"
      )
    if not writes:  # another searcher may have just begun it
      return
    study.set_user_attr(_DESCRIBED, dict(described))
    study.set_user_attr(IDENTITY, wanted)
    found = study.user_attrs[IDENTITY]
  if not isinstance(found, dict):
    raise InputError(f"{named} is damaged: its fingerprint is {found!r}")
  found = {k: v for k, v in renamed(found).items() if k not in unknown}

  def change(key: str) -> str:
    if key not in found:
      return f"without {key} (now {wanted[key]!r}), or by another version"
    if key not in wanted:
      return f"with {key} {found[key]!r} (now without), or by another version"
    if key not in described:
      return f"with another {key} ({found[key]!r}, now {wanted[key]!r})"
    # What tells them apart are hashes, which tell a reader nothing.
    was = before.get(key)
    if was is None:  # made before there were descriptions
      return f"with another {key} (now {described[key]})"
    if was == described[key]:
      return f"with another {key} ({_others(was, found[key], wanted[key])})"
    return f"with another {key} ({was}, now {described[key]})"

  check(
    f"{named} was made {change(key)}: choose another name or go back to it"
    for key in sorted(wanted.keys() | found.keys())
    if key not in wanted or key not in found or wanted[key] != found[key]
  )
