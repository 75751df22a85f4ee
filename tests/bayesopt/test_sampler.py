"""The Optuna sampler: start points, replay, duplicates, odd scores."""

import math

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from jaxmerge.bayesopt.gp import acquisition
from jaxmerge.bayesopt.sampler import GPHedgeSampler
from jaxmerge.bayesopt.trials import ASKED, asked_by, recommended
from jaxmerge.errors import InputError
from jaxmerge.simplex.bounds import Bounds, weights_from_unit

_NAMES = ("w_0", "w_1")


@pytest.fixture(autouse=True)
def _quiet():
  optuna.logging.set_verbosity(optuna.logging.WARNING)


def _ask(study, names=_NAMES):
  trial = study.ask()
  return trial, [trial.suggest_float(name, 0, 1) for name in names]


def _study(direction="minimize", names=_NAMES, **kwargs):
  sampler = GPHedgeSampler(**{"seed": 0, "simplex": names, **kwargs})
  return optuna.create_study(direction=direction, sampler=sampler)


def _run(study, score, num_trials, names=_NAMES):
  for _ in range(num_trials):
    trial, weights = _ask(study, names)
    study.tell(trial, score(weights))
  return study


def _bowl(weights):
  return (weights[-1] - 0.63) ** 2


def _wave(weights):
  return math.sin(9 * weights[-1])


@pytest.mark.parametrize("sign", [1, -1])
def test_finds_the_optimum_of_a_bowl(sign):
  study = _run(
    _study("minimize" if sign > 0 else "maximize"),
    lambda w: sign * _bowl(w),
    10,
  )
  assert abs(study.best_params["w_1"] - 0.63) < 0.01
  for trial in study.trials:
    assert abs(math.fsum(trial.params.values()) - 1) < 1e-12
    assert all(type(value) is float for value in trial.params.values())


def test_directions_mirror_each_other():
  up = _run(_study("maximize"), lambda w: -_bowl(w), 6)
  down = _run(_study("minimize"), _bowl, 6)
  assert [t.params for t in up.trials] == [t.params for t in down.trials]


def test_starts_with_the_vertices_last_first():
  names = ("a", "b", "c")
  study = _study(names=names, n_startup_trials=5)
  asked = [_ask(study, names)[1] for _ in range(5)]
  assert asked[:3] == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
  for weights in asked[3:]:
    assert min(weights) > 0
    assert abs(math.fsum(weights) - 1) < 1e-12
  assert {asked_by(t) for t in study.trials} == {"start"}


def test_a_replayed_study_asks_the_same_next_question():
  study = _run(_study(), _bowl, 7)
  replayed = _study()
  replayed.add_trials(study.trials)
  assert _ask(replayed)[1] == _ask(study)[1]
  record = replayed.trials[7].system_attrs[ASKED]
  assert record == study.trials[7].system_attrs[ASKED]


def test_a_trial_keeps_its_point_whatever_finishes_meanwhile():
  study = _run(_study(), _bowl, 5)
  left_behind = study.ask()
  first = left_behind.suggest_float("w_0", 0, 1)
  _run(study, _bowl, 2)
  resumed = optuna.trial.Trial(study, left_behind._trial_id)
  weights = [resumed.suggest_float(name, 0, 1) for name in _NAMES]
  assert weights[0] == first
  assert abs(math.fsum(weights) - 1) < 1e-12


def test_the_seed_changes_the_search():
  params = {
    str([t.params for t in _run(_study(seed=seed), _bowl, 7).trials])
    for seed in range(4)
  }
  assert len(params) > 1


def test_gains_add_rewards_and_choose_the_acquisition():
  study = _run(_study(), _bowl, 8)
  records = [t.system_attrs[ASKED] for t in study.trials]
  assert "gains" not in records[1]
  assert set(records[2]["gains"].values()) == {0.0}
  gains = [list(r["gains"].values()) for r in records[2:]]
  assert not np.allclose(gains[1], gains[0])
  # Standardised: a step's reward is of the order of one, not of the score's.
  assert 0.1 < np.abs(np.diff(gains, axis=0)).max() < 10
  for number, record in enumerate(records[2:], start=2):
    names = list(record["gains"])
    rng = np.random.default_rng([0, number])
    drawn = acquisition.preference(
      np.array(list(record["gains"].values())), rng
    )[0]
    if record["asked_by"] != "explore":
      assert record["params"] == record["nominees"][record["asked_by"]]
    fresh = record["asked_by"] == names[drawn]
    assert fresh or record["params"] != record["nominees"][names[drawn]]


