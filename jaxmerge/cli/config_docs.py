"""Writes docs/config.md: every key of every verb's config.

python -m jaxmerge.cli.config_docs > docs/config.md
"""

import dataclasses
import typing

from jaxmerge.cli.config_files import CONFIGS, config_class
from jaxmerge.config_fields import Row, rows
from jaxmerge.old_names import NEW_NAMES

_HEAD = """# Config keys

A config file is Python: a function `get_config` that returns an ml_collections
`ConfigDict` with the keys that it chooses. A key that it does not name takes
the default below; `--config.key=value` overrides one. `jaxmerge.load_config`
gives a filled config to change. A run goes on under other values only of keys
that say so. This page is written by `python -m jaxmerge.cli.config_docs`.
"""


def page() -> str:
  """The page, in Markdown."""
  parts = [_HEAD]
  for verb in CONFIGS:
    parts.append(f"## {verb}\n")
    parts.append("| key | type | default | allowed | |")
    parts.append("|---|---|---|---|---|")
    parts += [_line(row, verb) for row in rows(config_class(verb))]
    parts.append("")
  parts.append("## Names of before\n")
  parts.append("A config that says an old name is refused with the new one.\n")
  parts.append("| was | is |\n|---|---|")
  parts += [f"| `{old}` | `{new.name}` |" for old, new in NEW_NAMES.items()]
  return "\n".join(parts)


def _line(row: Row, verb: str) -> str:
  inner = typing.get_args(row.kind)  # of a tuple
  kind = f"tuple of {inner[0].__name__}" if inner else row.kind.__name__
  is_required = row.default is dataclasses.MISSING
  default = "required" if is_required else f"`{row.default!r}`"
  may_change = verb == "pretrain" and not row.key.changes_numbers
  said = row.key.help + (" (may change later)" if may_change else "")
  said = f"`{row.record}`: {said}" if row.record else said
  cells = (f"`{row.name}`", kind, default, row.key.allowed, said)
  return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
  print(page())
