import dataclasses

import pytest

from jaxmerge.checkpoints import compatibility, inputs
from jaxmerge.errors import InputError


def test_steps_are_in_order(tiny_run):
  assert inputs.saved_steps(tiny_run) == [4, 8, 12, 16]


def test_inputs_are_directories_or_steps_of_a_workdir(tiny_run):
  by_step, by_path = inputs.open_inputs(
    [f"{tiny_run}@8", str(tiny_run / "checkpoints/8")]
  )
  assert by_step.metadata == by_path.metadata
  assert by_step.metadata.step == 8
  assert by_step.metadata.tokens == 8 * 8 * 32


def test_all_missing_inputs_are_listed(tiny_run, tmp_path):
  with pytest.raises(InputError) as error:
    inputs.open_inputs(
      [f"{tiny_run}@7", "nowhere", str(tiny_run), str(tmp_path), "gone@3"]
    )
  text = error.value.problems
  assert len(text) == 5
  assert "has no step 7; it has 4, 8, 12, 16" in text[0]
  assert "nowhere does not exist" in text[1]
  assert "is a workdir; name a step" in text[2]
  assert "is not a whole checkpoint" in text[3]
  assert "workdir gone does not exist" in text[4]


def test_unknown_steps_are_listed(tiny_run):
  with pytest.raises(InputError) as error:
    inputs.open_steps(tiny_run, [4, 5, 6])
  [line] = error.value.problems
  assert "has no steps 5, 6; it has 4, 8, 12, 16" in line


def test_another_run_or_tokenizer_needs_permission(tiny_run):
  a, b = inputs.open_steps(tiny_run, [4, 8])
  other = dataclasses.replace(
    b,
    metadata=dataclasses.replace(b.metadata, run_id="other", tokenizer="{}"),
  )
  compatibility.check_mergeable([a, b])
  with pytest.raises(InputError) as error:
    compatibility.check_mergeable([a, other])
  assert len(error.value.problems) == 2
  for permission in ("allow_unrelated", "allow_other_tokenizer"):
    with pytest.raises(InputError) as error:
      compatibility.check_mergeable([a, other], **{permission: True})
    assert len(error.value.problems) == 1
  compatibility.check_mergeable(
    [a, other], allow_unrelated=True, allow_other_tokenizer=True
  )


def test_other_trees_are_never_merged(tiny_run):
  a, b = inputs.open_steps(tiny_run, [4, 8])
  leaves = {k: dict(v) for k, v in b.metadata.leaves["params"].items()}
  leaves["embed/embedding"]["shape"] = [1, 2]
  leaves["final_norm/scale"]["dtype"] = "int8"
  leaves["more"] = leaves.pop("layers/mlp_norm/scale")
  other = dataclasses.replace(
    b,
    metadata=dataclasses.replace(
      b.metadata,
      leaves={"params": leaves},
      model={**b.metadata.model, "rope_theta": 1.0},
    ),
  )
  with pytest.raises(InputError) as error:
    compatibility.check_mergeable([a, other], allow_unrelated=True)
  text = str(error.value)
  assert len(error.value.problems) == 5
  for name in ("rope_theta", "more", "mlp_norm", "int8", "embedding"):
    assert name in text
