"""jaxmerge: pretrain in JAX, merge the trail of checkpoints, prove it.

The public names are loaded when first used: importing jaxmerge starts no JAX
backend.
"""

import importlib
from typing import Any

_PUBLIC = {
  "load_model": "jaxmerge.checkpoints.models",
  "save_model": "jaxmerge.checkpoints.models",
  "weighted_average": "jaxmerge.merging.average",
  "GPHedgeSampler": "jaxmerge.bayesopt.sampler",
  "InputError": "jaxmerge.errors",
  "load_config": "jaxmerge.cli.config_files",
}

__all__ = list(_PUBLIC)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
  if name not in _PUBLIC:
    raise AttributeError(f"module 'jaxmerge' has no attribute {name!r}")
  return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
  return sorted([*globals(), *__all__])
