"""Damaged records of checkpoints and studies: refused, or as they say."""

import json

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import JournalStorage

from jaxmerge.bayesopt.study.journal import (
  check_journal_file,
  open_journal,
  read_journal,
)
from jaxmerge.bayesopt.study.records import CHECKSUM, sealed
from jaxmerge.checkpoints.compatibility import check_comparable
from jaxmerge.checkpoints.inputs import open_inputs
from jaxmerge.formats.integrity.checksums import describe_leaf
from jaxmerge.formats.records.metadata import (
  Metadata,
  abstract_params,
  canonical_json,
  hash_text,
  to_json,
)
from jaxmerge.model.config import DecoderConfig
from tests.bayesopt.studies import search
from tests.fuzz.damage import byte_files, json_files, json_text, json_values
from tests.fuzz.lanes import judged, lane
from tests.fuzz.test_fuzz_tokenizers import KINDS
from tests.helpers import DECODER


def metadata():
  leaf = describe_leaf((3, 2), "float32", "0" * 64, 1.5)
  return Metadata(
    "trained",
    {"params": {"a/b": leaf, "a/c": leaf}},
    step=4,
    tokens=64,
    model=DECODER.to_dict(),
    data={},
    tokenizer=json.dumps(KINDS["Unigram"]),
    files={"tokenizer.model": "AAAA", "config.json": "{}"},
    provenance={"method": "uniform", "sources": [{"name": "a"}]},
  )


METADATA = {k: v for k, v in to_json(metadata()).items() if k != "digest"}


@lane
@given(data=st.data())
def test_metadata(tmp_path_factory, data):
  path = tmp_path_factory.getbasetemp() / "checkpoints/4"
  (path / "metadata").mkdir(parents=True, exist_ok=True)
  if data.draw(st.booleans()):
    content = data.draw(json_files(to_json(metadata())))
  else:  # by somebody who writes the digest as well
    value = data.draw(json_values(METADATA))
    if isinstance(value, dict):
      value["digest"] = hash_text(canonical_json(value))
    content = json_text(value).encode()
  (path / "metadata/metadata").write_bytes(content)
  with judged(len(content)):
    [opened] = open_inputs([str(path)])
    check_comparable([opened, opened])
    abstract_params(opened.metadata)
    if opened.metadata.model:
      DecoderConfig.from_dict(opened.metadata.model)
    list(opened.metadata.tokenizers())
    to_json(opened.metadata)
    opened.open_leaves()


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
  path = tmp_path_factory.mktemp("study") / "whole"
  search(path)
  return path.read_bytes()


@lane
@given(data=st.data())
def test_journal(tmp_path_factory, journal, data):
  path = tmp_path_factory.getbasetemp() / "study.journal"
  lines = journal.splitlines(keepends=True)
  if data.draw(st.booleans()):
    lines = [data.draw(byte_files(journal))]
  else:  # by somebody who writes checksums as well, or none
    number = data.draw(st.integers(0, len(lines) - 1))
    record = json.loads(lines[number])
    del record[CHECKSUM]
    record = data.draw(json_values(record))
    line = json_text(record)
    if isinstance(record, dict) and "@" not in json.dumps(record):
      line = data.draw(st.sampled_from([line, json.dumps(sealed(record))]))
    lines[number] = line.encode() + b"\n"
  content = b"".join(lines)
  for look in (read_journal, open_journal, search):
    path.write_bytes(content)
    with judged(len(content)):
      check_journal_file(path)
      storage = look(path)
      if isinstance(storage, JournalStorage):
        for study in optuna.get_all_study_summaries(storage):
          trials = optuna.load_study(
            study_name=study.study_name, storage=storage
          ).trials
          assert all(trial.number >= 0 for trial in trials)
