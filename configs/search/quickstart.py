"""Merges two adjacent checkpoints of the quickstart's run.

  python -m jaxmerge.search --config=configs/search/quickstart.py \
      --workdir=runs/quickstart

Half a minute on 2 CPU cores; the merge is about 0.08 nats/token better than
the last checkpoint. The pair lies before the end of the run, so that the run
itself shows how many more tokens it needs to be as good.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  config = config_dict.ConfigDict()
  # The study's name: it lives in <workdir>/search/<name>/.
  config.name = "pair"
  # Steps to merge, two or more; () takes the last two of the run.
  config.steps = (600, 700)
  # The later checkpoint's weight lambda lies in [alpha, 1].
  config.alpha = 0.0
  config.num_trials = 12
  config.seed = 0
  config.acquisitions = ("ei", "pi", "ucb")
  config.search_sequences = 64
  config.report_sequences = 128
  config.batch_size = 16
  # The report's directory below the workdir.
  config.report = "report"

  config.mesh = config_dict.ConfigDict()
  config.mesh.data = -1
  config.mesh.fsdp = 1
  config.mesh.tensor = 1
  return config
