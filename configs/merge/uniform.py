"""The plain average of all inputs; the other methods by --config.method=.

  python -m jaxmerge.merge --config=configs/merge/uniform.py \
      --inputs=runs/quickstart@600,runs/quickstart@700 --output=runs/average

Seconds for a small model; the time of reading the inputs for a large one.
`python -m jaxmerge.merge --help` lists the methods and what each uses.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  config = config_dict.ConfigDict()
  config.method = "uniform"
  return config
