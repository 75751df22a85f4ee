"""Decoders beyond a Llama are options that a config may name."""

import pytest

from jaxmerge import pretrain
from jaxmerge.errors import InputError
from tests.helpers import config_of, quiet


def config_with(**options):
  config = config_of("pretrain")
  with config.unlocked():
    config.model = {**config.model.to_dict(), **options}
  return config


def test_options_reach_the_model(capsys, tmp_path):
  def parameters(config):
    pretrain.train(config, tmp_path / "run", dry_run=True, progress=quiet)
    return capsys.readouterr().out.split("parameters: ")[1].split()[0]

  llama = parameters(config_with())
  gated = 2 * 32 * 64  # two layers' gates
  others = parameters(config_with(gated_mlp=False, activation="gelu"))
  count = [int(text.replace(",", "")) for text in (llama, others)]
  assert count[0] - count[1] == gated


def test_wrong_options_are_listed_at_once():
  config = config_with(norm=3, rope_scaling=None, widht=5)
  with pytest.raises(InputError) as error:
    pretrain.check_config(config)
  assert sorted(error.value.problems) == [
    "config.model.norm must be str, got 3",
    "unknown config key config.model.rope_scaling",
    "unknown config key config.model.widht",
  ]
  with pytest.raises(InputError, match="norm must be one of"):
    pretrain.check_config(config_with(norm="batch"))
