"""Docstrings begin with a verb or a noun, not with a clause."""

import ast

from tests.helpers import ROOT

_CLAUSES = {"What", "Of", "Where", "Whether", "Why", "How"}


def test_a_docstring_says_what_a_thing_is_or_does():
  found = []
  for file in (ROOT / "jaxmerge").rglob("*.py"):
    for node in ast.walk(ast.parse(file.read_text())):
      if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
        first = (ast.get_docstring(node) or "It").split()[0]
        if first in _CLAUSES:
          found.append((file.name, getattr(node, "name", "")))
  assert not found
