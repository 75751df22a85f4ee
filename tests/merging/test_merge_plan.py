"""What the merge verb refuses, and that it leaves nothing behind."""

import collections
import errno
import os
import random
import shutil

import numpy as np
import pytest

from jaxmerge import merge, process_liveness
from jaxmerge.checkpoints import orbax_adapter
from jaxmerge.checkpoints.store import restore_params
from jaxmerge.cli import runner
from jaxmerge.errors import InputError
from jaxmerge.formats import lazy_tensors, safetensors
from jaxmerge.formats.integrity import checksums
from jaxmerge.formats.records.metadata import read_metadata
from jaxmerge.huggingface import shards, torch_bin
from jaxmerge.merging import chunks
from jaxmerge.parallel.rules import named_leaves
from tests.helpers import contents
from tests.merging import fixtures
from tests.merging.fixtures import command, hugging_face

# Orbax leaves its unfinished reads to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning"
)


def noise(*shape, seed=0, dtype=np.float32):
  return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def tree(seed=0):
  return {
    "embed": noise(100, 16, seed=seed),
    "layers": {"query": noise(4, 16, 16, seed=seed + 1)},
  }


def tensors(seed=0):
  return {"a": noise(100, 16, seed=seed), "b.c": noise(64, seed=seed + 1)}


@pytest.fixture
def steps(tmp_path):
  return [
    fixtures.step_directory(tmp_path / f"step{i}", tree(i), step=i)
    for i in (1, 2)
  ]


@pytest.fixture
def directories(tmp_path):
  return [
    hugging_face(tmp_path / f"hf{i}", tensors(i), step=i, form=form)
    for i, form in ((1, "one file"), (2, "shards"))
  ]


def typed(*paths):
  return f"--inputs={','.join(map(str, paths))}"


def refused(capsys, *words):
  """The problems that a command is refused for."""
  capsys.readouterr()
  code = command(*words)
  first, *rest = capsys.readouterr().err.splitlines()
  assert code == 2
  assert first == "jaxmerge.merge: error:"
  assert all(line.startswith("  ") for line in rest)
  return [line[2:] for line in rest]


def test_a_flipped_bit_of_a_step_directory(steps, tmp_path, capsys):
  """It is refused, or it lay in bytes that hold nothing and changes nothing.

  How many bytes hold nothing differs from one save to the next.
  """
  assert command(typed(*steps), f"--output={tmp_path / 'right'}") == 0
  right = restore_params(tmp_path / "right")
  file = max(
    (f for f in (steps[1] / "params").rglob("*") if f.is_file()),
    key=lambda f: f.stat().st_size,
  )
  content = file.read_bytes()
  choose = random.Random(0)
  out = tmp_path / "out"
  count = 0
  for _ in range(40):
    if count == 4:
      break
    flipped = bytearray(content)
    flipped[choose.randrange(len(content))] ^= 1 << choose.randrange(8)
    file.write_bytes(bytes(flipped))
    before = contents(tmp_path)
    capsys.readouterr()
    if command(typed(*steps), f"--output={out}") == 0:
      for name, leaf in named_leaves(restore_params(out)).items():
        np.testing.assert_array_equal(leaf, named_leaves(right)[name])
      shutil.rmtree(out)
      continue
    count += 1
    _, *lines = capsys.readouterr().err.splitlines()
    # The bit may also make a NaN.
    assert any(f"{steps[1]} is damaged: " in line for line in lines)
    assert all(f"{steps[1]}" in line for line in lines)
    assert contents(tmp_path) == before
  assert count == 4


def test_damage_of_the_base_and_of_a_source_is_told_together(tmp_path, capsys):
  paths = [
    fixtures.step_directory(tmp_path / str(i), tree(i), step=i)
    for i in range(3)
  ]
  for path, other in zip(paths[:2], paths[1:]):
    shutil.rmtree(path / "params")
    shutil.copytree(other / "params", path / "params")
  lines = refused(
    capsys,
    "--config.method=task_arithmetic",
    f"--config.base={paths[0]}",
    typed(*paths[1:]),
    f"--output={tmp_path / 'out'}",
  )
  assert sorted(lines) == [
    f"{path} is damaged: params {name} does not match its digest"
    for path in paths[:2]
    for name in ("embed", "layers/query")
  ]


