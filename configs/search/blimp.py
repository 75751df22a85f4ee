"""Searches a run's last two checkpoints by six of BLiMP's paradigms.

  git clone https://github.com/alexwarstadt/blimp
  python -m jaxmerge.search --config=configs/search/blimp.py \
      --workdir=runs/quickstart [--dry_run]

The mean accuracy on half of each paradigm's 1,000 pairs is maximised, and no
paradigm may get worse than the better checkpoint by more than 0.05; the other
half is reported on. --dry_run says how long that takes here. Once the
checkpoints are scored the search says whether so many pairs can tell them
apart; where not, --config.metric=gold (bits/byte of the right sentence) is the
smoother objective. The quickstart's model knows Python and little English: its
accuracies are near 0.5.
"""

from ml_collections import config_dict

_PARADIGMS = (
  "anaphor_gender_agreement",
  "causative",
  "determiner_noun_agreement_1",
  "npi_present_1",
  "passive_1",
  "principle_A_case_1",
)


def get_config() -> config_dict.ConfigDict:
  config = config_dict.ConfigDict()
  config.study_name = "blimp"
  config.tasks = tuple(f"pairs:blimp/data/{p}.jsonl" for p in _PARADIGMS)
  config.task_tolerance = (0.05,)
  # lm-eval puts a space before each sentence; "" scores them as they stand.
  config.template = " "
  config.batch_size = 64
  return config
