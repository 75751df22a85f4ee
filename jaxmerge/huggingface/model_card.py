"""The README.md of an exported model: what it is and what it was made of."""

import contextlib
import importlib.metadata
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from jaxmerge.data.tokenizers.sentence_piece import TOKENIZER_MODEL
from jaxmerge.formats.records.metadata import Metadata
from jaxmerge.formats.records.provenance import ITEM
from jaxmerge.huggingface.carried import CONFIG
from jaxmerge.huggingface.families.family import FAMILIES, architectures
from jaxmerge.huggingface.vocabularies import is_tokenizer_file
from jaxmerge.reading import read_json

_IN_JAX = """    import jaxmerge
    model = jaxmerge.load_model("DIR")   # this directory
    logits = model(tokens)               # int32[B, L] -> float32[B, L, V]
"""
_IN_TORCH = """    from transformers import {kind}
    model = {kind}.from_pretrained("DIR"{remote})
"""
_TOKENIZER = """    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained("DIR"{remote})
    ids = tokenizer("A text.")["input_ids"]
"""
_SENTENCEPIECE = """    import sentencepiece
    tokenizer = sentencepiece.SentencePieceProcessor(
      model_file="DIR/tokenizer.model"
    )
    ids = tokenizer.encode("A text.")
"""
# Names that the hub takes: of one part, or of an owner's model.
_PART = "[A-Za-z0-9][A-Za-z0-9._-]*"
_MODEL = re.compile(rf"(?:{_PART}/)?{_PART}")
_OWNED = re.compile(rf"{_PART}/{_PART}")
_IN_CACHE = re.compile(rf".*/models--({_PART})/snapshots/[^/]+/?")


def hub_name(path: str, config: str) -> str:
  """The name of a model on the hub, "" where neither says one.

  Args:
    path: of its directory, which may be one of huggingface_hub's cache.
    config: the text of its config.json, "" without.
  """
  if found := _IN_CACHE.fullmatch(path):
    return found[1].replace("--", "/", 1)
  said: Any = None
  with contextlib.suppress(ValueError):
    said = read_json(config)
  name = said.get("_name_or_path") if isinstance(said, dict) else None
  is_one = isinstance(name, str) and _OWNED.fullmatch(name)
  return str(name) if is_one else ""


def model_card(
  config: Mapping[str, Any],
  metadata: Metadata | None,
  names: Collection[str] = (),
  *,
  is_known: bool,
) -> str:
  """A model card with front matter.

  Args:
    config: config.json.
    metadata: of the checkpoint that is exported; None without one.
    names: of the files that lie beside the tensors.
    is_known: jaxmerge can run the model.
  """
  named = architectures(config)
  causal = is_known or any(n.endswith("ForCausalLM") for n in named)
  merged = metadata is not None and metadata.kind == "merged"
  tags = ["jaxmerge", *(["merge"] if merged else [])]
  front = ["library_name: transformers"]
  front += ["pipeline_tag: text-generation"] if causal else []
  bases = dict.fromkeys(_bases(metadata)) if metadata else {}
  # JSON's strings are YAML's; without quotes, null and 1.5 would be others.
  front += ["base_model:"] if bases else []
  front += [f"- {json.dumps(base)}" for base in bases]
  front += ["tags:", *(f"- {tag}" for tag in tags)]
  model_type = _inline(config.get("model_type", ""))
  title = f"# A {model_type} model" if model_type else "# A model"
  lines = ["---", *front, "---", "", title, ""]
  version = importlib.metadata.version("jaxmerge")
  lines += [f"Written by jaxmerge {version}.", ""]
  if metadata is not None:
    lines += _origin(metadata)
    if metadata.provenance.keys() - {ITEM}:
      lines += _sources(metadata.provenance)
  kind = "AutoModelForCausalLM" if causal else "AutoModel"
  ways = list(_ways(config, kind, names, is_known=is_known))
  lines += ["## How to load it", "", "\nor\n\n".join(ways)] if ways else []
  return "\n".join(lines)


