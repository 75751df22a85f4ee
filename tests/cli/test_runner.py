"""Bad input ends in one clear message, exit code 2 and nothing written."""

import contextlib
import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
import time

import pytest

from jaxmerge import merge, pretrain, search
from jaxmerge.cli import runner
from jaxmerge.errors import InputError
from tests import forked
from tests.helpers import ROOT, config_file, quiet

TINY = config_file("pretrain")


def fails(module, argv, capsys) -> list[str]:
  """Runs a verb in this process; returns its lines on stderr."""
  code = runner.run("verb", lambda: module.main(argv))
  captured = capsys.readouterr()
  assert code == 2
  assert "Traceback" not in captured.err
  return [line.strip() for line in captured.err.splitlines()]


def test_all_bad_flags_are_in_one_message(tmp_path, capsys):
  lines = fails(
    pretrain,
    [
      f"--config={TINY}",
      "--config.sead=1",
      "--config.model.dpeth=3",
      "--wrokdir=x",
      "stray",
    ],
    capsys,
  )
  assert lines == [
    "jaxmerge.verb: error:",
    "unknown config key config.sead; did you mean config.seed?",
    "unknown config key config.model.dpeth; did you mean config.model.dtype?",
    "unknown flag --wrokdir=x",
    "unknown argument stray",
    "flag --workdir is required",
  ]


def test_values_that_do_not_parse_hide_no_other_problem(capsys):
  lines = fails(
    pretrain,
    [
      f"--config={TINY}",
      "--config.seed=many",
      "--config.batch_size=few",
      "--dry_run=perhaps",
      "--wrokdir=x",
    ],
    capsys,
  )
  for part in ("seed=many", "batch_size=few", "dry_run", "--wrokdir=x"):
    assert sum(part in line for line in lines) == 1, part
  assert lines[-1] == "flag --workdir is required"


def test_a_config_that_is_not_there_hides_no_other_problem(capsys):
  lines = fails(pretrain, ["--config=nope.py", "--wrokdir=x"], capsys)
  assert lines[1:] == [
    "config file nope.py does not exist",
    "unknown flag --wrokdir=x",
    "flag --workdir is required",
  ]


def test_a_value_of_another_type(tmp_path, capsys):
  lines = fails(
    pretrain,
    [f"--config={TINY}", "--config.seed=many", f"--workdir={tmp_path / 'w'}"],
    capsys,
  )
  assert any("--config.seed=many" in line for line in lines)
  assert not (tmp_path / "w").exists()


def test_a_config_file_that_is_not_there(tmp_path, capsys):
  lines = fails(pretrain, ["--config=nope.py", "--workdir=w"], capsys)
  assert lines[1] == "config file nope.py does not exist"


def test_a_config_file_that_does_not_run(tmp_path, capsys):
  (tmp_path / "bad.py").write_text("def get_config(:\n")
  lines = fails(
    pretrain, [f"--config={tmp_path / 'bad.py'}", "--workdir=w"], capsys
  )
  assert "bad.py" in lines[1]


def test_keys_that_a_config_file_has_too_many_or_too_few(tmp_path):
  config = runner.load_config(TINY)
  with config.unlocked():
    config.extra = 1
    del config.seed  # takes its default
    del config.data.source
    config.model = config.model.to_dict() | {"hidden_size": "wide"}
  with pytest.raises(InputError) as error:
    pretrain.train(config, tmp_path / "w", progress=quiet)
  assert error.value.problems == [
    "unknown config key config.extra",
    "config.model.hidden_size must be int, got 'wide'",
    "missing config key config.data.source",
  ]
  assert not (tmp_path / "w").exists()


def test_numbers_out_of_range(tmp_path, capsys):
  workdir = f"--workdir={tmp_path / 'w'}"
  lines = fails(
    pretrain,
    [
      f"--config={TINY}",
      workdir,
      "--config.batch_size=0",
      "--config.num_steps=-1",
    ],
    capsys,
  )
  assert len(lines) == 3
  lines = fails(
    pretrain, [f"--config={TINY}", workdir, "--config.mesh.tensor=4"], capsys
  )
  assert "does not fit 1 device" in lines[1]
  assert len(lines) == 4  # nor are heads its multiples
  assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
  ("alpha", "wanted"),
  [("1.0", "in [0, 1)"), ("-0.1", "in [0, 1)"), ("nan", "a finite number")],
)
def test_alpha_outside_its_range(tiny_run, capsys, alpha, wanted):
  lines = fails(
    search,
    [
      f"--config={ROOT / 'configs/search/tiny.py'}",
      f"--workdir={tiny_run}",
      f"--config.alpha={alpha}",
    ],
    capsys,
  )
  assert f"config.alpha must be {wanted}" in lines[1]
  assert not (tiny_run / "search").exists()


