"""A loss of known derivatives, and searches of it by Newton's method.

N sequences, G groups, K checkpoints.
"""

import numpy as np

from jaxmerge.bayesopt.study.scheduler import Budget
from jaxmerge.evaluation.derivative_price import DerivativePasses
from jaxmerge.evaluation.domain import Domain
from jaxmerge.evaluation.evaluator import Derivatives
from jaxmerge.evaluation.measurements import MEASURED
from jaxmerge.evaluation.score import Score
from jaxmerge.evaluation.search_method import SEARCH_METHODS
from jaxmerge.evaluation.weight_search import (
  WeightSearch,
  open_weight_study,
  run_weight_study,
)
from jaxmerge.merging.groups import Groups
from jaxmerge.simplex.bounds import Bounds

NEWTON = SEARCH_METHODS["newton"]
SEQUENCES = 16
TOKENS = 10 * SEQUENCES


class Bowl:
  """As much of a MergedLoss as a search uses: a known function of weights.

  Sequence n has 10 tokens of loss 3 + d'Hd / 2 + noise_n'd + bend |d|^4, with d
  the way to the optimum; two are of a document.
  """

  def __init__(self, optimum_GxK, noise=0.01, bend=0.0, told=1.0, scale=1.0):
    self.optimum_GxK = np.array(optimum_GxK, np.float64)
    g, k = self.optimum_GxK.shape
    random = np.random.default_rng(0)
    root = random.normal(size=(g * (k - 1), g * (k - 1)))
    blocks = np.zeros((g, k, g, k))
    blocks[:, :-1, :, :-1] = (root @ root.T + np.eye(len(root))).reshape(
      g, k - 1, g, k - 1
    )
    self.curvature = scale * blocks.reshape(g * k, g * k)
    self.told = told  # the curvature that is measured, as a multiple
    self.bend = bend
    noise_NxGxK = noise * random.normal(size=(SEQUENCES, g, k))
    noise_NxGxK[..., -1] = 0
    self.noise_NxGxK = noise_NxGxK - noise_NxGxK.mean(0)
    self.tokens, self.again = 0, 5
    self.scored, self.measured_at = [], []
    self.last = self._score(np.tile(np.eye(k)[-1], (g, 1)))

  def loss(self, weights_GxK):
    d_R = (np.array(weights_GxK) - self.optimum_GxK).ravel()
    bowl = 3 + d_R @ self.curvature @ d_R / 2 + self.bend * (d_R @ d_R) ** 2
    return bowl + self.noise_NxGxK.reshape(SEQUENCES, -1) @ d_R

  def _score(self, weights_GxK):
    return Score(
      values_N=10 * self.loss(weights_GxK),
      weights_N=np.full(SEQUENCES, 10),
      clusters_N=np.arange(SEQUENCES) // 2,
      unit="nats/token",
      direction="minimize",
      tokens=TOKENS,
    )

  @property
  def derivative_passes(self):
    return DerivativePasses(5, 1, self.again)

  def score(self, weights_GxK, best=None, *, in_parts=False):
    self.tokens += TOKENS
    self.scored.append(np.array(weights_GxK))
    return self._score(weights_GxK)

  def measured(self, weights_GxK, *, curvature, score):
    self.tokens += 7 * TOKENS + (3 * TOKENS if curvature else 0)
    self.measured_at.append((np.array(weights_GxK), curvature))
    d_R = (np.array(weights_GxK) - self.optimum_GxK).ravel()
    slopes_R = self.curvature @ d_R + 4 * self.bend * (d_R @ d_R) * d_R
    gradients = 10 * (slopes_R + self.noise_NxGxK.reshape(SEQUENCES, -1))
    gradients = gradients.reshape(SEQUENCES, *self.optimum_GxK.shape)
    gradients[..., -1] = 0
    matrix = self.told * self.curvature if curvature else None
    return Derivatives(self._score(weights_GxK), gradients, matrix)


def groups_of_count(count):
  names = tuple(f"g{i}" for i in range(count)) if count > 1 else ("",)
  return Groups(names, None, (1 / count,) * count)


def weight_search(shape, bounds=None, num_trials=8, folder=None, **knobs):
  g, k = shape
  domain = Domain(
    range(10, 10 * k + 1, 10), groups_of_count(g), bounds or Bounds()
  )
  return WeightSearch(
    domain, NEWTON, NEWTON.knobs(**knobs), 0, num_trials, folder=folder
  )


def run(path, bowl, search=None, **options):
  search = search or weight_search(bowl.optimum_GxK.shape)
  study = open_weight_study(path, "a", search, identity={})
  options = {"limits": Budget(), "on_trial": lambda trial: None} | options
  try:
    return study, run_weight_study(study, bowl, search, **options)
  except Stopped:
    return study, "stopped"


def ended(study):
  return [t for t in study.get_trials() if t.state.is_finished()]


def facts(study):
  """All that two searches must agree on."""
  return [
    (t.number, t.state.name, t.params, t.values, t.user_attrs.get(MEASURED))
    for t in ended(study)
  ]


INSIDE = [[0.2, 0.5, 0.3]]


class Stopped(Exception):
  pass


def stop_after(number):
  def on_trial(trial):
    if trial.number == number:
      raise Stopped

  return on_trial
