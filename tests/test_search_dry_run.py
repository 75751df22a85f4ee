"""What a search refuses, and tells, before a text is tokenized."""

import re

import pytest

from jaxmerge import search
from jaxmerge.bayesopt.study.study import find_study
from jaxmerge.checkpoints import merged as identity
from jaxmerge.checkpoints.inputs import open_steps
from jaxmerge.errors import InputError
from jaxmerge.evaluation import held_out_splits, search_study
from tests.helpers import REPORT, config_of, contents, no_corpus, quiet


@pytest.fixture
def searched(workdir):
  """A run with a search of two trials, which five are to follow."""
  search.search(config_of("search", num_trials=2), workdir, progress=quiet)
  return workdir


def test_a_dry_run_reads_the_study_and_writes_nothing(
  searched, monkeypatch, capsys
):
  monkeypatch.setattr(held_out_splits, "open_corpus", no_corpus)
  before = contents(searched)
  folders = sorted(p.name for p in searched.parent.iterdir())
  capsys.readouterr()
  search.search(config_of("search"), searched, dry_run=True, progress=quiet)
  plan = capsys.readouterr().out
  assert "2 of 5 trials are finished" in plan
  seconds, left, total = re.search(
    r"about ([\d.]+) s a trial x (\d+) = ([\d.]+) s", plan
  ).groups()
  assert left == "3"
  assert float(total) == pytest.approx(3 * float(seconds), abs=0.05)
  assert 0 < float(seconds) < 20
  search.search(
    config_of("search", study_name="new"),
    searched,
    dry_run=True,
    progress=quiet,
  )
  assert "0 of 5 trials are finished" in capsys.readouterr().out
  assert contents(searched) == before
  assert sorted(p.name for p in searched.parent.iterdir()) == folders


def test_a_plan_counts_the_points_of_a_grid(tiny_run, capsys):
  def evaluations(steps, num_trials) -> str:
    config = config_of(
      "search",
      num_trials=num_trials,
      checkpoint_steps=steps,
      baselines=("grid", "random"),
    )
    search.search(config, tiny_run, dry_run=True, progress=quiet)
    [line] = re.findall(r"evaluations: (.*)", capsys.readouterr().out)
    return line.partition("; ")[2]

  assert evaluations((4, 8, 12, 16), 9) == (
    "4 by grid (each checkpoint alone: it says little here); 9 by random"
  )
  assert evaluations((4, 8, 12, 16), 10) == "10 by grid; 10 by random"
  assert evaluations((8, 12), 9) == "9 by grid; 9 by random"


def test_more_checkpoints_and_gradients_take_longer(
  tiny_run, monkeypatch, capsys
):
  monkeypatch.setattr(held_out_splits, "open_corpus", no_corpus)
  found = []
  four = (4, 8, 12, 16)
  for changes in (
    {},
    {"checkpoint_steps": four, "layer_groups": "2", "solver": "gp_hedge"},
    {
      "checkpoint_steps": four,
      "layer_groups": "2",
      "use_gradients": True,
    },
  ):
    config = config_of("search", num_trials=30, **changes)
    search.search(config, tiny_run, dry_run=True, progress=quiet)
    plan = capsys.readouterr().out
    found.append(float(re.search(r"about ([\d.]+) s a trial", plan)[1]))
  assert found == sorted(found)
  assert found[2] > 2 * found[0]


def test_derivatives_need_memory_of_their_own(tiny_run, monkeypatch, capsys):
  monkeypatch.setattr(held_out_splits, "open_corpus", no_corpus)

  def needed(**changes):
    config = config_of("search", **changes)
    search.search(config, tiny_run, dry_run=True, progress=quiet)
    [line] = re.findall(r"memory: (.*)", capsys.readouterr().out)
    return line

  assert "derivatives" not in needed()
  told = r"derivatives take (?!0 )[\d.]+ [KM]iB on each device beside 4 of its"
  assert re.search(told, needed(solver="newton"))


def test_each_study_has_a_report_of_its_own(searched, capsys):
  first = (searched / REPORT / "report.html").read_bytes()
  config = config_of("search", num_trials=2, study_name="again")
  search.search(config, searched, progress=quiet)
  assert (searched / "search/again/report/report.html").exists()
  assert (searched / REPORT / "report.html").read_bytes() == first
  config.report_dir = "search_report"
  search.search(config, searched, progress=quiet)
  config.study_name = "third"
  for dry_run in (True, False):
    with pytest.raises(InputError, match="of the study 'again'"):
      search.search(config, searched, dry_run=dry_run, progress=quiet)


