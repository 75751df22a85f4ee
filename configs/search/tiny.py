"""The quickstart's search in miniature, for tests and first looks.

  python -m jaxmerge.search --config=configs/search/tiny.py --workdir=runs/tiny

Half a minute on 2 CPU cores, most of it compiling.
"""

from ml_collections import config_dict

import jaxmerge


def get_config() -> config_dict.ConfigDict:
  config = jaxmerge.load_config("configs/search/quickstart.py")
  config.checkpoint_steps = (8, 12)
  config.num_trials = 5
  config.search_sequences = 16
  config.report_sequences = 16
  config.batch_size = 8
  return config
