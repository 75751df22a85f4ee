"""Says in plain words what a search has found, and claims no more than that."""

from jaxmerge.reporting.results import Results, Row
from jaxmerge.reporting.table import all_weights


def headline(results: Results) -> str:
  """The finding in one or two sentences.

  A gain (or a loss) is claimed only beyond two paired standard errors, and the
  tokens saved only with a gain.

  Raises:
    InputError: there is no row "gp_hedge" or "last".
  """
  merged, last = results.row("gp_hedge"), results.row("last")
  (last_step,) = last.steps
  if merged.steps == last.steps:
    return (
      f"The search kept step {last_step} alone: no merge that it tried has a"
      " lower search loss."
    )
  subject = _subject(merged)
  delta = merged.report_delta_vs_last
  amount = f"± {2 * merged.report_delta_stderr:.4f} nats/token"
  if not merged.significant:
    return (
      f"{subject} shows no measurable gain over step {last_step}: the report"
      f" loss differs by {delta:+.4f} {amount}, which is within two paired"
      " standard errors."
    )
  if delta > 0:
    return (
      f"{subject} raises the report loss by {delta:.4f} {amount} (two paired"
      f" standard errors): the merged model is worse than step {last_step}."
    )
  return (
    f"{subject} lowers the report loss by {-delta:.4f} {amount} (two paired"
    f" standard errors) against step {last_step};"
    f" {_tokens_clause(results.tokens_saved)}."
  )


def runner_up(results: Results) -> str:
  """A sentence about a row that beats gp_hedge on the report split, or ""."""
  merged = results.row("gp_hedge")
  best = min(results.rows, key=lambda row: row.report_loss)
  if best.report_loss >= merged.report_loss:
    return ""
  return (
    f"On the report split {_described(best)} has a lower loss than the model"
    f" that the search chose: {best.report_loss:.4f} against"
    f" {merged.report_loss:.4f} nats/token."
  )


def _tokens_clause(tokens_saved: int | None) -> str:
  if tokens_saved is None:
    return "no checkpoint of the run itself reaches that loss"
  return f"the run needs {tokens_saved:,} more tokens to get there"


def _described(row: Row) -> str:
  if row.name == "last" or row.name.startswith("step_"):
    return f"step {row.steps[0]} alone"
  return f"the row {row.name}"


def _subject(row: Row) -> str:
  """For example "Merging steps 600 and 750 (0.350 / 0.650)"."""
  *others, final = [f"{step}" for step in row.steps]
  if not others:
    return f"Taking step {final} alone"
  if len(others) > 2:
    return f"Merging {len(row.steps)} steps ({all_weights(row.weights)})"
  shares = " / ".join(f"{row.weights[step]:.3f}" for step in row.steps)
  return f"Merging steps {', '.join(others)} and {final} ({shares})"
