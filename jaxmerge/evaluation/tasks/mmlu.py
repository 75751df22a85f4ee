"""MMLU, as its authors' archive has it (Hendrycks et al. 2021)."""

from jaxmerge.evaluation.tasks.subjects import Layout
from jaxmerge.evaluation.tasks.task import CLOZE, LETTER, TASKS, TaskRecord

_HEADER = (
  "The following are multiple choice questions (with answers) about {subject}."
  "\n\n{shots}"
)

TASKS.register(
  TaskRecord(
    "mmlu",
    "DIR",
    "MMLU's dev/SUBJECT_dev.csv (shots) and test/SUBJECT_test.csv (scored)",
    {
      LETTER: _HEADER + "{question}\n{choices}\nAnswer:",
      CLOZE: _HEADER + "{question}\nAnswer:",
    },
    5,
    Layout("test", "dev", "_{split}", has_header=False).read,
  )
)