@pytest.mark.parametrize("name", ["ei", "pi", "ucb", "thompson"])
def test_a_portfolio_of_one_follows_it(name):
  study = _run(_study(acquisitions=(name,)), _bowl, 5)
  assert {asked_by(t) for t in study.trials[2:]} <= {name, "explore"}
  assert set(study.trials[4].system_attrs[ASKED]["nominees"]) == {name}


def test_no_point_is_asked_twice():
  # Flat at the top: the nominees pile up where they were.
  study = _run(_study(), lambda w: 0.0 if w[-1] > 0.999 else 1.0, 14)
  lambdas = sorted(t.params["w_1"] for t in study.trials)
  assert np.diff(lambdas).min() >= 5e-4


@pytest.mark.parametrize("all_taken", [False, True])
def test_a_taken_nominee_gives_way_to_the_next_and_then_to_exploring(all_taken):
  study = _run(_study(), _wave, 5)
  _ask(study)
  record = study.trials[5].system_attrs[ASKED]
  again = _study()
  again.add_trials(study.trials[:5])
  trial = again.ask()
  nominees = record["nominees"]
  # Somebody else takes the nominees between the ask and the first parameter.
  for params in nominees.values() if all_taken else [record["params"]]:
    again.add_trial(
      create_trial(
        state=TrialState.FAIL,
        params=params,
        distributions=study.trials[5].distributions,
      )
    )
  asked = {name: trial.suggest_float(name, 0, 1) for name in _NAMES}
  name = asked_by(again.trials[5])
  assert asked not in (
    [*nominees.values()] if all_taken else [record["params"]]
  )
  assert (name == "explore") == all_taken
  assert name != record["asked_by"]


def test_failed_pruned_and_infinite_trials_never_reach_the_process():
  clean = _run(_study(), _bowl, 5)
  dirty = _study()
  dirty.add_trials(clean.trials)
  space = clean.trials[0].distributions
  for state, value in [
    (TrialState.FAIL, None),
    (TrialState.PRUNED, 50.0),
    (TrialState.COMPLETE, math.inf),
  ]:
    dirty.add_trial(
      create_trial(
        state=state,
        value=value,
        params={"w_0": 0.9, "w_1": 0.1},
        distributions=space,
      )
    )
  # Only the trial's number may differ: the nominees are those of clean data.
  _ask(clean)
  _ask(dirty)
  assert (
    clean.trials[5].system_attrs[ASKED]["nominees"]
    == dirty.trials[8].system_attrs[ASKED]["nominees"]
  )


def test_known_noise_changes_the_question():
  def next_nominees(stderr):
    study = _study()
    for trial in _run(_study(), _bowl, 5).trials:
      trial.user_attrs = {"stderr": stderr}
      study.add_trial(trial)
    _ask(study)
    return study.trials[5].system_attrs[ASKED]["nominees"]

  assert next_nominees(0.0) != next_nominees(0.2)


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e9])
def test_scores_of_any_scale(scale):
  study = _run(_study(), lambda w: scale * _bowl(w), 7)
  assert all(
    math.isfinite(value) for t in study.trials for value in t.params.values()
  )


def test_nothing_finite_yet_explores():
  study = _run(_study(), lambda w: math.nan, 5)
  assert [asked_by(t) for t in study.trials] == ["start"] * 2 + ["explore"] * 3


def test_a_mixed_search_space():
  def objective(trial):
    rate = trial.suggest_float("rate", 1e-5, 1.0, log=True)
    part = trial.suggest_float("part", 0.0, 1.0, step=0.25)
    count = trial.suggest_int("count", 1, 3)
    kind = trial.suggest_categorical("kind", ["a", "b"])
    assert part in (0.0, 0.25, 0.5, 0.75, 1.0)
    return (math.log10(rate) + 2) ** 2 + part + 0.0 * count + (kind == "b") * 0

  studies = [
    optuna.create_study(sampler=GPHedgeSampler(seed=3)) for _ in range(2)
  ]
  for study in studies:
    study.optimize(objective, n_trials=12)
  first, second = studies
  assert [t.params for t in first.trials] == [t.params for t in second.trials]
  assert [asked_by(t) for t in first.trials[:5]] == ["start"] * 5
  assert {asked_by(t) for t in first.trials[5:]} & {"ei", "pi", "ucb"}
  assert first.best_value < 0.5
  # A Latin hypercube: one start in each fifth of the logarithm.
  fifths = [math.floor(math.log10(t.params["rate"]) + 5) for t in first.trials]
  assert sorted(fifths[:5]) == [0, 1, 2, 3, 4]
  assert len({t.params["count"] for t in first.trials}) > 1


