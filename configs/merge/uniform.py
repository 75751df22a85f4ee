"""The plain average of all inputs.

  python -m jaxmerge.merge --config=configs/merge/uniform.py \
      --inputs=runs/quickstart@600,runs/quickstart@700 --output=runs/average

Seconds for a small model; the time of reading the inputs for a large one.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  config = config_dict.ConfigDict()
  # "uniform", or "weights" with --weights=0.3,0.7.
  config.method = "uniform"

  config.mesh = config_dict.ConfigDict()
  config.mesh.data = -1
  config.mesh.fsdp = 1
  config.mesh.tensor = 1
  return config