@pytest.mark.parametrize("how", ["truncated", "longer", "missing", "header"])
def test_damaged_tensor_files(directories, tmp_path, capsys, how):
  one = directories[0] / "model.safetensors"
  shard = sorted(directories[1].glob("*.safetensors"))[1]
  for file in (one, shard):
    content = file.read_bytes()
    if how == "truncated":
      file.write_bytes(content[:-5])
    elif how == "longer":
      file.write_bytes(content + b"12345")
    elif how == "header":
      file.write_bytes(content[:8] + b"x" + content[9:])
    else:
      file.unlink()
  before = contents(tmp_path)
  lines = refused(capsys, typed(*directories), f"--output={tmp_path / 'out'}")
  assert len(lines) == 2, lines
  assert str(directories[0]) in lines[0]
  assert str(directories[1]) in lines[1]
  assert contents(tmp_path) == before


def test_a_file_that_becomes_shorter_meanwhile(
  directories, tmp_path, monkeypatch
):
  """The headers were whole; nothing half made stays."""
  rows = safetensors.StoredTensor.rows

  def cut_first(tensor, start, stop):
    if tensor.path.parent == directories[0]:
      content = tensor.path.read_bytes()
      tensor.path.write_bytes(content[:-1])
    return rows(tensor, start, stop)

  monkeypatch.setattr(safetensors.StoredTensor, "rows", cut_first)
  with pytest.raises(InputError, match="shorter while it was read"):
    fixtures.run(directories, tmp_path / "out")
  assert sorted(p.name for p in tmp_path.iterdir()) == ["hf1", "hf2"]


def test_all_differences_of_trees_are_in_one_message(tmp_path, capsys):
  a = {"w": noise(4, 3), "b": noise(4), "gone": noise(1), "same": noise(2)}
  b = {"w": noise(3, 4), "b": noise(4).astype(np.int8), "same": noise(2)}
  b["new"] = noise(1)
  for make, folder, more in (
    (fixtures.step_directory, tmp_path / "step", {}),
    (hugging_face, tmp_path / "hf", {"step": 1}),
  ):
    make(folder / "a", a, **more)
    make(folder / "b", b, **more)
    before = contents(tmp_path)
    for flags in ([], ["--allow_unrelated"]):
      lines = refused(
        capsys,
        typed(folder / "a", folder / "b"),
        f"--output={tmp_path / 'out'}",
        *flags,
      )
      assert sorted(line.partition("/b")[2] for line in lines) == sorted(
        [
          " has no parameter gone",
          f" has a parameter new that {folder / 'a'} has not",
          f": shape of w is [3, 4], of {folder / 'a'} [4, 3]",
          f": dtype of b is int8, of {folder / 'a'} float32",
        ]
      )
    assert contents(tmp_path) == before


def test_another_run_and_another_tokenizer_must_be_allowed(tmp_path, capsys):
  a = hugging_face(tmp_path / "a", tensors(1), step=1)
  b = hugging_face(tmp_path / "b", tensors(2), files={"tokenizer.json": "{}"})
  words = [typed(a, b), f"--output={tmp_path / 'out'}"]
  lines = refused(capsys, *words)
  assert len(lines) == 2
  assert "of another run" in lines[0]
  assert "of another tokenizer" in lines[1]
  flags = ["--allow_unrelated", "--allow_other_tokenizer"]
  for flag, line in zip(flags, lines):
    assert line.endswith(f"{flag} accepts it")
    assert len(refused(capsys, *words, flag)) == 1
  assert command(*words, *flags) == 0