@pytest.mark.parametrize("storage", ["", "sqlite"])
def test_another_search_under_a_name_is_refused_at_once(
  workdir, tmp_path, monkeypatch, storage
):
  where = f"sqlite:///{tmp_path}/study.db" if storage else ""
  config = config_of("search", num_trials=2, storage=where)
  search.search(config, workdir, progress=quiet)
  before = contents(tmp_path)
  monkeypatch.setattr(held_out_splits, "open_corpus", no_corpus)
  for change, words in (
    ({"seed": 1}, r"another seed \(0, now 1\)"),
    (
      {"checkpoint_steps": (12, 16)},
      r"inputs \(steps 8, 12, now steps 12, 16\)",
    ),
    ({"seq_len": 16}, r"without seq_len \(now 16\)"),
  ):
    for dry_run in (True, False):
      with pytest.raises(InputError, match=words):
        search.search(
          config_of("search", storage=where, **change),
          workdir,
          dry_run=dry_run,
          progress=quiet,
        )
  assert contents(tmp_path) == before


def test_a_study_that_lost_parts_is_refused_before_it_is_touched(
  searched, monkeypatch
):
  """One of before, whose records say nothing of their line."""
  monkeypatch.setattr(held_out_splits, "open_corpus", no_corpus)
  journal = searched / "search/pair/study.journal"
  ours = r',"jaxmerge_\w+":("\w+"|\d+)'
  lines = re.sub(ours, "", journal.read_text()).splitlines(keepends=True)
  [lost, *_] = [line for line in lines if '"param_name":"w_0"' in line]
  lines.remove(lost)
  journal.write_text("".join(lines))
  before = contents(searched)
  for dry_run in (True, False):
    with pytest.raises(InputError, match="lacks its weights"):
      search.search(
        config_of("search"), searched, dry_run=dry_run, progress=quiet
      )
  assert contents(searched) == before


def test_a_study_of_other_held_out_windows_is_refused(searched):
  """As one made before windows were drawn by a hash."""
  journal = searched / "search/pair/study.journal"
  rule = '"held_out":"by a hash of document and window",'
  text = re.sub(r',"jaxmerge_\w+":("\w+"|\d+)', "", journal.read_text())
  assert rule in text
  journal.write_text(text.replace(rule, ""))
  with pytest.raises(InputError, match="without held_out"):
    search.search(config_of("search"), searched, dry_run=True, progress=quiet)


def test_a_changed_corpus_is_refused_before_it_is_tokenized(
  tiny_run, tmp_path, monkeypatch
):
  monkeypatch.setattr(held_out_splits, "open_corpus", no_corpus)
  monkeypatch.setattr(held_out_splits, "content_hash", lambda s: "another")
  monkeypatch.setattr(held_out_splits, "changed_files", lambda *_: "new: a.py")
  words = r"is no longer what step 12 was trained on \(new: a.py\)"
  for dry_run in (True, False):
    with pytest.raises(InputError, match=words):
      search.search(
        config_of("search"), tiny_run, dry_run=dry_run, progress=quiet
      )
  search.search(
    config_of("search"),
    tiny_run,
    dry_run=True,
    allow_unrelated=True,
    progress=quiet,
  )


def test_an_input_that_holds_something_else_is_named(searched, monkeypatch):
  """Not a hash of it."""
  inputs = [identity.identity(c) for c in open_steps(searched, [8, 12])]
  changed = dict(zip(inputs, (inputs[0], "0" * 64)))
  monkeypatch.setattr(
    search_study, "identity_of", lambda c: changed[identity.identity(c)]
  )
  with pytest.raises(InputError) as told:
    search.search(config_of("search"), searched, dry_run=True, progress=quiet)
  [problem] = told.value.problems
  assert "(steps 8, 12: of 12 the content was another one)" in problem
  assert not re.search("[0-9a-f]{12}", problem)


def test_there_is_no_study_where_nothing_is(tmp_path):
  for storage in (tmp_path / "a.journal", f"sqlite:///{tmp_path}/b.db"):
    assert find_study(storage, "pair", identity={}) is None
  assert not list(tmp_path.iterdir())