def _ways(
  config: Mapping[str, Any],
  kind: str,
  names: Collection[str],
  *,
  is_known: bool,
) -> Iterator[str]:
  """Ways to load the model, each with its tokenizer."""
  model_type = config.get("model_type")
  has_code = (
    "auto_map" in config
    or any(name.endswith(".py") for name in names)
    or any(f.has_code and f.name == model_type for f in FAMILIES.values())
  )
  remote = ", trust_remote_code=True" if has_code else ""
  tokenizer = ""
  found = set(filter(is_tokenizer_file, names))
  if found == {TOKENIZER_MODEL}:
    tokenizer = _SENTENCEPIECE
  elif found:
    tokenizer = _TOKENIZER.format(remote=remote)
  if model_type or "auto_map" in config:  # else transformers refuses it
    yield _IN_TORCH.format(kind=kind, remote=remote) + tokenizer
    tokenizer = ""
  if is_known:
    yield _IN_JAX + tokenizer


def _bases(metadata: Metadata) -> Iterator[str]:
  """Names of models that it was made of, where they can be the hub's."""
  known, found = metadata.provenance, []
  if metadata.kind == "imported":
    found.append(hub_name("", metadata.files.get(CONFIG, "")))
  elif metadata.kind != "merged":
    found.append(_short(metadata.parent))
  groups = known.get("groups")
  rows = [*groups.values()] if isinstance(groups, dict) else []
  rows = [row for row in rows if isinstance(row, list)]
  sources = [
    source
    for k, source in enumerate(known.get("sources", []))
    if source.get("weight") != 0 or any(row[k : k + 1] != [0] for row in rows)
  ]
  for source in [_base(known), *sources]:
    hub, name = (str(source.get(key, "")) for key in ("hub", "name"))
    found.append(hub or _short(name))
  return filter(_MODEL.fullmatch, found)