def test_plain_directories_need_no_permission(tmp_path, capsys):
  a, b = (hugging_face(tmp_path / n, tensors(i)) for i, n in enumerate("ab"))
  assert command(typed(a, b), f"--output={tmp_path / 'o'}") == 0
  (b / "tokenizer.json").write_text("{}")
  words = [typed(a, b), f"--output={tmp_path / 'p'}"]
  lines = refused(capsys, *words)
  assert "says of which run it is; --allow_unrelated" in lines[0]
  assert "of another tokenizer" in lines[1]
  (b / "tokenizer.json").unlink()
  [line] = refused(capsys, *words)
  assert "b has no tokenizer to compare with" in line
  known = hugging_face(tmp_path / "known", tensors(), step=1)
  [line] = refused(capsys, typed(a, known), f"--output={tmp_path / 'q'}")
  assert "of another run" in line


@pytest.mark.parametrize(
  "name", ["tokenizer.model", "vocab.json", "merges.txt", "vocab.txt"]
)
def test_a_tokenizer_of_other_files_is_compared_too(tmp_path, capsys, name):
  for folder in ("a", "b"):
    path = hugging_face(tmp_path / folder, tensors(), step=1)
    (path / "tokenizer.json").unlink()
    (path / name).write_text(f"the {folder}")
  words = [typed(tmp_path / "a", tmp_path / "b"), f"--output={tmp_path / 'o'}"]
  lines = refused(capsys, *words)
  assert len(lines) == 1
  assert "of another tokenizer" in lines[0]
  assert refused(capsys, *words, "--allow_unrelated") == lines
  assert command(*words, "--allow_other_tokenizer") == 0
  assert (tmp_path / "o" / name).read_text() == "the b"


def test_another_model_is_never_allowed(tmp_path, capsys):
  llama = {
    "model_type": "llama",
    "vocab_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 5,
    "step": 1,
  }
  a = hugging_face(
    tmp_path / "a", tensors(1), **llama, hidden_size=4, use_cache=True
  )
  b = hugging_face(
    tmp_path / "b", tensors(2), **llama, hidden_size=4, use_cache=False
  )
  words = [f"--output={tmp_path / 'out'}", "--allow_unrelated"]
  assert command(typed(a, b), *words) == 0
  c = hugging_face(
    tmp_path / "c", tensors(2), **llama, rope_theta=7, hidden_size=6
  )
  lines = refused(capsys, typed(a, c), *words, "--overwrite")
  assert lines == [
    f"{c}: model.head_dim is 6, of {a} 4",
    f"{c}: model.hidden_size is 6, of {a} 4",
    f"{c}: model.rope_theta is 7, of {a} 10000.0",
  ]
  d = hugging_face(tmp_path / "d", tensors(2), step=1, model_type="gemma")
  lines = refused(capsys, typed(a, d), *words, "--overwrite")
  assert lines == [f"{d}: model.model_type is 'gemma', of {a} 'llama'"]


def test_two_formats_at_once(steps, directories, tmp_path, capsys):
  lines = refused(
    capsys,
    typed(steps[0], directories[1]),
    f"--output={tmp_path / 'out'}",
    "--allow_unrelated",
  )
  assert len(lines) == 1
  assert "of two formats" in lines[0]


def test_methods_that_measure_must_know_the_model(
  directories, tmp_path, capsys
):
  lines = refused(
    capsys,
    "--config.method=greedy",
    typed(*directories),
    f"--output={tmp_path / 'out'}",
  )
  assert len(lines) == 2
  assert all("model_type is" in line for line in lines)


def test_order_of_directories(tmp_path, capsys):
  known = [
    hugging_face(tmp_path / f"known{i}", tensors(i), step=i) for i in (1, 2)
  ]
  unknown = [hugging_face(tmp_path / f"unknown{i}", tensors(i)) for i in (1, 2)]
  words = ["--config.method=wma", "--allow_unrelated"]
  assert command(typed(*known), f"--output={tmp_path / 'x'}", *words) == 0
  output = tmp_path / "y"
  assert command(typed(*unknown), f"--output={output}", *words) == 0
  np.testing.assert_allclose(
    fixtures.loaded(output)["a"],
    (tensors(1)["a"] + 2 * tensors(2)["a"]) / 3,
    rtol=1e-5,
    atol=1e-6,
  )


