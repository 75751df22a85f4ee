"""The card of a model: front matter that is YAML, nothing unknown."""

import pytest
import yaml

from jaxmerge.formats.records.metadata import Metadata
from jaxmerge.huggingface.model_card import _inline, hub_name, model_card


@pytest.mark.parametrize(
  ("name", "config", "told"),
  [
    ("/c/models--o--a--b/snapshots/0f3", '{"_name_or_path": "x/y"}', "o/a--b"),
    ("/c/models--gpt2/snapshots/0f3/", "", "gpt2"),
    ("/c/a", '{"_name_or_path": "x/y"}', "x/y"),
    ("/c/a", '{"_name_or_path": "/home/me/x"}', ""),
    ("/c/a", '{"_name_or_path": "./x"}', ""),
    ("/c/a", '{"_name_or_path": "x/y\\n- evil"}', ""),
    ("/c/a", '{"_name_or_path": ["x/y"]}', ""),
    ("/c/a", "[", ""),
  ],
)
def test_names_of_the_hub(name, config, told):
  assert hub_name(name, config) == told


def test_a_card_of_a_merge_of_before():
  """Its provenance has no names of the hub; typed paths are cut."""
  sources = [
    {"name": name, "run_id": "r", "step": 8, "weight": 0.5, "params": "p"}
    for name in ("/home/me/run@8", "runs/a/checkpoints/12", "x: #y", "/m/ok/")
  ]
  known = Metadata("merged", {}, provenance={"sources": sources})
  card = model_card({"model_type": "llama"}, known, is_known=True)
  for name in ("run@8", "a@12", "x: #y", "ok"):
    assert f"| {name} | r | 8 | 0.5 | p |" in card
  assert yaml.safe_load(card.split("---\n")[1])["base_model"] == ["ok"]
  assert "measured" not in card


@pytest.mark.parametrize(
  ("weights", "groups", "says"),
  [
    ((0.5, 0.5), {}, False),
    ((-0.25, 1.25), {}, True),
    ((0.25, 0.75), {"head": [0.75, 0.25], "rest": [-0.5, 1.5]}, True),
  ],
)
def test_a_card_says_that_a_source_is_subtracted(weights, groups, says):
  sources = [
    {"name": f"run@{step}", "run_id": "r", "step": step, "weight": weight}
    for step, weight in zip((4, 8), weights)
  ]
  provenance = {"sources": sources, "groups": groups}
  known = Metadata("merged", {}, provenance=provenance)
  card = model_card({"model_type": "llama"}, known, is_known=True)
  assert ("A source of a negative weight is subtracted." in card) == says


def test_a_card_of_a_run_names_what_it_started_from():
  known = Metadata("converted", {}, run_id="r", parent="/home/me/gpt2")
  card = model_card({"model_type": "llama"}, known, is_known=True)
  assert "- started from: gpt2\n" in card
  assert yaml.safe_load(card.split("---\n")[1])["base_model"] == ["gpt2"]
  known = Metadata("converted", {}, run_id="r", step=0)
  card = model_card({"model_type": "llama"}, known, is_known=True)
  assert "- started from: random parameters\n" in card
  assert "- step: 0\n" in card
  assert "base_model" not in card


def test_a_card_of_a_search_has_its_numbers():
  search = {
    "noun": "loss",
    "unit": "nats/token",
    "last": 2.123456,
    "merged": 2.1,
    "delta": -0.023456,
    "stderr": 0.001234,
    "report": "search/pair/report/report.html",
  }
  known = Metadata("merged", {}, provenance={"search": search})
  card = model_card({"model_type": "llama"}, known, is_known=True)
  assert "| model | report loss (nats/token) |" in card
  assert "| last checkpoint | 2.1235 |" in card
  assert "| this merge | 2.1000 | -0.0235 +- 0.0012 |" in card
  assert "`search/pair/report/report.html`" in card
  assert '"search"' not in card
  groups = {"groups": {"head": [0.123456, 1.0]}, "sources": [{}, {}]}
  known = Metadata("merged", {}, provenance=groups)
  card = model_card({"model_type": "llama"}, known, is_known=True)
  assert "| head | 0.1235 | 1 |" in card


@pytest.mark.parametrize(
  "known",
  [
    {"search": "x"},
    {"search": {"last": 1.0, "merged": "x"}},
    {"base": "x", "groups": {"a": 0.5}, "differences": {"a": 1}},
    {"base": {"name": 3}, "sources": [{"hub": 1, "weight": "x"}, {}]},
  ],
)
def test_a_card_of_a_provenance_of_others_is_written(known):
  metadata = Metadata("merged", {}, provenance=known)
  card = model_card({"model_type": "llama"}, metadata, is_known=True)
  assert "measured" not in card
  assert "## How to load it" in card


def test_a_card_says_how_to_load_the_tokenizer():
  llama = {"model_type": "llama"}
  names = ("config.json", "tokenizer.json", "tokenizer_config.json")
  card = model_card(llama, None, names, is_known=True)
  assert "AutoTokenizer.from_pretrained" in card
  assert "sentencepiece" not in card
  names = ("config.json", "tokenizer.model")
  card = model_card(llama, None, names, is_known=True)
  assert "AutoTokenizer" not in card
  assert "SentencePieceProcessor" in card
  card = model_card(llama, None, ("config.json",), is_known=True)
  assert "tokenizer" not in card
  # A config.json that names no model is none for transformers.
  card = model_card({}, None, (), is_known=False)
  assert "transformers import" not in card
  assert "load it" not in card


def test_a_card_of_odd_names_is_still_a_table():
  assert _inline("a|b\n<script>") == "a\\|b &lt;script>"


def test_a_card_promises_only_what_is_known():
  bert = {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
  card = model_card(bert, None, is_known=False)
  assert "load_model" not in card
  assert "text-generation" not in card
  assert "AutoModel.from_pretrained" in card
  other = {"model_type": "x", "architectures": ["XForCausalLM"]}
  card = model_card({**other, "auto_map": {}}, None, is_known=False)
  assert "AutoModelForCausalLM" in card
  assert "trust_remote_code" in card
  assert "load_model" not in card
