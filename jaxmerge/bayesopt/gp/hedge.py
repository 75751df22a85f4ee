"""GP-Hedge: which acquisition of a portfolio to follow.

J acquisitions. Hoffman, Brochu and de Freitas, "Portfolio Allocation for
Bayesian Optimization", UAI 2011, algorithm 2: after each refit the gain of
acquisition j grows by the posterior mean at its previous nominee, evaluated or
not. Gains are in standardised units and maximisation sign: in the raw units of
an accuracy they would never part (a fair coin).
"""

import numpy as np


def probabilities(gains_J: np.ndarray) -> np.ndarray:
  """p = softmax(g), with the paper's eta = 1."""
  odds_J = np.exp(gains_J - np.max(gains_J))
  return odds_J / odds_J.sum()


def preference(gains_J: np.ndarray, rng: np.random.Generator) -> list[int]:
  """The drawn acquisition first, then the others, likeliest first."""
  probabilities_J = probabilities(gains_J)
  chosen = int(rng.choice(len(probabilities_J), p=probabilities_J))
  by_odds = np.argsort(-probabilities_J, kind="stable")
  return [chosen] + [int(j) for j in by_odds if j != chosen]
