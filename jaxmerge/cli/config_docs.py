"""The keys of every verb's config, for --help and docs/config.md.

python -m jaxmerge.cli.config_docs > docs/config.md
"""

import dataclasses
import textwrap
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxmerge.cli.config_files import CONFIGS, config_class, config_path
from jaxmerge.config_fields import PerInput, Row, rows
from jaxmerge.old_names import NEW_NAMES

# A config flag: the verb whose config it is, and its default file.
Config = tuple[str, str | None]
# A flag of text: its default, and a line of help.
Text = tuple[str | None, str]

_EXAMPLES = {
  "pretrain": "configs/pretrain/quickstart.py",
  "merge": "configs/merge/weights.py",
  "search": "configs/search/quickstart.py",
  "evaluate": "configs/evaluate/quickstart.py",
}
_WIDTH = 100
_LEFT = 32  # of names, of which few are longer
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
    example = config_path(_EXAMPLES[verb])[0].read_text()
    parts.append(f"## {verb}\n\n`{_EXAMPLES[verb]}`:\n")
    parts.append(f"```python\n{example}```\n")
    parts.append("| key | type | default | allowed | |")
    parts.append("|---|---|---|---|---|")
    parts += _lines(rows(config_class(verb)), verb)
    parts.append("")
  parts.append("## Names of before\n")
  parts.append("A config that says an old name is refused with the new one.\n")
  parts.append("| was | is |\n|---|---|")
  parts += [f"| `{old}` | `{new.name}` |" for old, new in NEW_NAMES.items()]
  return "\n".join(parts)


def _lines(found: Iterable[Row], verb: str) -> list[str]:
  """A line a key; one that several records have alike only once."""
  alike: dict[tuple[Any, ...], tuple[Row, list[str]]] = {}
  for row in found:
    known = row.name, repr(row.default), row.key.help, row.key.allowed
    alike.setdefault(known, (row, []))[1].append(row.record)
  return [_line(row, users, verb) for row, users in alike.values()]


def _line(row: Row, users: Sequence[str], verb: str) -> str:
  inner = typing.get_args(row.kind)  # of a tuple
  kind = f"tuple of {inner[0].__name__}" if inner else row.kind.__name__
  kind = "float, or one an input" if row.kind == PerInput else kind
  is_required = row.default is dataclasses.MISSING or row.key.unless
  default = "required" if is_required else f"`{row.default!r}`"
  may_change = verb == "pretrain" and not row.key.changes_numbers
  said = row.key.help + (" (may change later)" if may_change else "")
  told = ", ".join(f"`{user}`" for user in users if user)
  said = f"{told}: {said}" if told else said
  cells = (f"`{row.name}`", kind, default, row.key.allowed, said)
  return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def help_text(
  doc: str,
  records: Mapping[str, Any],
  configs: Mapping[str, Config],
  strings: Mapping[str, Text],
  booleans: Mapping[str, str],
) -> str:
  """Describes a verb and its flags; see command_line.parse."""
  flags = []
  for name, (_, file) in configs.items():
    needed = "required" if file is None else f"default {file}"
    over = f"--{name}.KEY=VALUE overrides one of its keys"
    flags.append((f"--{name}=FILE", f"a config file ({needed}); {over}"))
  for name, (default, text) in strings.items():
    needed = " (required)" if default is None else ""
    flags.append((f"--{name}=VALUE", text + needed))
  flags += [(f"--{name}", text) for name, text in booleans.items()]
  listed = ((name, record.summary) for name, record in records.items())
  parts = [doc.strip(), *_columns(listed), "", "Flags:", *_columns(flags)]
  for name, (verb, _) in configs.items():
    parts += ["", f"Keys of --{name}, with their defaults:"]
    parts += _columns(_keys(config_class(verb)))
  return "\n".join(parts)


def _columns(entries: Iterable[tuple[str, str]]) -> list[str]:
  """Names on the left, what is said of each on the right."""
  entries, lines = list(entries), []
  left = min(_LEFT, max((len(name) for name, _ in entries), default=0))
  for name, text in entries:
    if len(name) > left:
      lines.append(f"  {name}")
      name = ""
    lines.append(
      textwrap.fill(
        text,
        _WIDTH,
        initial_indent=f"  {name:<{left}}  ",
        subsequent_indent=" " * (left + 4),
        break_on_hyphens=False,
      )
    )
  return lines


def _keys(cls: type) -> Iterable[tuple[str, str]]:
  """Each key with its default; one that several records have only once."""
  records: dict[tuple[str, str], list[str]] = {}
  for row in rows(cls):
    is_required = row.default is dataclasses.MISSING or row.key.unless
    default = "required" if is_required else repr(row.default)
    text = "; ".join(filter(None, [row.key.help, row.key.allowed]))
    found = records.setdefault((f"{row.name} = {default}", text), [])
    found += [row.record] if row.record else []
  for (name, text), users in records.items():
    yield name, f"{text} ({', '.join(users)})" if users else text


if __name__ == "__main__":
  print(page())
