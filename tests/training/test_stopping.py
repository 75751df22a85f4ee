"""When a run is to stop: once told, it stays told."""

import signal

import jax
import pytest
from jax.experimental import multihost_utils

from jaxmerge.errors import Stopped
from jaxmerge.interrupts import Held, held, note
from jaxmerge.training.loop import Plan
from jaxmerge.training.stopping import Stopping

PLAN = Plan(0, 12, 1, log_every=3, save_every=4)


def test_a_signal_is_noted_from_the_first_step_on():
  saves = []
  with held() as noted:
    stopping = Stopping(noted, PLAN)
    assert not note(signal.SIGINT)  # the first step may compile for minutes
    assert not stopping(1, lambda: saves.append(1))
    assert note(signal.SIGINT)
    assert note(signal.SIGTERM)
    assert stopping(2, lambda: saves.append(2))
    assert stopping(3, lambda: saves.append(3))
  assert saves == [3]  # where it logs
  assert not note(signal.SIGINT)
  with pytest.raises(Stopped, match="stopped at step 3, which is saved; the"):
    stopping.end()


def test_jax_is_asked_by_a_number_of_its_own(monkeypatch):
  """It names the number after the last one, and names it only once."""
  asked = []

  def reached(number):
    asked.append(number)
    return number == 3

  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", reached)
  service = jax.config.values["jax_enable_preemption_service"]
  jax.config.update("jax_enable_preemption_service", True)
  try:
    stopping = Stopping(Held(), PLAN)
  finally:
    jax.config.update("jax_enable_preemption_service", service)
  check = lambda: None
  assert [stopping(step, check) for step in (8, 9, 10)] == [False, False, True]
  assert stopping(5, check)  # it went back, as step 10 had diverged
  assert asked == [1, 2, 3, 4]
  with pytest.raises(Stopped) as error:
    stopping.end()
  assert error.value.exit_code == 4