def test_outputs_that_are_not_replaced(steps, directories, tmp_path, capsys):
  places = {
    "notes": {"notes.md": "mine"},
    "texts": {"a.txt": "mine", "b.txt": "mine"},
    "adapters": {"style.safetensors": "mine", "README.md": "mine"},
    "both": {"config.json": "{}", "model.safetensors": "", "train.log": "mine"},
  }
  for name, files in places.items():
    (tmp_path / name).mkdir()
    for file, text in files.items():
      (tmp_path / name / file).write_text(text)
  (tmp_path / "file").write_text("mine")
  before = contents(tmp_path)
  for inputs in (steps, directories):
    for name in (*places, "file"):
      words = [typed(*inputs), f"--output={tmp_path / name}"]
      for flags in ([], ["--overwrite"]):
        (line,) = refused(capsys, *words, *flags)
        assert "is not a checkpoint, so --overwrite does not replace it" in line
  assert contents(tmp_path) == before


def test_outputs_that_are_replaced(steps, directories, tmp_path, capsys):
  names_code = '{"auto_map": {"AutoModel": "modeling.Model"}}'
  code = {"config.json": names_code, "modeling.py": "x = 1"}
  coded = [
    hugging_face(tmp_path / f"coded{i}", tensors(i), files=code, step=i)
    for i in (1, 2)
  ]
  output = tmp_path / "out"
  output.mkdir()
  for inputs in (steps, steps, directories, coded, directories, steps):
    words = [typed(*inputs), f"--output={output}"]
    refused(capsys, *words)
    assert command(*words, "--overwrite") == 0
    assert (output / "modeling.py").exists() == (inputs is coded)
    assert (output / "params").exists() == (inputs is steps)
  assert read_metadata(output).kind == "merged"
  assert not list(tmp_path.glob(".*"))


def test_an_input_may_be_replaced_by_the_merge(directories, tmp_path):
  """Its tensors are read to the end before."""
  words = [typed(*directories), f"--output={directories[0]}", "--overwrite"]
  assert command(*words) == 0
  mean = (tensors(1)["a"] + tensors(2)["a"]) / 2
  np.testing.assert_allclose(
    fixtures.loaded(directories[0])["a"], mean, atol=1e-6
  )


def test_a_failed_replacement_keeps_what_was_there(directories, tmp_path):
  output = tmp_path / "out"
  fixtures.run(directories, output)
  before = contents(output)
  bad = hugging_face(
    tmp_path / "bad", {"a": noise(100, 16) * np.nan, "b.c": noise(64)}, step=3
  )
  with pytest.raises(InputError, match="bad: a holds NaN"):
    fixtures.run([*directories, bad], output, overwrite=True)
  assert contents(output) == before
  assert not list(tmp_path.glob(".*"))


def test_quantized_models_are_not_averaged(tmp_path, capsys):
  """Their numbers mean something only with the scales beside them."""
  quantized = {"quantization_config": {"quant_method": "fp8"}}
  paths = [
    hugging_face(tmp_path / str(i), tensors(i), step=i, **quantized)
    for i in (1, 2)
  ]
  before = contents(tmp_path)
  words = [typed(*paths), f"--output={tmp_path / 'out'}"]
  lines = refused(capsys, *words, "--allow_unrelated")
  assert len(lines) == 2
  assert all(f"{p} is quantized" in line for p, line in zip(paths, lines))
  assert contents(tmp_path) == before


def test_a_disk_that_fills_up_meanwhile(
  directories, tmp_path, capsys, monkeypatch
):
  write_file = shards.write_file

  def full(*args):
    write_file(*args)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(shards, "write_file", full)
  before = contents(tmp_path)
  (line,) = refused(capsys, typed(*directories), f"--output={tmp_path / 'out'}")
  assert line == f"cannot write to {tmp_path / 'out'}: No space left on device"
  assert contents(tmp_path) == before


@pytest.mark.parametrize("together", [1, 12])
def test_a_layer_is_read_with_what_is_stored_with_it(together):
  spec = lazy_tensors.TensorSpec((12, 64, 64), np.dtype(np.float32), together)
  needed = chunks.needed_bytes({"layers/w": spec}, 2, whole=True, workers=1)
  layer = 64 * 64 * 4
  assert needed >= 2 * layer * 3 + together * layer


