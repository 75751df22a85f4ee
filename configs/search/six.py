"""Merges six checkpoints of the quickstart's run, on the simplex.

  python -m jaxmerge.search --config=configs/search/six.py \
      --workdir=runs/quickstart

Newton's method, which config.solver = "auto" takes for six checkpoints, needs
three or four of the 20 trials. A minute on 2 CPU cores; the merge is 0.08 to
0.10 nats/token better than the last checkpoint, step 900.
"""

from ml_collections import config_dict

import jaxmerge


def get_config() -> config_dict.ConfigDict:
  config = jaxmerge.load_config("configs/search/quickstart.py")
  config.study_name = "six"
  config.checkpoint_steps = (400, 500, 600, 700, 800, 900)
  config.num_trials = 20
  # The parabola is the baseline to beat with many checkpoints.
  config.baselines = ("grid", "random", "quadratic", "cma_es")
  return config
