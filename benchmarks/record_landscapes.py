"""Records real merge landscapes, so that searches can be compared offline.

  make quickstart
  python benchmarks/record_landscapes.py runs/quickstart    (4 minutes)

Merges checkpoints of the run at many weights, scores each merge on 128
sequences of the search split, and fits to each sequence's loss a polynomial in
the weights of all checkpoints but the last. benchmarks/landscapes.npz keeps
the coefficients; what the polynomials miss at weights left out of the fit is
printed. benchmarks/landscapes.py evaluates them.

K checkpoints, P weights, S sequences.
"""

import sys

import numpy as np
from landscapes import PATH, SETS, Landscape, design, features

from jaxmerge.checkpoints import inputs
from jaxmerge.checkpoints.store import restore_params
from jaxmerge.cli.runner import TerminalProgress, set_up_jax
from jaxmerge.evaluation.evaluator import Setting
from jaxmerge.evaluation.evaluators.heldout_loss import heldout_loss
from jaxmerge.evaluation.held_out_splits import open_scorer
from jaxmerge.formats.records.metadata import abstract_params
from jaxmerge.merging.average import weighted_average
from jaxmerge.parallel.mesh import make_mesh
from jaxmerge.parallel.rules import shardings

_SEQUENCES = 128
_LEFT_OUT = 40


def main(workdir: str) -> None:
  set_up_jax()
  progress = TerminalProgress()
  mesh = make_mesh(data=-1, fsdp=1, tensor=1)
  recorded = {}
  print("| landscape | steps | weights | rms missed | lowest | last |")
  print("|---|---|---|---|---|---|")
  for name, spec in SETS.items():
    checkpoints = inputs.open_steps(workdir, spec.steps)
    first = checkpoints[0].metadata
    scorer = open_scorer(Setting(first, mesh, 32), print, heldout_loss)
    split = scorer.on("search", _SEQUENCES)
    where = shardings(abstract_params(first), mesh)
    trees = [restore_params(c.path, where) for c in checkpoints]
    weights_PxK = design(spec)
    losses = []
    for number, weights_K in enumerate(weights_PxK, start=1):
      score = split.score(weighted_average(trees, weights_K))
      losses.append(score.values_N)
      progress.stage(name, number, len(weights_PxK))
    losses_PxS = np.stack(losses)
    fit = slice(0, len(weights_PxK) - _LEFT_OUT)
    features_PxF = features(weights_PxK, spec.degree)
    coefficients_FxS, *_ = np.linalg.lstsq(
      features_PxF[fit], losses_PxS[fit], rcond=None
    )
    recorded |= {
      f"{name}/coefficients": coefficients_FxS,
      f"{name}/targets": score.weights_N,
      f"{name}/documents": score.clusters_N,
    }
    tokens = score.weights_N.sum()
    missed_P = (features_PxF @ coefficients_FxS - losses_PxS).sum(1) / tokens
    rms = np.sqrt(np.mean(missed_P[-_LEFT_OUT:] ** 2))
    mean_P = losses_PxS.sum(1) / tokens
    last = Landscape(recorded, name).loss(np.eye(len(spec.steps))[-1])
    print(
      f"| {name} | {', '.join(map(str, spec.steps))} | {len(weights_PxK)} |"
      f" {rms:.6f} | {mean_P.min():.4f} | {last:.4f} |"
    )
  np.savez_compressed(PATH, **recorded)


if __name__ == "__main__":
  main(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart")
