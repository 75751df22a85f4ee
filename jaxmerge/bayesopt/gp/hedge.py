"""GP-Hedge: which acquisition of a portfolio to follow.

J acquisitions. Hoffman, Brochu and de Freitas, "Portfolio Allocation for
Bayesian Optimization", UAI 2011, algorithm 2.
"""

import numpy as np

ETA = 1.0


def updated_gains(gains_J: np.ndarray, rewards_J: np.ndarray) -> np.ndarray:
  """g_j <- g_j + mu(x_j), whether or not nominee x_j was evaluated.

  The reward is the posterior mean after the refit at the previous nominee of
  each acquisition, in standardised units and maximisation sign: in the raw
  units of an accuracy the gains would never part (a fair coin).
  """
  return np.asarray(gains_J, np.float64) + np.asarray(rewards_J, np.float64)


def probabilities(gains_J: np.ndarray, eta: float = ETA) -> np.ndarray:
  """p = softmax(eta (g - max g))."""
  scaled_J = eta * (np.asarray(gains_J, np.float64) - np.max(gains_J))
  odds_J = np.exp(scaled_J)
  return odds_J / odds_J.sum()


def preference(
  gains_J: np.ndarray, rng: np.random.Generator, eta: float = ETA
) -> list[int]:
  """The drawn acquisition first, then the others, likeliest first."""
  probabilities_J = probabilities(gains_J, eta)
  chosen = int(rng.choice(len(probabilities_J), p=probabilities_J))
  by_odds = np.argsort(-probabilities_J, kind="stable")
  return [chosen] + [int(j) for j in by_odds if j != chosen]