def test_steps_and_workdirs_that_are_not_there(tiny_run, tmp_path, capsys):
  config = f"--config={ROOT / 'configs/search/tiny.py'}"
  lines = fails(
    search,
    [config, f"--workdir={tiny_run}", "--config.checkpoint_steps=(5, 8, 9)"],
    capsys,
  )
  assert len(lines) == 2
  assert "has no steps 5, 9; it has 4, 8, 12, 16" in lines[1]
  assert "takes the last config.checkpoint_window ones" in lines[1]
  lines = fails(search, [config, f"--workdir={tmp_path / 'none'}"], capsys)
  assert "does not exist" in lines[1]
  assert not (tmp_path / "none").exists()
  assert not (tiny_run / "search").exists()


def test_a_workdir_that_cannot_be_written(tmp_path, capsys):
  (tmp_path / "file").write_text("")
  lines = fails(
    pretrain,
    [f"--config={TINY}", f"--workdir={tmp_path / 'file/below'}"],
    capsys,
  )
  assert "cannot write to" in lines[1]


def test_a_dry_run_sees_it_too(tiny_run, tmp_path, capsys):
  (tmp_path / "file").write_text("")
  below = tmp_path / "file/run"
  inputs = f"--inputs={tiny_run}@4,{tiny_run}@8"
  config = f"--config={ROOT / 'configs/{verb}/{name}.py'}"
  for module, argv in (
    (pretrain, [f"--config={TINY}", f"--workdir={below}"]),
    (
      search,
      [config.format(verb="search", name="tiny"), f"--workdir={below}", inputs],
    ),
    (
      merge,
      [
        config.format(verb="merge", name="uniform"),
        f"--output={below}",
        inputs,
      ],
    ),
  ):
    lines = fails(module, [*argv, "--dry_run"], capsys)
    assert lines[1:] == [f"cannot write to {tmp_path / 'file'}: it is a file"]


def test_a_merge_lists_what_is_wrong(tiny_run, tmp_path, capsys):
  output = tmp_path / "out"
  base = [
    f"--config={ROOT / 'configs/merge/weights.py'}",
    f"--inputs={tiny_run}@4,{tiny_run}@8",
  ]
  lines = fails(merge, [*base, f"--output={output}", "--weights=1,x"], capsys)
  assert "'x' is not a number" in lines[1]
  lines = fails(merge, [*base, f"--output={output}", "--weights=1"], capsys)
  assert "2 inputs but 1 --weights" in lines[1]
  lines = fails(merge, [*base, f"--output={tmp_path}", "--weights=1,1"], capsys)
  assert "--overwrite" in lines[1]
  assert not output.exists()


def test_help_names_the_flags(capsys):
  with pytest.raises(SystemExit) as stop:
    pretrain.main(["--help"])
  assert stop.value.code == 0
  text = capsys.readouterr().out
  for flag in ("--config", "--workdir", "--init_from", "--dry_run"):
    assert flag in text


def test_importing_the_verbs_and_their_help_start_no_backend():
  """All in one process: what one of them starts would be there at its end."""
  code = """
import importlib, sys
for verb in sys.argv[1:]:
  try:
    importlib.import_module(f"jaxmerge.{verb}").main(["--help"])
  except SystemExit as ended:
    assert ended.code == 0, verb
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
assert "gpjax" not in sys.modules
assert "tensorflow" not in sys.modules
"""
  said = subprocess.run(
    [sys.executable, "-c", code, *forked.VERBS, "quickstart"],
    check=True,
    env=os.environ,
    capture_output=True,
    text=True,
  )
  assert max(map(len, said.stdout.splitlines())) <= 100


def test_help_says_a_key_of_several_methods_once(capsys):
  with pytest.raises(SystemExit):
    merge.main(["--help"])
  lines = capsys.readouterr().out.splitlines()
  [drop] = [line for line in lines if line.startswith("  drop_rate = 0.9 ")]
  assert drop.endswith("share that is dropped; in [0, 1) (dare, dare_ties)")