def test_what_a_killed_merge_began_is_removed(directories, tmp_path):
  dead = f"{process_liveness.this_process().host}-999999999-0123abcd"
  output = tmp_path / "new/out"
  output.parent.mkdir()
  (output.parent / f".probe.tmp-{dead}").write_text("probe")
  (output.parent / f".out.tmp-{dead}.params").mkdir()
  other = output.parent / f".other.tmp-{dead}"
  other.mkdir()
  fixtures.run(directories, output)
  names = sorted(p.name for p in output.parent.iterdir())
  assert names == [other.name, "out"]


def test_too_little_memory(directories, steps, tmp_path, capsys):
  before = contents(tmp_path)
  for inputs in (directories, steps):
    words = [typed(*inputs), f"--output={tmp_path / 'out'}"]
    (line,) = refused(capsys, *words, "--memory_budget_gb=0.000001")
    assert "of memory are needed for parameters, 1.0 KiB may be used" in line
    assert line[0].isdigit()
    for wrong in ("-1", "nan", "inf"):
      (line,) = refused(capsys, *words, f"--memory_budget_gb={wrong}")
      assert (
        line == f"--memory_budget_gb must be at least 0, got {float(wrong)}"
      )
    for wrong in ("many", "1,2", ""):
      (line,) = refused(capsys, *words, f"--memory_budget_gb={wrong}")
      assert line == f"--memory_budget_gb: {wrong!r} is not a number"
  assert contents(tmp_path) == before


def test_problems_of_all_kinds_are_in_one_message(
  directories, tmp_path, capsys
):
  (tmp_path / "notes").mkdir()
  (tmp_path / "notes/notes.md").write_text("mine")
  (directories[0] / "model.safetensors").unlink()
  lines = refused(
    capsys,
    "--config.method=ties",
    "--config.density=2.0",
    "--config.decay=0.5",
    "--config.batch_size=0",
    f"--config.base={tmp_path / 'nothing'}",
    typed(directories[0], tmp_path / "nowhere"),
    f"--output={tmp_path / 'notes'}",
    "--weights=1,2,3",
    "--memory_budget_gb=-1",
    "--overwrite",
  )
  said = "\n".join(lines)
  for words in (
    "config.density must be in",
    "does not use config.decay",
    "config.batch_size must be positive",
    "nothing does not exist",
    "nowhere does not exist",
    "notes is not a checkpoint",
    "2 inputs but 3 --weights",
    "--memory_budget_gb must be",
  ):
    assert words in said
  lines = refused(
    capsys,
    typed(*directories),
    f"--output={tmp_path / 'notes'}",
    "--weights=a,b",
    "--memory_budget_gb=c",
  )
  assert [line.split(":")[1].split()[0] for line in lines[:3]] == [
    "'a'",
    "'b'",
    "'c'",
  ]


@pytest.mark.parametrize(
  ("method", "weights", "says"),
  [
    ("weights", "nan,1", "nan is not finite"),
    ("weights", "1,-1", "not above zero"),
    ("slerp", "1,-1", "not above zero"),
    ("karcher", "-1,2", "weight >= 0"),
    ("task_arithmetic", "inf,1", "inf is not finite"),
    ("dare", "1,nan", "nan is not finite"),
    ("ties", "-1,2", "weight >= 0"),
    ("dare_ties", "-1,2", "weight >= 0"),
    ("secant", "", "two windows of 3 do not fit"),
    ("weights", "100000001,-100000000", "sizes of 2e+08 in all"),
    ("weights", "60,-59", "at most 100"),
    ("weights", "1e-300,-9.9e-301", "sizes of 199"),
    ("slerp", "1000,-999", "at most 100"),
    ("task_arithmetic", "1e8,-1e8", "times the scale have sizes of 2e+08"),
    ("dare", "90,-90", "at most 100"),
  ],
)
def test_weights_that_cannot_be_used_are_refused_before_anything(
  directories, tmp_path, capsys, monkeypatch, method, weights, says
):
  base = hugging_face(tmp_path / "base", tensors(0), step=0)
  (tmp_path / "notes").mkdir()
  (tmp_path / "notes/notes.md").write_text("mine")
  nothing_is_read(monkeypatch)
  needs_base = method not in ("weights", "slerp", "karcher", "secant")
  words = [
    f"--config.method={method}",
    *([f"--config.base={base}"] if needs_base else []),
    typed(*directories),
    *([f"--weights={weights}"] if weights else []),
  ]
  for flags in ([], ["--dry_run"]):
    output = f"--output={tmp_path / 'out'}"
    (line,) = refused(capsys, *words, *flags, output)
    assert says in line
  lines = refused(capsys, *words, f"--output={tmp_path / 'notes'}")
  assert len(lines) == 2, lines


