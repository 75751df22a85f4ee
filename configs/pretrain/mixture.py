"""The run in miniature on code and on text of yours, in shares of 7 to 3.

  python -m jaxmerge.pretrain --config=configs/pretrain/mixture.py \
      --workdir=runs/mixture --config.data.mixture.prose.globs=FOLDER

FOLDER has a hundred files of text or more. Half a minute on 2 CPU cores, most
of it compiling. Other shares (--config.data.mixture.code.weight=.5) are another
run.
"""

from ml_collections import config_dict

import jaxmerge


def get_config() -> config_dict.ConfigDict:
  config = jaxmerge.load_config("configs/pretrain/tiny.py")
  config.data.source = ""
  config.data.max_documents = 0
  config.data.mixture = {
    "code": {"source": "python_source", "max_documents": 120, "weight": 0.7},
    "prose": {"source": "text_files", "weight": 0.3},
  }
  return config
