"""A journal in an object store: a local directory, and stores on this host."""

import http.server
import json
import re
import threading
import time
import urllib.parse

import pytest

from jaxmerge.bayesopt.study import object_journal
from jaxmerge.bayesopt.study.object_journal import (
  ObjectJournal,
  open_object_journal,
)
from jaxmerge.errors import InputError
from tests.bayesopt.studies import search

# What Google Cloud Storage says of an object.
_METADATA = {
  "kind": "storage#object",
  "bucket": "bucket",
  "generation": "7",
  "metageneration": "1",
  "timeCreated": "2024-01-01T00:00:00Z",
  "updated": "2024-01-01T00:00:00Z",
}


class _Store:
  """As much of S3 and of Google Cloud Storage as a journal needs."""

  def __init__(self, *, is_conditional: bool):
    self.is_conditional = is_conditional
    self.objects: dict[str, bytes] = {}
    self.conditions: set[str | None] = set()
    self._lock = threading.Lock()

  def create(self, name: str, body: bytes, condition: str | None) -> bool:
    with self._lock:
      self.conditions.add(condition)
      if self.is_conditional and condition and name in self.objects:
        return False
      self.objects[name] = body
      return True


def _handler(store: _Store) -> type[http.server.BaseHTTPRequestHandler]:
  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
      del args

    def _name(self):
      path = urllib.parse.unquote(self.path.partition("?")[0])
      return re.sub("^/(storage/v1/b/)?bucket/(o/)?", "", path)

    def _answer(self, status, body=b""):
      self.send_response(status)
      self.send_header("ETag", '"7"')
      self.send_header("Content-Length", str(len(body)))
      self.end_headers()
      if self.command != "HEAD":
        self.wfile.write(body)

    def _body(self):
      return self.rfile.read(int(self.headers["content-length"]))

    def do_GET(self):
      found = store.objects.get(self._name())
      self._answer(404 if found is None else 200, found or b"")

    do_HEAD = do_GET

    def do_DELETE(self):
      del store.objects[self._name()]
      self._answer(204)

    def do_PUT(self):
      condition = self.headers["if-none-match"]
      created = store.create(self._name(), self._body(), condition)
      self._answer(200 if created else 412)

    def do_POST(self):
      query = dict(urllib.parse.parse_qsl(self.path.partition("?")[2]))
      body = self._body()
      condition = query.get("ifGenerationMatch")
      created = store.create(query["name"], body, condition)
      metadata = {**_METADATA, "name": query["name"], "size": str(len(body))}
      self._answer(200 if created else 412, json.dumps(metadata).encode())

  return Handler


@pytest.fixture
def served(monkeypatch):
  """Serves stores as Amazon's and as Google's."""
  servers = []

  def serve(*, is_conditional):
    store = _Store(is_conditional=is_conditional)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(store))
    servers.append(server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    for variable, value in {
      "AWS_ENDPOINT_URL": url,
      "AWS_REGION": "us-east-1",
      "AWS_ACCESS_KEY_ID": "me",
      "AWS_SECRET_ACCESS_KEY": "secret",
      "TENSORSTORE_GCS_HTTP_URL": url,
      "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
    }.items():
      monkeypatch.setenv(variable, value)
    return store

  yield serve
  for server in servers:
    server.shutdown()
    server.server_close()


def _search(url, num_trials=2):
  study = search(url, num_trials=num_trials)
  return [(t.state.name, t.params) for t in study.trials]


@pytest.mark.parametrize(("scheme", "condition"), [("s3", "*"), ("gs", "0")])
def test_entries_are_created_on_condition(served, scheme, condition):
  store = served(is_conditional=True)
  url = f"{scheme}://bucket/runs/a b"
  trials = _search(url)
  assert [state for state, _ in trials] == ["COMPLETE"] * 2
  assert store.conditions == {condition}
  assert sorted(store.objects) == [
    f"runs/a b/{number:012d}.json" for number in range(len(store.objects))
  ]
  assert _search(url) == trials


def test_a_store_without_conditions_is_refused(served):
  store = served(is_conditional=False)
  with pytest.raises(InputError, match="several writers.*postgresql"):
    _search("s3://bucket/study")
  assert not store.objects


def entry(name, number):
  """Any record; all create a study, so that one may be the first."""
  study = f"{name}{number}"
  return {
    "op_code": 0,
    "worker_id": "w",
    "study_name": study,
    "directions": [1],
  }


def test_entries_of_two_writers_have_one_order(tmp_path):
  first, second = (ObjectJournal(f"file://{tmp_path}/s") for _ in range(2))
  for number in range(5):
    (first, second)[number % 2].append_logs(
      [entry("n", number), entry("m", number)]
    )
  whole = [log for n in range(5) for log in (entry("n", n), entry("m", n))]
  for journal in (first, second, ObjectJournal(f"file://{tmp_path}/s")):
    assert list(journal.read_logs(0)) == whole
    assert list(journal.read_logs(7)) == whole[7:]
    assert list(journal.read_logs(10)) == []


def test_an_entry_whose_answer_was_lost_is_written_once(tmp_path, monkeypatch):
  journal = ObjectJournal(f"file://{tmp_path}/s")

  class Forgetful:
    """Sends each write twice, as a client does that heard no answer."""

    def __init__(self, store):
      self._store = store
      self.read = store.read

    def write(self, *args, **kwargs):
      self._store.write(*args, **kwargs).result()
      return self._store.write(*args, **kwargs)

  monkeypatch.setattr(journal, "_store", Forgetful(journal._store))
  journal.append_logs([entry("n", 0), entry("n", 1)])
  assert list(journal.read_logs(0)) == [entry("n", 0), entry("n", 1)]


def test_a_damaged_entry_is_an_input_error(tmp_path):
  _search(f"file://{tmp_path}/s")
  (tmp_path / "s/000000000003.json").write_text("{")
  with pytest.raises(InputError, match="damaged at 000000000003.json"):
    open_object_journal(f"file://{tmp_path}/s")


def test_a_store_that_does_not_answer_is_an_input_error(served, monkeypatch):
  store = served(is_conditional=True)
  monkeypatch.setattr(object_journal, "_TIMEOUT_SECONDS", 0.2)
  monkeypatch.setattr(store, "objects", _Slow())
  with pytest.raises(InputError, match="no answer in .*login"):
    open_object_journal("s3://bucket/study")


class _Slow(dict):
  def get(self, key, default=None):
    time.sleep(1.0)
    return default