def test_a_stray_word_like_a_key_and_a_key_without_a_value(capsys):
  argv = [f"--config={TINY}", "config.py", "--workdir=w", "--config.seed"]
  assert fails(pretrain, argv, capsys)[1:] == [
    "write --config.seed=VALUE",
    "unknown argument config.py",
  ]


def test_the_public_names():
  import jaxmerge

  assert set(jaxmerge.__all__) <= set(dir(jaxmerge))
  for name in jaxmerge.__all__:
    assert getattr(jaxmerge, name).__name__ == name
  with pytest.raises(AttributeError, match="nothing"):
    _ = jaxmerge.nothing


def test_a_full_disk_is_a_message(capsys):
  def main():
    raise OSError(28, "No space left on device", "/some/file")

  assert runner.run("verb", main) == 2
  text = capsys.readouterr().err
  assert "cannot write /some/file: No space left on device" in text


def _lines_of(steps, capsys) -> list[str]:
  """What a progress with a clock of its own prints for (seconds, its call)."""
  now = 0.0
  progress = runner.TerminalProgress(clock=lambda: now)
  for seconds, call in steps:
    now += seconds
    tell = progress.note if len(call) == 2 else progress.stage
    tell(*call)
  return capsys.readouterr().out.splitlines()


def test_the_end_of_a_stage_is_guessed_from_the_mean_step(capsys):
  lines = _lines_of(
    [
      (0, ("search", 3, 12, "best 1.3")),
      (11, ("search", 4, 12, "best 1.2")),
      (29, ("search", 6, 12, "best 1.2")),
      (1, ("search", 7, 12, "best 1.2")),  # too soon for a line
      (999, ("search", 12, 12, "best 1.1")),
    ],
    capsys,
  )
  assert len(lines) == 4
  # Three trials lie before this process: nothing is known of their time.
  assert "3/12" in lines[0]
  assert "ETA" not in lines[0]
  assert "ETA 1:28, best 1.2]" in lines[1]  # 8 trials of 11 s
  assert "ETA 1:20, best 1.2]" in lines[2]  # 6 trials of 40 / 3 s
  assert "<" not in "".join(lines)  # tqdm's own guess is not there too
  assert lines[3].startswith("search: 100%")
  assert "ETA" not in lines[3]


def test_each_stage_is_timed_alone_and_hours_are_shown(capsys):
  lines = _lines_of(
    [
      (500, ("read", 0, 2, "")),
      (100, ("read", 1, 2, "")),
      (100, ("train", 0, 101, "loss 3")),
      (37.25, ("train", 1, 101, "loss 2")),
      (1, ("train", "saved")),
      (11, ("train", 1, 101, "loss 2")),
    ],
    capsys,
  )
  assert "ETA 1:40]" in lines[1]
  assert "ETA" not in lines[2]
  assert "ETA 1:02:05, loss 2]" in lines[3]
  # A line in between ends the bar, but is no reason to forget what a step took.
  assert lines[4:] == [
    "train: saved",
    "train:   1% 1/101 [ETA 1:22:05, loss 2]",
  ]


def test_the_end_is_guessed_from_the_last_hour(capsys):
  slow = [(60, ("train", done, 10_000, "loss 2")) for done in range(61)]
  fast = [(20, ("train", done, 10_000, "loss 2")) for done in range(61, 242)]
  lines = _lines_of([*slow, *fast], capsys)
  assert "train:   1% 60/10000 [ETA 165:40:00, loss 2]" in lines
  # Of the last hour, half an hour after and an hour after it became faster.
  assert "train:   2% 150/10000 [ETA 82:05:00, loss 2]" in lines
  assert lines[-1] == "train:   2% 241/10000 [ETA 54:13:00, loss 2]"


def test_a_line_has_a_width_and_what_matters_least_gives_way(capsys):
  note = "loss 2.1234, 412k tokens/s; data wait 3%; 63/80 GiB; host 12 GiB"
  lines = _lines_of(
    [
      (0, ("pretrain", 450, 900, note)),
      (11, ("pretrain", 451, 900, note)),
      (9999, ("pretrain", 452, 900, f"3 skipped, {note}")),
    ],
    capsys,
  )
  assert lines[1] == f"pretrain:  50% 451/900 [ETA 1:22:19, {note}]"
  assert lines[2].endswith("; data wait 3%; 63/80 GiB]")