def nothing_is_read(monkeypatch):
  def no(*_):
    raise AssertionError("a tensor was read")

  for kind in (
    orbax_adapter.OrbaxLeaf,
    safetensors.StoredTensor,
    torch_bin.TorchTensor,
  ):
    monkeypatch.setattr(kind, "rows", no)
  monkeypatch.setattr(torch_bin.TorchTensor, "__array__", no)


def test_a_dry_run_reads_and_writes_nothing(
  directories, steps, tmp_path, capsys, monkeypatch
):
  nothing_is_read(monkeypatch)
  for path in directories:
    for file in path.glob("*.safetensors"):
      empty_tensors(file)
  before = contents(tmp_path)
  for inputs in (directories, steps):
    words = [typed(*inputs), f"--output={tmp_path / 'new/out'}", "--dry_run"]
    assert command(*words) == 0
    said = capsys.readouterr().out
    assert "uniform: 2 tensors of " in said
    assert f"0.500000  {inputs[0]} (step 1)" in said
    of_a_step = "read 20.5 KiB, write 10.2 KiB"
    of_a_directory = "read 13.0 KiB, write 6.5 KiB"
    assert (of_a_step if inputs is steps else of_a_directory) in said
    assert "memory " in said
  assert contents(tmp_path) == before


def empty_tensors(file):
  """Cuts the tensors off; what is left of the file is as long and empty."""
  content = file.read_bytes()
  header = 8 + int.from_bytes(content[:8], "little")
  with file.open("r+b") as opened:
    opened.truncate(header)
    opened.truncate(len(content))


def test_a_full_disk_is_seen_before_anything_is_read(
  directories, steps, tmp_path, capsys, monkeypatch
):
  nothing_is_read(monkeypatch)
  usage = collections.namedtuple("usage", "total used free")  # noqa: PYI024
  monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(9, 9, 2048))
  before = contents(tmp_path)
  for inputs in (directories, steps):
    for flags in ([], ["--dry_run"]):
      words = [typed(*inputs), f"--output={tmp_path / 'out'}", *flags]
      (line,) = refused(capsys, *words)
      assert "are to be written to" in line
      assert "2.0 KiB are free" in line
  assert contents(tmp_path) == before


def test_memory_and_disk_are_told_together(
  directories, tmp_path, capsys, monkeypatch
):
  usage = collections.namedtuple("usage", "total used free")  # noqa: PYI024
  monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(9, 9, 2048))
  lines = refused(
    capsys,
    typed(*directories),
    f"--output={tmp_path / 'out'}",
    "--memory_budget_gb=0.000001",
  )
  assert len(lines) == 2


