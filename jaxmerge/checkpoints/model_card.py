"""The README.md of an exported model: what it is and what it was made of."""

import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

from jaxmerge.checkpoints.metadata import Metadata

_HOW_TO_LOAD = """## How to load it

    import jaxmerge
    model = jaxmerge.load_model("DIR")   # this directory
    logits = model(tokens)               # int32[B, L] -> float32[B, L, V]

or

    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained("DIR"{remote})
"""


def model_card(
  model_type: str, metadata: Metadata | None, *, has_code: bool = False
) -> str:
  """A model card with front matter.

  Args:
    model_type: as config.json calls it.
    metadata: of the checkpoint that is exported; None without one.
    has_code: its code is no part of transformers and lies beside the tensors.
  """
  merged = metadata is not None and metadata.kind == "merged"
  tags = ["jaxmerge", *(["merge"] if merged else [])]
  front = ["library_name: transformers", "pipeline_tag: text-generation"]
  front += ["tags:", *(f"- {tag}" for tag in tags)]
  lines = ["---", *front, "---", "", f"# A {model_type} model", ""]
  version = importlib.metadata.version("jaxmerge")
  lines += [f"Written by jaxmerge {version}.", ""]
  if metadata is not None:
    lines += _origin(metadata)
    lines += _sources(metadata.provenance) if metadata.provenance else []
  has_code = has_code or model_type == "baichuan"
  remote = ", trust_remote_code=True" if has_code else ""
  return "\n".join(lines) + "\n" + _HOW_TO_LOAD.format(remote=remote)


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
