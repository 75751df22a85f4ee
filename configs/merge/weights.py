"""An average with the weights that are typed.

  python -m jaxmerge.merge --config=configs/merge/weights.py \
      --inputs=runs/quickstart@600,runs/quickstart@700 --weights=0.3,0.7 \
      --output=runs/average

Seconds for a small model; the time of reading the inputs for a large one.
"""

from ml_collections import config_dict

from jaxmerge.runner import load_config


def get_config() -> config_dict.ConfigDict:
  config = load_config("configs/merge/uniform.py")
  config.method = "weights"
  return config
