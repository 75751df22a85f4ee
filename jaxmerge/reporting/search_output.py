"""Saves the best merge of a finished search and its report."""

import time
from collections.abc import Sequence

from etils import epath
from optuna.study import Study

from jaxmerge.checkpoints.merged import save_merged
from jaxmerge.evaluation.search_plan import Prepared
from jaxmerge.evaluation.search_study import Losses
from jaxmerge.evaluation.weight_search import Choice
from jaxmerge.files import make_directory
from jaxmerge.formats.records.provenance import Provenance
from jaxmerge.locks import exclusive
from jaxmerge.progress import Progress
from jaxmerge.reporting.search_report import (
  FinishedSearch,
  write_search_report,
)

# When a searcher wrote which merge and report, in the study's attributes.
_WRITTEN = "written"


def write(
  study: Study,
  ready: Prepared,
  losses: Losses,
  best: Choice,
  began: float,
  commands: Sequence[str],
  progress: Progress,
) -> epath.Path:
  """Saves the best merge and the report, unless another searcher has."""
  path, config, domain = ready.output, ready.config, ready.search.domain
  found = ready.search.findings(study)
  weights_GxK = domain.weights(best.params)
  folder = make_directory(path.parent.parent)
  result = {
    "trials": len(found.trials),
    "chosen": best.number,
    "report": config.report_dir,
    "baselines": list(config.baselines),
  }
  with exclusive(folder / "writer", f"the merge in {folder}", wait=True):
    at, written = study.user_attrs.get(_WRITTEN, (0.0, None))
    is_here = path.exists() and ready.report.exists()
    if is_here and at > began and written == result:
      progress.note("search", f"another searcher has written {path}")
      return path
    groups = dict(zip(domain.groups.names_G, weights_GxK))
    save_merged(
      path,
      losses.merged.merge(weights_GxK),
      ready.checkpoints,
      Provenance(
        ready.search.method.name,
        domain.mean_weights(best.params),
        groups=groups if config.layer_groups else {},
      ),
      overwrite=True,
    )
    finished = FinishedSearch(ready, losses, found, best, commands)
    write_search_report(finished, progress)
    study.set_user_attr(_WRITTEN, (time.time(), result))
  return path
