"""An average with the weights that are typed.

  python -m jaxmerge.merge --config=configs/merge/weights.py \
      --inputs=runs/quickstart@600,runs/quickstart@700 --weights=0.3,0.7 \
      --output=runs/average

Seconds for a small model; the time of reading the inputs for a large one.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  config = config_dict.ConfigDict()
  config.method = "weights"
  return config
