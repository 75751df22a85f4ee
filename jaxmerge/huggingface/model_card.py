"""The README.md of an exported model: what it is and what it was made of."""

import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

from jaxmerge.formats.records.metadata import Metadata
from jaxmerge.huggingface.families.family import FAMILIES

_IN_JAX = """    import jaxmerge
    model = jaxmerge.load_model("DIR")   # this directory
    logits = model(tokens)               # int32[B, L] -> float32[B, L, V]

or

"""
_IN_TORCH = """    from transformers import {kind}
    model = {kind}.from_pretrained("DIR"{remote})
"""


def model_card(
  config: Mapping[str, Any], metadata: Metadata | None, *, is_known: bool
) -> str:
  """A model card with front matter.

  Args:
    config: config.json.
    metadata: of the checkpoint that is exported; None without one.
    is_known: jaxmerge can run the model.
  """
  named = config.get("architectures") or []
  causal = is_known or any(str(n).endswith("ForCausalLM") for n in named)
  merged = metadata is not None and metadata.kind == "merged"
  tags = ["jaxmerge", *(["merge"] if merged else [])]
  front = ["library_name: transformers"]
  front += ["pipeline_tag: text-generation"] if causal else []
  front += ["tags:", *(f"- {tag}" for tag in tags)]
  model_type = _inline(config.get("model_type", ""))
  lines = ["---", *front, "---", "", f"# A {model_type} model", ""]
  version = importlib.metadata.version("jaxmerge")
  lines += [f"Written by jaxmerge {version}.", ""]
  if metadata is not None:
    lines += _origin(metadata)
    lines += _sources(metadata.provenance) if metadata.provenance else []
  lines += ["## How to load it", ""]
  has_code = "auto_map" in config or any(
    family.has_code and family.name == model_type
    for family in FAMILIES.values()
  )
  in_torch = _IN_TORCH.format(
    kind="AutoModelForCausalLM" if causal else "AutoModel",
    remote=", trust_remote_code=True" if has_code else "",
  )
  return "\n".join(lines) + "\n" + (_IN_JAX if is_known else "") + in_torch


def _origin(metadata: Metadata) -> list[str]:
  rows = {
    "kind": metadata.kind,
    "step": metadata.step,
    "training tokens": metadata.tokens,
    "run": metadata.run_id or "not known",
    "started from": metadata.parent or "random parameters",
  }
  if metadata.kind == "imported":
    rows = {"kind": "imported from a Hugging Face directory"}
  rows["jaxmerge that wrote the checkpoint"] = metadata.versions["jaxmerge"]
  return [f"- {name}: {_inline(value)}" for name, value in rows.items()] + [""]


def _sources(provenance: Mapping[str, Any]) -> list[str]:
  lines = ["## Sources", ""]
  if "method" in provenance:
    lines += [f"Merged by {_inline(provenance['method'])}.", ""]
  sources = provenance.get("sources", [])
  if sources:
    lines += ["| source | run | step | weight | parameters |", "|-|-|-|-|-|"]
  for source in sources:
    cells = (
      source.get(k, "") for k in ("name", "run_id", "step", "weight", "params")
    )
    lines.append("| " + " | ".join(_inline(cell) for cell in cells) + " |")
  lines += [""] if sources else []
  rest = {k: v for k, v in provenance.items() if k not in ("method", "sources")}
  if rest:
    text = json.dumps(rest, indent=2)
    lines += ["    " + line for line in text.splitlines()] + [""]
  return lines


def _inline(value: Any) -> str:
  """One line of text that Markdown and its tables take as it is."""
  text = " ".join(str(value).split())
  return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