@pytest.mark.parametrize(
  "wrong",
  [
    {"acquisitions": ("ei", "what")},
    {"acquisitions": ()},
    {"acquisitions": ("ei", "ei")},
    {"n_startup_trials": 0},
    {"seed": -1},
    {"simplex": ("w_0", "w_0")},
    {"simplex": ("w_0",)},
    {"simplex": (("a", "b"), ("c",))},
    {"simplex": (("a", "b"), ("b", "c"))},
    {"simplex": _NAMES, "starts": [(0.5, 0.6)]},
    {"simplex": _NAMES, "starts": [(1.0,)]},
    {"simplex": _NAMES, "starts": []},
    {"starts": [(0.0, 1.0)]},
  ],
)
def test_bad_arguments_are_input_errors(wrong):
  with pytest.raises(InputError):
    GPHedgeSampler(**{"seed": 0, **wrong})


def test_several_objectives_are_refused():
  study = optuna.create_study(
    directions=["minimize", "minimize"], sampler=GPHedgeSampler(seed=0)
  )
  with pytest.raises(ValueError, match="multi-objective"):
    study.ask().suggest_float("x", 0, 1)


@pytest.mark.parametrize("count", [2, 3])
def test_finds_an_optimum_of_negative_weights(count):
  names = tuple(f"w_{k}" for k in range(count))
  study = _study(names=names, negative=True)
  bounds = Bounds(negative=True)
  best_K = np.array([-0.4, 1.4] if count == 2 else [-0.45, 0.2, 1.25])
  # Two groups would have two of these; curvatures differ by a factor of ten.
  curvature_K = np.array([1.0, 0.3, 3.0])[:count]

  def loss(unit):
    weights_K = np.array(weights_from_unit(unit, bounds))
    assert weights_K.min() >= -1 - 1e-9
    assert weights_K.max() <= 2 + 1e-9
    return 3 + 0.1 * float(curvature_K @ (weights_K - best_K) ** 2)

  _run(study, loss, 12 if count == 2 else 16, names)
  alone = [
    weights_from_unit(list(t.params.values()), bounds)
    for t in study.trials[:count]
  ]
  assert alone == np.eye(count)[::-1].tolist()
  found_K = weights_from_unit(list(study.best_params.values()), bounds)
  np.testing.assert_allclose(found_K, best_K, atol=0.03)
  asked = np.array([list(t.params.values()) for t in study.trials])
  gaps = np.abs(asked[:, None] - asked).max(axis=-1)
  # 5e-4 of a weight, not of a parameter.
  assert (gaps[~np.eye(len(asked), dtype=bool)] * (count + 1)).min() >= 5e-4


def test_slopes_of_negative_weights_are_told_by_parameter():
  names = ("a", "b", "c")
  bounds = Bounds(negative=True)
  best_K = np.array([-0.5, 0.1, 1.4])
  study = _study(names=names, negative=True, use_gradients=True)
  for _ in range(5):
    trial, unit = _ask(study, names)
    off_K = np.array(weights_from_unit(unit, bounds)) - best_K
    slopes_K = 4 * 2 * off_K  # d loss / d parameter; 4 = d weight / d parameter
    trial.set_user_attr("gradient", dict(zip(names, slopes_K.tolist())))
    study.tell(trial, float(off_K @ off_K))
  assert study.best_value < 1e-3


def test_negative_weights_start_within_their_domain():
  names = ("a", "b", "c")
  study = _study(names=names, negative=True, n_startup_trials=8)
  asked = np.array([_ask(study, names)[1] for _ in range(8)])
  assert asked.max() <= 0.75 + 1e-12
  weights = np.array(
    [weights_from_unit(unit, Bounds(negative=True)) for unit in asked.tolist()]
  )
  assert weights[3:].min() < 0
  with pytest.raises(InputError, match=r"none above 0\.75"):
    _study(names=names, negative=True, starts=[[0.0, 0.0, 1.0]])
  with pytest.raises(InputError, match="are those of a simplex"):
    GPHedgeSampler(negative=True)


def test_given_starts_come_first():
  starts = [(0.0, 1.0), (0.5, 0.5), (0.25, 0.75)]
  study = _run(_study(starts=starts), _bowl, 4)
  assert [tuple(t.params.values()) for t in study.trials[:3]] == starts
  assert [asked_by(t) == "start" for t in study.trials] == [1, 1, 1, 0]


