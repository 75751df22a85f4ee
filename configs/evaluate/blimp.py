"""Scores a whole run on BLiMP's minimal pairs and on its held-out text.

  git clone https://github.com/alexwarstadt/blimp
  python -m jaxmerge.evaluate --config=configs/evaluate/blimp.py \
      --inputs=runs/quickstart --output=blimp_scores [--dry_run]

Each of the 67 paradigms has a table of 1,000 pairs, about 40,000 tokens; before
it scores, --dry_run says how long that takes here. The quickstart's model knows
Python and little English, so that its accuracies are near 0.5. Other files:
change the glob.
"""

import glob

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  config = config_dict.ConfigDict()
  paradigms = sorted(glob.glob("blimp/data/*.jsonl"))
  config.tasks = ("heldout", *(f"pairs:{path}" for path in paradigms))
  config.batch_size = 64
  return config