def _base(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
  found = provenance.get("base")
  return found if isinstance(found, dict) else {}


def _short(name: str) -> str:
  """A name as typed, without the folders in which it lay."""
  if found := hub_name(name, ""):
    return found
  parts = [part for part in name.split("/") if part not in ("", ".")]
  if parts[-2:-1] == ["checkpoints"] and parts[-1].isdecimal() and parts[2:]:
    return f"{parts[-3]}@{parts[-1]}"
  return parts[-1] if parts else name


def _label(source: Mapping[str, Any]) -> str:
  """As _short, and the model's own name where that is another."""
  name, hub = _short(str(source.get("name", ""))), source.get("hub", "")
  return f"{name} ({hub})" if hub and hub != name else name


def _origin(metadata: Metadata) -> list[str]:
  imported = metadata.kind == "imported"
  rows: dict[str, Any] = {
    "kind": "imported from a Hugging Face directory"
    if imported
    else metadata.kind
  }
  if metadata.run_id:  # else nothing is known of how it was trained
    rows |= {
      "step": metadata.step,
      "training tokens": metadata.tokens,
      "run": metadata.run_id,
      "started from": _short(metadata.parent) or "random parameters",
    }
  if ITEM in metadata.provenance:
    rows["parameters"] = f"the run's average {metadata.provenance[ITEM]}"
  rows["jaxmerge that wrote the checkpoint"] = metadata.versions["jaxmerge"]
  return [f"- {name}: {_inline(value)}" for name, value in rows.items()] + [""]


def _sources(provenance: Mapping[str, Any]) -> list[str]:
  lines = ["## Sources", ""]
  if "method" in provenance:
    lines += [f"Merged by {_inline(provenance['method'])}.", ""]
  if base := _base(provenance):
    params = base.get("params")
    what = f", parameters {_inline(params)}" if params else ""
    lines += [f"Base: {_inline(_label(base))}{what}.", ""]
  sources = provenance.get("sources", [])
  labels = [_label(source) for source in sources]
  lines += _table(
    {
      "source": labels,
      "run": [s.get("run_id", "") for s in sources],
      # Of what is no run's, it is 0 or one that a search has counted.
      "step": [s.get("step", "") if s.get("run_id") else "" for s in sources],
      "weight": [_digits(s.get("weight", "")) for s in sources],
      "parameters": [s.get("params", "") for s in sources],
    }
  )
  groups = provenance.get("groups", {})
  if isinstance(groups, dict) and groups:
    lines += ["Weights of each group of parameters:", ""]
    lines += _rows("group", labels, groups, _digits)
  if any(weight < 0 for weight in _weights(sources, groups)):
    lines += ["A source of a negative weight is subtracted.", ""]
  lines += _found(provenance.get("search"))
  differences = provenance.get("differences", {})
  if isinstance(differences, dict) and differences:
    lines += ["Settings that the sources do not have in common:", ""]
    lines += _rows("setting", labels, differences)
  told = (
    *("method", "base", "sources", "groups", "search", "differences"),
    ITEM,
  )
  rest = {k: v for k, v in provenance.items() if k not in told}
  if rest:
    text = json.dumps(rest, indent=2)
    lines += ["    " + line for line in text.splitlines()] + [""]
  return lines


def _weights(sources: Sequence[Any], groups: Any) -> Iterator[float]:
  """All weights that a merge's provenance tells."""
  rows = groups.values() if isinstance(groups, dict) else ()
  for value in [s.get("weight") for s in sources], *rows:
    found = value if isinstance(value, list) else [value]
    yield from (w for w in found if isinstance(w, int | float))


def _found(search: Any) -> list[str]:
  """The numbers of a search's merge, as Comparison.measured gives them."""
  told = search if isinstance(search, dict) else {}
  numbers = [told.get(n) for n in ("last", "merged", "delta", "stderr")]
  if not all(isinstance(number, float) for number in numbers):
    return []
  last, merged, delta, stderr = numbers
  objective = told.get("objective")
  items = "items" if objective else "held-out text"
  noun = f"report {told.get('noun')} ({told.get('unit')})"
  return [
    "## What the search measured",
    "",
    *([f"It was to {_inline(objective)}.", ""] if objective else []),
    f"On {items} by which nothing was chosen; the error of the difference "
    "is a paired standard error.",
    "",
    *_table(
      {
        "model": ["last checkpoint", "this merge"],
        noun: [f"{last:.4f}", f"{merged:.4f}"],
        "difference to the last checkpoint": [
          "",
          f"{delta:+.4f} +- {stderr:.4f}",
        ],
      }
    ),
    f"The table of all rows is in `{_inline(told.get('report'))}` of the run's "
    "workdir.",
    "",
  ]


def _rows(
  corner: str,
  labels: Sequence[str],
  rows: Mapping[str, Any],
  shown: Callable[[Any], Any] = str,
) -> list[str]:
  """A table with a row for each key, a column for each source."""
  lines = [f"| {' | '.join(map(_inline, [corner, *labels]))} |"]
  lines += ["|-|" + "-|" * len(labels)]
  for key, row in rows.items():
    values = row if isinstance(row, list) else [row]
    cells = [key, *map(shown, values)]
    lines.append("| " + " | ".join(map(_inline, cells)) + " |")
  return [*lines, ""]


def _table(columns: Mapping[str, Sequence[Any]]) -> list[str]:
  """A table of the columns in which anything is known."""
  known = {n: c for n, c in columns.items() if any(str(v) for v in c)}
  if not known:
    return []
  lines = [f"| {' | '.join(map(_inline, known))} |", "|" + "-|" * len(known)]
  for cells in zip(*known.values(), strict=True):
    lines.append("| " + " | ".join(map(_inline, cells)) + " |")
  return [*lines, ""]


def _digits(value: Any) -> Any:
  """Four digits of a weight; jaxmerge.json has all of them."""
  return f"{value:.4g}" if isinstance(value, float) else value


def _inline(value: Any) -> str:
  """One line of text that Markdown and its tables take as it is."""
  text = " ".join(str(value).split())
  text = re.sub(r"([\\|*])", r"\\\1", text)
  return text.replace("<", "&lt;")
