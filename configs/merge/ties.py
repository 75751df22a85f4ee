"""A whole merge in one file: inputs, weights, base and parameters of TIES.

  python -m jaxmerge.merge --config=configs/merge/ties.py --output=runs/ties

`--inputs` and `--weights` are taken instead of what the file says, as is
`--config.density=.3`. Seconds for the quickstart's run; docs/from_mergekit.md
sets recipes of mergekit beside such files.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  config = config_dict.ConfigDict()
  config.method = "ties"
  config.base = "runs/quickstart@500"
  config.inputs = ("runs/quickstart@600", "runs/quickstart@700")
  config.weights = (1.0, 0.5)
  config.density = (0.5, 0.3)
  config.dtype = "bfloat16"
  return config
