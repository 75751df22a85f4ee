"""Hashes of the items that a merge has seen: exact, compact, checked."""

import dataclasses
import hashlib

import pytest

from jaxmerge.errors import InputError
from jaxmerge.formats.records.metadata import Metadata
from jaxmerge.formats.records.provenance import (
  SEEN,
  has_seen,
  hashes_seen,
  seen_hashes,
  seen_items,
  with_seen,
)

HASHES = [hashlib.sha256(bytes([i])).hexdigest()[:32] for i in range(200)]


def merged(*seen) -> Metadata:
  fields = dataclasses.fields(Metadata)
  needed = {
    field.name: None
    for field in fields
    if field.default is dataclasses.MISSING
    and field.default_factory is dataclasses.MISSING
  }
  provenance = {"search": {SEEN: list(seen)}}
  return Metadata(**needed | {"provenance": provenance})


def test_hashes_come_back_exactly_and_take_little_room():
  record = seen_hashes([*HASHES, HASHES[0]])
  assert record["items"] == len(HASHES)
  assert len(record["hashes"]) <= 22 * len(HASHES)
  assert hashes_seen(merged(record)) == set(HASHES)
  both = merged(seen_hashes(HASHES[:5]), seen_hashes(HASHES[3:9]))
  assert hashes_seen(both) == set(HASHES[:9])


def test_text_is_known_by_its_content_and_has_no_hashes():
  metadata = merged(seen_items("abc", "search", 64), seen_hashes(HASHES[:2]))
  assert has_seen(metadata, "abc", "search")
  assert not has_seen(metadata, "abc", "report")
  assert hashes_seen(metadata) == set(HASHES[:2])
  assert hashes_seen(merged(seen_items("abc", "search", 64))) == set()


@pytest.mark.parametrize(
  "change",
  [
    {"items": 4},
    {"hashes": seen_hashes(HASHES[:5])["hashes"][:-4]},
    {"hashes": "no base64!"},
    {"hashes": None},
  ],
)
def test_a_damaged_record_is_refused(change):
  record = seen_hashes(HASHES[:5]) | change
  with pytest.raises(InputError, match="damaged"):
    hashes_seen(merged(record))


def test_a_merge_of_merges_has_seen_what_they_have():
  a, b = seen_items("abc", "search", 64), seen_hashes(HASHES[:3])
  sources = [merged(a), merged(b), merged(a)]
  assert with_seen({}, sources) == {SEEN: [a, b]}
  own = seen_hashes(HASHES[4:6])
  found = with_seen({"last": 1.0, SEEN: [own]}, sources)
  assert found == {"last": 1.0, SEEN: [own, a, b]}
  assert with_seen({}, [dataclasses.replace(merged(), provenance={})]) == {}