@pytest.mark.parametrize("method", ["uniform", "slerp", "ties"])
def test_a_stack_larger_than_the_budget_is_merged_by_layers(
  tmp_path, monkeypatch, method
):
  shape = (12, 256, 256)
  trees = [{"layers": {"w": noise(*shape, seed=i)}} for i in range(3)]
  paths = [
    fixtures.step_directory(tmp_path / str(i), t, step=i)
    for i, t in enumerate(trees)
  ]
  read = []
  rows = orbax_adapter.OrbaxLeaf.rows
  monkeypatch.setattr(
    orbax_adapter.OrbaxLeaf,
    "rows",
    lambda leaf, a, b: read.append(b - a) or rows(leaf, a, b),
  )
  layer = 256 * 256 * 4
  if method == "uniform":
    for module in (chunks, checksums):
      monkeypatch.setattr(module, "BLOCK", 256 * 256)
  base = {"base": str(paths[0])} if method == "ties" else {}
  fixtures.run(
    paths[1:],
    tmp_path / "out",
    method,
    changes=base,
    weights=[0.5, 0.5] if method == "slerp" else [],
    memory_budget_gb=11.5 * layer / 2**30,
  )
  assert set(read) == {1}
  merged = named_leaves(restore_params(tmp_path / "out"))
  if method == "uniform":
    np.testing.assert_allclose(
      merged["layers/w"],
      (trees[1]["layers"]["w"] + trees[2]["layers"]["w"]) / 2,
      atol=1e-6,
    )


@pytest.mark.parametrize("form", ["step", "hf"])
def test_paths_and_flags_as_they_are_typed(
  steps, directories, tmp_path, monkeypatch, capsys, form
):
  monkeypatch.chdir(tmp_path)
  fixtures.run(
    [tmp_path / f"{form}1", tmp_path / f"{form}2"], tmp_path / "whole"
  )
  argv = ["--config", "configs/merge/weights.py"]
  argv += ["--inputs", f"{form}1/,./{form}2", "-output", "new/out/"]
  argv += ["--weights", "-1,3", "--memory_budget_gb", "1"]
  assert runner.run("merge", lambda: merge.main(argv)) == 0
  assert "saved new/out" in capsys.readouterr().out
  if form == "hf":
    found = fixtures.loaded(tmp_path / "new/out")
    ends = tensors(1), tensors(2)
  else:
    found = named_leaves(restore_params("new/out"))
    ends = named_leaves(tree(1)), named_leaves(tree(2))
  for name, array in found.items():
    expected = 1.5 * ends[1][name] - 0.5 * ends[0][name]
    np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-6)


def test_a_program_error_is_not_called_bad_input(
  directories, tmp_path, monkeypatch
):
  def broken(*_):
    raise ZeroDivisionError

  monkeypatch.setattr(safetensors.StoredTensor, "rows", broken)
  before = contents(tmp_path)
  with pytest.raises(ZeroDivisionError):
    command(typed(*directories), f"--output={tmp_path / 'out'}")
  assert contents(tmp_path) == before


def test_help(capsys):
  with pytest.raises(SystemExit) as stop:
    merge.main(["--help"])
  assert stop.value.code == 0
  said = capsys.readouterr().out
  for flag in (
    "--config=FILE",
    "--inputs=VALUE",
    "--output=VALUE",
    "--weights=VALUE",
    "--memory_budget_gb=VALUE",
    "--overwrite",
    "--allow_unrelated",
    "--dry_run",
    "--memory_budget_gb=G",  # in the line that shows the command
  ):
    assert flag in said
  for method in merge.METHODS:
    assert f"  {method} " in said


@pytest.mark.parametrize("weights", ["2,-1", "50.5,-49.5", "33.3,-32.3"])
@pytest.mark.parametrize("group", [2, 3])
def test_one_model_merged_with_itself_is_itself(
  directories, tmp_path, weights, group
):
  """Whatever the weights that are taken: within the rounding of their terms."""
  inputs = ",".join([str(directories[0])] * group)
  typed_weights = weights if group == 2 else weights + ",0.5"
  output = tmp_path / "out"
  words = [f"--weights={typed_weights}", "--config.method=weights"]
  assert command(f"--inputs={inputs}", *words, f"--output={output}") == 0
  sizes = [abs(float(w)) for w in typed_weights.split(",")]
  total = abs(sum(float(w) for w in typed_weights.split(",")))
  merged, once = (
    shards.open_tensors(path) for path in (output, directories[0])
  )
  for name in once:
    a, b = (np.asarray(t[name]).astype(np.float64) for t in (merged, once))
    error = 2.0**-22 * sum(sizes) / total
    np.testing.assert_allclose(a, b, rtol=error, atol=0)
