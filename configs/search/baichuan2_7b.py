"""Baichuan2-7B at 1980 and 2200 billion tokens (arXiv 2403.19390, section 4).

  hf download baichuan-inc/Baichuan2-7B-Intermediate-Checkpoints \
      --include "train_01980B/*" "train_02200B/*" \
      --local-dir checkpoints/baichuan2
  python -m jaxmerge.search --config=configs/search/baichuan2_7b.py \
      --workdir=runs/baichuan2_7b \
      --inputs=checkpoints/baichuan2/train_01980B,checkpoints/baichuan2/train_02200B

The directories must hold config.json and tokenizer.model beside the weights
(`.bin` files are read without being run); look at the names of the folders
that you have downloaded. See configs/search/pythia.py for memory and for text
of your own. Not run on the real files yet.
"""

from ml_collections import config_dict

import jaxmerge


def get_config() -> config_dict.ConfigDict:
  return jaxmerge.load_config("configs/search/pythia.py")
