"""What a finished search leaves: its best merge and its report."""

import time
from collections.abc import Sequence

from etils import epath
from optuna.study import Study

from jaxmerge.bayesopt.trials import observations
from jaxmerge.checkpoints.merged import save_merged
from jaxmerge.evaluation.config import SearchConfig
from jaxmerge.evaluation.search_method import Findings
from jaxmerge.evaluation.search_plan import Prepared
from jaxmerge.evaluation.search_study import Losses
from jaxmerge.evaluation.weight_search import Choice
from jaxmerge.files import make_directory
from jaxmerge.formats.records.provenance import Provenance
from jaxmerge.locks import exclusive
from jaxmerge.progress import Progress
from jaxmerge.reporting.rows import Comparison
from jaxmerge.reporting.search_report import (
  FinishedSearch,
  write_search_report,
)

# When a searcher wrote which merge and report, in the study's attributes.
_WRITTEN = "written"


def write(
  config: SearchConfig,
  workdir: epath.Path,
  study: Study,
  ready: Prepared,
  losses: Losses,
  best: Choice,
  began: float,
  commands: Sequence[str],
  progress: Progress,
) -> epath.Path:
  """Saves the best merge and the report, unless another searcher has."""
  path, domain, method = ready.output, ready.search.domain, ready.search.method
  found = ready.search.findings(study)
  weights_GxK = domain.weights(best.params)
  folder = make_directory(workdir / "search" / config.study_name)
  result = {
    "trials": len(found.trials),
    "chosen": best.number,
    "report": config.report_dir,
    "baselines": list(config.baselines),
  }
  with exclusive(folder / "writer", f"the merge in {folder}", wait=True):
    at, written = study.user_attrs.get(_WRITTEN, (0.0, None))
    is_here = path.exists() and (workdir / config.report_dir).exists()
    if is_here and at > began and written == result:
      progress.note("search", f"another searcher has written {path}")
      return path
    groups = dict(zip(domain.groups.names_G, weights_GxK))
    save_merged(
      path,
      losses.merged.merge(weights_GxK),
      ready.checkpoints,
      Provenance(
        method.name,
        domain.mean_weights(best.params),
        groups=groups if config.layer_groups else {},
      ),
      overwrite=True,
    )
    finished = _finished(config, workdir, ready, losses, found, best, commands)
    write_search_report(workdir / config.report_dir, finished, progress)
    study.set_user_attr(_WRITTEN, (time.time(), result))
  return path


def _finished(
  config: SearchConfig,
  workdir: epath.Path,
  ready: Prepared,
  losses: Losses,
  found: Findings,
  best: Choice,
  commands: Sequence[str],
) -> FinishedSearch:
  told = observations(*found, ready.search.use_gradients)
  assert told is not None, "no trial has a score"
  return FinishedSearch(
    workdir=workdir,
    comparison=Comparison(
      ready.search.domain,
      losses.trees,
      ready.trail,
      ready.where,
      losses.search_split,
      losses.report_split,
    ),
    method=ready.search.method,
    trials=found.trials,
    observations=told,
    best=best,
    baselines=tuple(config.baselines),
    seed=config.seed,
    merged=ready.output,
    commands=commands,
    corpus=losses.items.source,
  )
