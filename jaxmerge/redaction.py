"""Hides passwords and escapes control characters in what is shown or kept.

Everything that prints or stores an address or a command line, and every
message, which may quote one, goes through here.
"""

import re
import urllib.parse
from collections.abc import Iterable

_SCHEME = r"[A-Za-z][A-Za-z0-9+.\-]*://"
# An address ends at white space, or where the next one of a list begins.
_ADDRESS = re.compile(rf"({_SCHEME})(\S*?)(?=\s|$|[^\w\s]+(?:\w+=)?{_SCHEME})")
# A value that is one address, whose password may even hold white space.
_ONE_ADDRESS = re.compile(rf"(\A(?:--?[\w.]+=)?{_SCHEME})([^\n]*)\Z")
_SECRET_KEY = re.compile(
  r"(?i).*(password|passwd|passphrase|token|secret|signature|credentials?)"
  r"|(?:.*[-_.])?(pass|pwd|sig|auth|key)"
  r"|.*(access|api|secret|account|private)[-_]?key([-_]?id)?|googleaccessid"
)
# A setting of an address, or of a list of settings; not a part of a path.
_IN_ADDRESS = re.compile(r"(?<=[?&;])([\w.%\-]+)=([^\s&;,'\")\]}]+)")
_ALONE = re.compile(
  r"(?<![^\s'\"(,])(\w[\w.%\-]*)=([^\s&;,'\")\]}/]+)(?=[\s&;,'\")\]}]|$)"
)
# Here a path may hold "@", as in workdir@step; a database's name does not.
_WITH_PATHS = ("gs", "s3", "http", "https", "file")
_HIDDEN = "***"
# A password that is shorter would be found in every other word.
_LEAST_SECRET = 4
_ACTS = re.compile(
  "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069"
  "\ud800-\udfff]"
)


def printable(text: str) -> str:
  """The text with what would act on a terminal, or stop it, escaped.

  These are control characters (but line feed and tab), characters that turn
  the direction of writing, and halves of surrogate pairs.
  """
  return _ACTS.sub(lambda match: ascii(match[0])[1:-1], text)


def presentable(text: str) -> str:
  """The text as it may go to a terminal, a report or a card."""
  return printable(without_secrets(text))


def without_secrets(text: str, known: Iterable[str] = ()) -> str:
  """The text with passwords, tokens and signatures of its addresses hidden.

  Args:
    text: of any kind: an address, a word of a command line, a message.
    known: addresses whose passwords the text may quote alone, in parts too.
  """
  for secret in sorted(_secrets(known), key=len, reverse=True):
    text = text.replace(secret, _HIDDEN)
  one = _ONE_ADDRESS.fullmatch(text)
  if text.count("://") == 1 and one and _scheme(one[1]) not in _WITH_PATHS:
    text = _hide_user(one)
  text = _ADDRESS.sub(_hide_user, text)
  return _ALONE.sub(_hide_setting, _IN_ADDRESS.sub(_hide_setting, text))


def _user_end(scheme: str, rest: str) -> int:
  """Finds the end of the user and password of an address; -1: there is none.

  A password should be percent-encoded; often it holds "/", "?" or "@" as it
  is.
  """
  authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
  if "@" in authority:
    has_step = re.fullmatch(r"[^:@]*@\d+", authority)
    return -1 if has_step else authority.rindex("@")
  if scheme in _WITH_PATHS:
    rest = re.sub(r"(@.*)@\d+(?=\W*$)", r"\1", rest)
    _, colon, port = authority.partition(":")
    return rest.rfind("@") if colon and not port.isdigit() else -1
  before = rest.rpartition("@")[0]
  return len(before) if ":" in before else -1


def _scheme(start: str) -> str:
  return re.split(r"[^a-z0-9+.\-]", start[: -len("://")].lower())[-1]


def _hide_user(match: re.Match[str]) -> str:
  start, rest = match[1], match[2]
  scheme = _scheme(start)
  end = _user_end(scheme, rest)
  if end < 0:
    return match[0]
  user, colon, _ = rest[:end].partition(":")
  if scheme in _WITH_PATHS:
    shown = _HIDDEN
  elif colon:
    shown = f"{user}:{_HIDDEN}"
  else:
    shown = user
  return f"{start}{shown}{rest[end:]}"


def _hide_setting(match: re.Match[str]) -> str:
  key, value = (urllib.parse.unquote(part) for part in match.groups())
  name = key.lower().removeprefix("x-amz-").removeprefix("x-goog-")
  if _SECRET_KEY.fullmatch(name):
    return f"{match[1]}={_HIDDEN}"
  if value != match[2] and without_secrets(value) != value:
    return f"{match[1]}={_HIDDEN}"  # an address in an address
  return match[0]


def _secrets(addresses: Iterable[str]) -> set[str]:
  """Passwords of addresses, as typed, decoded and in parts."""
  found: set[str] = set()
  for address in addresses:
    start, _, rest = address.partition("://")
    end = _user_end(start.lower(), rest)
    raw = rest[: max(end, 0)].partition(":")[2]
    for password in (raw, urllib.parse.unquote(raw)):
      found |= {password, *re.split(r"[@/?#]", password)}
  return {secret for secret in found if len(secret) >= _LEAST_SECRET}
