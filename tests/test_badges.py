"""The badges of the README, which no service draws, say what is true."""

import re
import tomllib
from xml.etree import ElementTree

import pytest

from tests.helpers import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = [
  name.rpartition(" :: ")[2]
  for name in PROJECT["classifiers"]
  if re.search(r"Python :: \d\.\d+$", name)
]
LOCKS = [
  re.search(r"^jax==([\d.]+)", (ROOT / name).read_text(), re.MULTILINE)[1]
  for name in ("requirements.lock", "requirements.newest.lock")
]
BADGES = {
  "python": " | ".join(PYTHONS),
  "jax": " | ".join(LOCKS),
  "licence": PROJECT["license"],
}


@pytest.mark.parametrize("name", BADGES)
def test_a_badge_says_what_is_true(name):
  picture = ElementTree.parse(ROOT / f"docs/images/{name}.svg").getroot()
  said = f"{name}: {BADGES[name]}"
  texts = [t.text for t in picture.iter("{http://www.w3.org/2000/svg}text")]
  assert texts == [name, BADGES[name]]
  assert picture.get("aria-label") == said
  readme = (ROOT / "README.md").read_text()
  assert f"![{said}](docs/images/{name}.svg)" in readme
