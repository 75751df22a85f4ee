"""Merges two adjacent checkpoints of the quickstart's run.

  python -m jaxmerge.search --config=configs/search/quickstart.py \
      --workdir=runs/quickstart

Half a minute on 2 CPU cores; the merge is about 0.09 nats/token better than
the last checkpoint. The pair lies before the end of the run, so that the run
itself shows how many more tokens it needs to be as good.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  config = config_dict.ConfigDict()
  config.study_name = "pair"
  config.checkpoint_steps = (600, 700)
  config.num_trials = 12
  config.baselines = ("grid",)
  return config
