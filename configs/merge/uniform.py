"""The plain average of all inputs; the other methods by --config.method=.

  python -m jaxmerge.merge --config=configs/merge/uniform.py \
      --inputs=runs/quickstart@600,runs/quickstart@700 --output=runs/average

Seconds for a small model; the time of reading the inputs for a large one.
`python -m jaxmerge.merge --help` lists the methods and what each uses.
"""

from ml_collections import config_dict

from jaxmerge.runner import load_config


def get_config() -> config_dict.ConfigDict:
  config = config_dict.ConfigDict()
  config.method = "uniform"
  # What a method does not use must stay as it is here.
  config.newest = 3
  config.decay = 0.2
  config.beyond = 0.5
  config.penalty = 1.0
  config.scale = 1.0
  config.density = 0.2
  config.drop = 0.9
  config.seed = 0
  config.sampled = True
  config.off_diagonal = 0.9
  # Above 0: --weights for the embeddings, each of so many bands of layers and
  # the head, one group after the other.
  config.bands = 0
  # The checkpoint that all inputs came from, for task vectors.
  config.base = ""
  # For methods that need losses, gradients or inputs of layers.
  config.search_sequences = 64
  config.batch_size = 16
  # Targets in a sequence; 0 is as in training.
  config.seq_len = 0
  # "" measures on the corpus that the last input was trained on.
  # The keys are those of configs/evaluate/quickstart.py.
  config.data = load_config("configs/evaluate/quickstart.py").data

  config.mesh = config_dict.ConfigDict()
  config.mesh.data = -1
  config.mesh.fsdp = 1
  config.mesh.tensor = 1
  return config
