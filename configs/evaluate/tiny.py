"""The quickstart's evaluation in miniature, for tests and first looks.

  python -m jaxmerge.evaluate --config=configs/evaluate/tiny.py \
      --inputs=runs/tiny@12,runs/tiny/search/pair/merged/12

A quarter of a minute on 2 CPU cores, most of it compiling.
"""

from ml_collections import config_dict

import jaxmerge


def get_config() -> config_dict.ConfigDict:
  config = jaxmerge.load_config("configs/evaluate/quickstart.py")
  config.sequences = 16
  config.batch_size = 8
  return config
