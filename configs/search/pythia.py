"""Two neighbouring checkpoints of Pythia, as in the paper (arXiv 2403.19390).

  hf download EleutherAI/pythia-1b --revision step141000 \
      --local-dir checkpoints/pythia-1b/step141000
  hf download EleutherAI/pythia-1b --revision step142000 \
      --local-dir checkpoints/pythia-1b/step142000
  python -m jaxmerge.search --config=configs/search/pythia.py \
      --workdir=runs/pythia-1b \
      --inputs=checkpoints/pythia-1b/step141000,checkpoints/pythia-1b/step142000

Other sizes by other names. Takes the memory of four models (`--dry_run` tells
how much, and where it goes if that is more than the devices have). The text is
Python's own source, which is at hand everywhere; for the language that matters
to you:

      --config.data.source=text_files --config.data.globs="('text/*.txt',)"

Not run on the real files yet: minutes and gain are not known.
"""

from ml_collections import config_dict

import jaxmerge


def get_config() -> config_dict.ConfigDict:
  config = jaxmerge.load_config("configs/search/quickstart.py")
  config.checkpoint_steps = ()
  config.data.source = "python_source"
  config.data.max_documents = 2000
  config.seq_len = 1024
  config.batch_size = 8
  # As the paper: the later checkpoint weighs at least a half.
  config.alpha = 0.5
  return config