def test_each_group_has_its_own_simplex_and_optimum():
  groups = (("a", "b"), ("c", "d"))
  sampler = GPHedgeSampler(seed=0, simplex=groups)
  study = optuna.create_study(sampler=sampler)
  for _ in range(16):
    trial = study.ask()
    a, b, c, d = (trial.suggest_float(name, 0, 1) for name in "abcd")
    assert a + b == pytest.approx(1)
    assert c + d == pytest.approx(1)
    study.tell(trial, (b - 0.3) ** 2 + (d - 0.8) ** 2)
  assert study.trials[0].params == {"a": 0, "b": 1, "c": 0, "d": 1}
  assert study.best_value < 1e-3


@pytest.mark.parametrize("names", [_NAMES, None])
def test_gradients_find_the_optimum_in_fewer_trials(names):
  def best_after(use_gradients):
    sampler = GPHedgeSampler(
      seed=0,
      simplex=names,
      use_gradients=use_gradients,
      n_startup_trials=2,
      acquisitions=("ei",),
    )
    study = optuna.create_study(sampler=sampler)
    for _ in range(4):
      trial = study.ask()
      params = {name: trial.suggest_float(name, 0, 1) for name in _NAMES}
      gap = params["w_1"] - 0.43
      trial.set_user_attr("gradient", {"w_0": 0.0, "w_1": 2 * gap})
      study.tell(trial, gap**2)
    return study.best_value

  assert best_after(True) < best_after(False)


def test_a_log_parameter_has_the_slope_of_its_logarithm():
  sampler = GPHedgeSampler(
    seed=0, use_gradients=True, n_startup_trials=3, acquisitions=("ei",)
  )
  study = optuna.create_study(sampler=sampler)
  for _ in range(6):
    trial = study.ask()
    rate = trial.suggest_float("rate", 1e-4, 1.0, log=True)
    trial.suggest_float("none", 0, 1)  # the program of the test above
    slope = 2 * math.log(rate / 0.02) / rate
    trial.set_user_attr("gradient", {"rate": slope, "none": 0.0})
    study.tell(trial, math.log(rate / 0.02) ** 2)
  assert study.best_params["rate"] == pytest.approx(0.02, rel=0.02)


def test_what_was_predicted_is_recorded_in_the_trials_own_units():
  study = _run(_study("maximize"), lambda w: 1e3 - 1e3 * _bowl(w), 8)
  for trial in study.trials[6:]:
    predicted = trial.system_attrs[ASKED]["predicted"]
    assert predicted["mean"] == pytest.approx(trial.value, abs=5)
    assert predicted["std"] > 0


def test_a_running_trial_is_not_asked_again():
  study = _run(_study(), _bowl, 6)
  first = [_ask(study)[1] for _ in range(3)]
  lambdas = sorted(weights[1] for weights in first)
  assert np.diff(lambdas).min() > 0.001


def test_a_running_trial_moves_the_nominees():
  """Of itself, before any duplicate is looked for: it is believed."""
  study = _run(_study(acquisitions=("ei", "ucb")), _wave, 5)
  first, second = (_ask(study)[0].number for _ in range(2))
  asked, again = (study.trials[i].system_attrs[ASKED] for i in (first, second))
  for name in ("ei", "ucb"):
    gap = asked["nominees"][name]["w_1"] - again["nominees"][name]["w_1"]
    assert abs(gap) > 0.1, name


def test_exact_scores_recommend_the_best_observation():
  study = _run(_study(), _bowl, 8)
  space = study.sampler.space()
  best = recommended(study.trials, space, study.direction)
  assert best.number == study.best_trial.number


def test_noisy_scores_recommend_by_posterior_mean_and_never_below_the_first():
  study = _study()
  # A parabola with a lucky outlier; trial 0 is the last checkpoint alone.
  for number, lam in enumerate([1.0, 0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 0.9]):
    study.add_trial(
      create_trial(
        value=(lam - 0.5) ** 2 - 0.26 * (lam == 0.9),
        params={"w_0": 1 - lam, "w_1": lam},
        distributions=study.sampler.space().distributions(),
        user_attrs={"stderr": 0.3 if number else 0.0},
      )
    )
  space = study.sampler.space()
  best = recommended(study.trials, space, study.direction)
  assert study.best_params["w_1"] == 0.9
  assert best.params["w_1"] in (0.4, 0.5, 0.6, 0.8)
  worse = recommended(study.trials[:2], space, study.direction)
  assert worse.number in (0, 1)
  assert worse.value <= study.trials[0].value
