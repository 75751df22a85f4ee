"""The text of --help, in lines of 100 columns at most."""

import dataclasses
import textwrap
from collections.abc import Iterable, Mapping

from jaxmerge.cli.config_files import config_class
from jaxmerge.config_fields import rows

# A config flag: the verb whose config it is, and its default file.
Config = tuple[str, str | None]
# A flag of text: its default, and a line of help.
Text = tuple[str | None, str]

_WIDTH = 100
_LEFT = 32  # of names, of which few are longer


def help_text(
  doc: str,
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
  parts = [doc.strip(), "", "Flags:", columns(flags)]
  for name, (verb, _) in configs.items():
    parts += ["", f"Keys of --{name}, with their defaults:"]
    parts.append(columns(_keys(config_class(verb))))
  return "\n".join(parts)


def columns(entries: Iterable[tuple[str, str]]) -> str:
  """Names on the left, what is said of each on the right."""
  entries, lines = list(entries), []
  left = min(_LEFT, max(len(name) for name, _ in entries))
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
  return "\n".join(lines)


def _keys(cls: type) -> Iterable[tuple[str, str]]:
  """Each key with its default; one that several records have only once."""
  records: dict[tuple[str, str], list[str]] = {}
  for row in rows(cls):
    is_required = row.default is dataclasses.MISSING
    default = "required" if is_required else repr(row.default)
    text = "; ".join(filter(None, [row.key.help, row.key.allowed]))
    found = records.setdefault((f"{row.name} = {default}", text), [])
    found += [row.record] if row.record else []
  for (name, text), users in records.items():
    yield name, f"{text} ({', '.join(users)})" if users else text
