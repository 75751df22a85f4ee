"""Merges two adjacent checkpoints of the quickstart's run.

  python -m jaxmerge.search --config=configs/search/quickstart.py \
      --workdir=runs/quickstart

Half a minute on 2 CPU cores; the merge is about 0.09 nats/token better than
the last checkpoint. The pair lies before the end of the run, so that the run
itself shows how many more tokens it needs to be as good.
"""

from ml_collections import config_dict

from jaxmerge.runner import load_config


def get_config() -> config_dict.ConfigDict:
  config = config_dict.ConfigDict()
  # The study's name: it lives in <workdir>/search/<name>/.
  config.name = "pair"
  # Steps to merge, two or more; () takes the last two of the run.
  config.steps = (600, 700)
  # The later checkpoint's weight lambda lies in [alpha, 1].
  config.alpha = 0.0
  # Above 0: lambda goes to 1 + beta, past the last checkpoint.
  config.beta = 0.0
  # Above 0: weights of their own for the embeddings, so many bands of layers
  # and the head.
  config.bands = 0
  # The budget; 0: no further limit on seconds or tokens evaluated.
  config.num_trials = 12
  config.max_seconds = 0.0
  config.max_tokens = 0
  config.seed = 0
  config.acquisitions = ("ei", "pi", "ucb")
  # First trials, by name (docs/search.md); () takes the default order.
  config.starts = ()
  # Tell the process the loss's derivative by the weights: fewer trials, each
  # of three (a pair) or six forward passes.
  config.use_gradients = False
  # Score no further what the best trial beats beyond noise on a part.
  config.early_stop = False
  # Plain searches of as many evaluations in the report.
  config.baselines = ("grid",)
  # "": a journal beside the merge; or a database URL, for several searchers.
  config.storage = ""
  config.search_sequences = 64
  config.report_sequences = 128
  config.batch_size = 16
  # Targets in a sequence; 0 is as in training.
  config.seq_len = 0
  # GiB for parameters; 0: most of what there is. Checkpoints that do not fit on
  # the devices stay in host memory, else in storage.
  config.memory_budget_gb = 0.0
  # The report's directory below the workdir.
  config.report = "report"

  # "" searches on the corpus that the last checkpoint was trained on.
  # The keys are those of configs/evaluate/quickstart.py.
  config.data = load_config("configs/evaluate/quickstart.py").data

  config.mesh = config_dict.ConfigDict()
  config.mesh.data = -1
  config.mesh.fsdp = 1
  config.mesh.tensor = 1
  return config
