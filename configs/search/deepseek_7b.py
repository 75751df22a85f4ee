"""DeepSeek-LLM-7B at 1800 and 2000 billion tokens (arXiv 2403.19390).

DeepSeek gives its intermediate checkpoints out on request (see the README of
deepseek-ai/DeepSeek-LLM). With Hugging Face directories of them:

  python -m jaxmerge.search --config=configs/search/deepseek_7b.py \
      --workdir=runs/deepseek_7b \
      --inputs=checkpoints/deepseek/1800B,checkpoints/deepseek/2000B

See configs/search/pythia.py for memory and for text of your own. Not run on
the real files yet.
"""

from ml_collections import config_dict

import jaxmerge


def get_config() -> config_dict.ConfigDict:
  return jaxmerge.load_config("configs/search/pythia.py")
