"""Every schedule: its formula, its knobs, and runs that are too short."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmerge import pretrain
from jaxmerge.cli import runner
from jaxmerge.config_fields import own_keys
from jaxmerge.config_reading import read
from jaxmerge.errors import InputError
from jaxmerge.training.optimizer import SCHEDULES, OptimizerConfig, build
from tests.helpers import config_file, config_of

STEPS, WARMUP, RATE = 40, 8, 0.5


def rates(name, num_steps=STEPS, **knobs):
  """Of every step, as a jitted step asks for them, and the one after."""
  given = {"schedule": name, "learning_rate": RATE, "warmup_steps": WARMUP}
  _, schedule = build(read(OptimizerConfig, {**given, **knobs}), num_steps)
  return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(num_steps + 1)))


T = np.arange(STEPS + 1)
RISE = RATE * T / WARMUP
P = (T - WARMUP) / (STEPS - WARMUP)
DECAY = (T - STEPS + 10) / 10  # of wsd's ten last steps


def wsd(shape, floor):
  with np.errstate(invalid="ignore"):
    share = {
      "linear": 1 - DECAY,
      "cosine": np.cos(np.pi / 2 * DECAY) ** 2,
      "1-sqrt": 1 - DECAY**0.5,
    }[shape]
  return RATE * np.where(DECAY > 0, floor + (1 - floor) * share, 1)


FORMULAS = [
  ("warmup_constant", {}, RATE + 0 * P),
  ("cosine", {}, RATE * (0.1 + 0.9 * np.cos(np.pi / 2 * P) ** 2)),
  (
    "cosine",
    {"final_share": 0.0},
    RATE * np.cos(np.pi / 2 * P) ** 2,
  ),
  ("linear", {}, RATE * (1 - P)),
  ("linear", {"final_share": 0.25}, RATE * (1 - 0.75 * P)),
  ("inverse_sqrt", {}, RATE * np.sqrt(WARMUP / np.maximum(T, 1))),
  *(
    (
      "wsd",
      {"decay_steps": 10, "decay_shape": shape, "final_share": floor},
      wsd(shape, floor),
    )
    for shape in ("linear", "cosine", "1-sqrt")
    for floor in (0.0, 0.2)
  ),
  ("wsd", {"decay_steps": 0}, RATE + 0 * P),
]


@pytest.mark.parametrize(("name", "knobs", "after"), FORMULAS)
def test_rates_are_those_of_the_formula(name, knobs, after):
  wanted = np.where(T < WARMUP, RISE, after)
  found = rates(name, **knobs)
  if knobs.get("decay_steps") == 0:  # the last is of no step of the run
    found, wanted = found[:-1], wanted[:-1]
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", SCHEDULES)
def test_without_a_warmup_the_first_rate_is_the_highest(name):
  given = {"decay_steps": 10} if name == "wsd" else {}
  found = rates(name, warmup_steps=0, **given)
  np.testing.assert_allclose(found[0], RATE, rtol=1e-6)
  assert np.isfinite(found).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_says_whether_it_depends_on_the_length(name):
  """What says no must not: a run may then go on to more steps."""
  given = {"decay_steps": 10} if name == "wsd" else {}
  short, long = rates(name, **given), rates(name, num_steps=60, **given)
  differ = not np.array_equal(short[:-1], long[:STEPS])
  assert differ == SCHEDULES[name].depends_on_length


@pytest.mark.parametrize(
  ("name", "knob"),
  [
    (name, knob)
    for name, record in SCHEDULES.items()
    for knob, _, _ in own_keys(record.knobs())
  ],
)
def test_every_knob_changes_the_rates(name, knob):
  small = {"warmup_steps": 4} | ({"decay_steps": 8} if name == "wsd" else {})
  other = {
    "warmup_steps": 6,
    "decay_steps": 12,
    "final_share": 0.4,
    "decay_shape": "cosine",
  }[knob]
  found = rates(name, **{**small, knob: other})
  assert np.abs(found - rates(name, **small))[:-1].max() > 1e-3 * RATE


def test_a_decay_longer_than_the_run_is_refused_with_all_else(tmp_path, capsys):
  argv = [
    f"--config={config_file('pretrain')}",
    f"--workdir={tmp_path / 'run'}",
    "--config.optimizer.schedule=wsd",
    "--config.optimizer.name=adamv",
    "--config.optimizer.decay_steps=15",
    "--config.mesh.tensor=3",
    "--config.model.num_key_value_heads=3",
    "--config.eval_batch_size=0",
  ]
  assert runner.run("pretrain", lambda: pretrain.main(argv)) == 2
  said = capsys.readouterr().err
  for problem in (
    "config.optimizer.name must be one of",
    "got 'adamv'; did you mean adamw?",
    "config.optimizer.warmup_steps 2 and config.optimizer.decay_steps 15 are "
    "together more than config.num_steps 16",
    "does not fit 1 device(s)",
    "is not a multiple of config.model.num_key_value_heads 3",
    "config.eval_batch_size must be in [1, 2**31 - 1], got 0",
  ):
    assert said.count(problem) == 1, said
  assert not (tmp_path / "run").exists()
  argv[2] = "--config.optimizer.schedule=cosin"
  del argv[3:]
  assert runner.run("pretrain", lambda: pretrain.main(argv)) == 2
  said = capsys.readouterr().err
  assert "got 'cosin'; did you mean cosine?" in said


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_a_warmup_leaves_steps_for_the_decay(name):
  config = config_of("pretrain")
  config.optimizer.schedule = name
  config.optimizer.warmup_steps = 16
  with pytest.raises(InputError, match="warmup_steps 16 must be less than"):
    pretrain.check_config(config)
  config.optimizer.warmup_steps = 15
  pretrain.check_config(config)