def test_without_a_terminal_there_are_lines_and_no_carriage_returns(capsys):
  progress = runner.TerminalProgress()
  for done in range(1, 4):
    progress.stage("merge", done, 3, "note")
  out = capsys.readouterr().out
  assert "\r" not in out
  assert [line[:11] for line in out.splitlines()] == [
    "merge:  33%",
    "merge: 100%",
  ]
  assert out.endswith("note]\n")


def test_a_terminal_gets_a_bar_with_the_eta(monkeypatch):
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  screen, now = Terminal(), 0.0
  monkeypatch.setattr(sys, "stdout", screen)
  progress = runner.TerminalProgress(clock=lambda: now)
  progress.stage("search", 0, 4, "best 1.2")
  for done in (1, 2):
    now += 90.0
    time.sleep(0.11)  # tqdm draws ten times a second at most
    progress.stage("search", done, 4, "best 1.2")
  assert "\r" in screen.getvalue()
  assert "ETA 3:00, best 1.2" in screen.getvalue()


def test_ten_seconds_of_silence_end_in_a_line(capsys):
  """As while a program is compiled, or figures are drawn."""
  now = 0.0
  progress = runner.TerminalProgress(clock=lambda: now)

  def after(seconds: float) -> str:
    nonlocal now
    now += seconds
    progress.beat()
    return capsys.readouterr().out

  assert after(9) == ""
  assert after(2) == "at work, 11 s so far\n"
  progress.note("search", "read")
  capsys.readouterr()
  assert after(9) == ""
  assert after(2) == "search: at work, 11 s so far\n"
  assert after(9) == ""
  assert after(2) == "search: at work, 22 s so far\n"
  progress.stage("figures", 1, 4, "baselines")
  capsys.readouterr()
  assert after(9) == ""
  assert "figures:  25%" in after(2)
  progress.stage("figures", 4, 4)
  capsys.readouterr()
  assert "figures: at work, 11 s so far" in after(11)


def test_a_progress_beats_within_its_context(capsys):
  now, told = 0.0, ""
  until = time.monotonic() + 60
  with runner.TerminalProgress(clock=lambda: now) as progress:
    progress.note("search", "read")
    now = 11.0
    while "at work" not in told and time.monotonic() < until:
      time.sleep(0.05)
      told += capsys.readouterr().out
  assert told.splitlines() == ["search: read", "search: at work, 11 s so far"]
  now = 99.0
  time.sleep(1.5)
  assert capsys.readouterr().out == ""


def _on_a_terminal(columns: int, monkeypatch, *calls) -> str:
  """What a terminal of so many columns is sent."""
  master, slave = pty.openpty()
  size = struct.pack("HHHH", 24, columns, 0, 0)
  fcntl.ioctl(slave, termios.TIOCSWINSZ, size)
  with os.fdopen(slave, "w") as screen, monkeypatch.context() as patch:
    patch.setattr(sys, "stdout", screen)
    progress = runner.TerminalProgress()
    for call in calls:
      progress.stage(*call)
  sent = b""
  with contextlib.suppress(OSError):  # Linux's end of a terminal
    while part := os.read(master, 10_000):
      sent += part
  os.close(master)
  return sent.decode()


_BEST = "best 3.1191 of trial 5"
_SIX = "400: 0.0310, 500: 0.1234, 600: 0.1111, 700: 0.2222, 800: 0.5123"


def test_a_bar_of_110_columns_keeps_the_loss_and_not_the_weights(monkeypatch):
  call = "search", 7, 20, f"{_BEST}; {_SIX}"
  line = _on_a_terminal(110, monkeypatch, call).split("\r")[-1]
  assert len(line.rstrip()) <= 110
  assert "7/20" in line
  assert f"{_BEST}]" in line
  assert "400:" not in line
  line = _on_a_terminal(300, monkeypatch, call).split("\r")[-1]
  assert f"{_BEST}; {_SIX}]" in line


def test_a_terminal_of_zero_columns_gets_lines(monkeypatch):
  calls = [("search", done, 20, _BEST) for done in (1, 20)]
  sent = _on_a_terminal(0, monkeypatch, *calls)
  first, last = sent.replace("\r\n", "\n").splitlines()
  assert "1/20" in first
  assert "20/20" in last
  assert _BEST in last
