"""Valid files with damage in them, as hypothesis draws it."""

import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

# Text that only these stand for, put in where the JSON is written.
_DEEP, _LONG, _TWICE, _WIDE = "@deep@", "@long@", "@twice@", "@wide@"
_RAW = {
  f'"{_DEEP}"': "[" * 3_000 + "]" * 3_000,
  f'"{_LONG}"': "9" * 10_000,
  f'"{_TWICE}"': '{"a": 1, "a": 2}',
  f'"{_WIDE}"': f"[{'[],' * 50_000}0]",
}
_VALUES = [
  *(None, True, False, 0, 1, -1, 2, 7, 64, 2**31, 2**53, 2**63, 2**64),
  *(10**18, 10**30, 10**200, -(2**63), 0.5, -0.0, 1e-300, 1e300, 1.7e308),
  *(float("nan"), float("inf"), float("-inf")),
  *("", "\0", "\ud800", "a\udfff", "../../x", "/etc/passwd", "x" * 10_000),
  *("\U0001f600", "\u2581", "a/b/c", "/".join("a" * 5_000), "0", "-1", "1e9"),
  *("float32", "m8", "M8[s]", "f16", ">f4", "c8", "O", "(9,9)f4", "V9"),
  *(
    [],
    {},
    [[]],
    [None],
    {"": {}},
    {"a": None},
    [1] * 100,
    [0, 1],
    [2**62] * 2,
  ),
  *(_DEEP, _LONG, _TWICE, _WIDE),
]
_ENCODINGS = ["utf-8"] * 12 + ["utf-8-sig", "utf-16", "utf-32", "latin-1"]


def places(value: Any, place: tuple = ()) -> Iterator[tuple]:
  """Where the values of a JSON value lie, itself included."""
  yield place
  inner = value.items() if isinstance(value, dict) else ()
  inner = enumerate(value) if isinstance(value, list) else inner
  for key, child in inner:
    yield from places(child, (*place, key))


def _changed(value: Any, place: tuple, change: Any) -> Any:
  """A copy, in which `change` has been called on what holds a place."""
  if len(place) <= 1:
    value = value.copy()
    change(value, *place)
    return value
  first, *rest = place
  value = value.copy()
  value[first] = _changed(value[first], tuple(rest), change)
  return value


_VALUE = st.sampled_from(_VALUES) | st.integers() | st.floats() | st.text()


@st.composite
def json_values(draw, value: Any) -> Any:
  """The value with one to three places that hold something else."""
  for _ in range(draw(st.integers(1, 3))):
    known = [place for place in places(value) if place]
    if not known:
      return draw(_VALUE)
    place = draw(st.sampled_from(known))
    new = draw(_VALUE)
    other = draw(st.sampled_from(known))

    def change(holder, key, value=value, new=new, other=other):
      match draw(st.integers(0, 9)):
        case 0:
          del holder[key]
        case 1 if isinstance(holder, dict):
          holder[str(new)] = holder.pop(key)
        case 2 if isinstance(holder, dict):
          holder[str(new)] = holder[key]
        case 3:
          found = value
          for step in other:
            found = found[step]
          holder[key] = found
        case 4:
          holder[key] = [holder[key]]
        case _:
          holder[key] = new

    value = _changed(value, place, change)
  return value


def json_text(value: Any) -> str:
  """The value as text, with what JSON cannot write put in."""
  text = json.dumps(value)
  for mark, raw in _RAW.items():
    text = text.replace(mark, raw)
  return text


@st.composite
def json_files(draw, value: Any) -> bytes:
  """A file of JSON whose values, text, encoding or bytes are damaged."""
  how = draw(st.integers(0, 9))
  if how:
    value = draw(json_values(value))
  content = json_text(value).encode(draw(st.sampled_from(_ENCODINGS)), "ignore")
  return content if how > 1 else draw(byte_files(content))


@st.composite
def byte_files(draw, content: bytes, start: int = 0, end: int = 0) -> bytes:
  """The content with bytes changed, cut out, doubled or put in."""
  changed = bytearray(content)
  for _ in range(draw(st.integers(1, 4))):
    last = max((end or len(changed)) - 1, start)
    at = min(draw(st.integers(start, last)), max(len(changed) - 1, 0))
    match draw(st.integers(0, 6)):
      case 0 | 1 if changed:
        changed[at] ^= 1 << draw(st.integers(0, 7))
      case 2 if changed:
        changed[at] = draw(st.sampled_from([0, 1, 10, 127, 128, 255]))
      case 3:
        del changed[at : at + draw(st.sampled_from([1, 2, 8, 100, 10**9]))]
      case 4:
        size = draw(st.integers(1, 200))
        changed[at:at] = changed[at : at + size]
      case 5:
        changed[at:at] = draw(st.binary(max_size=20))
      case _:
        more = draw(st.sampled_from([b"\0" * 8, b"\xff" * 8, b"\x80" * 9]))
        changed[at : at + 8] = more
  return bytes(changed)
