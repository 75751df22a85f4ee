"""The commands of docs/tutorials, run as a reader would, at tiny size."""

import pytest

from tests.helpers import ROOT
from tests.test_extending import run_blocks

PAGES = ("own_text", "merge_two_models", "sampler")


@pytest.mark.parametrize("name", PAGES)
def test_a_tutorial(name, tmp_path):
  page = (ROOT / f"docs/tutorials/{name}.md").read_text()
  run_blocks(page.replace("/quickstart.py", "/tiny.py"), tmp_path)


def test_every_tutorial_is_run_and_named_in_the_readme():
  pages = {path.stem for path in (ROOT / "docs/tutorials").glob("*.md")}
  readme = (ROOT / "README.md").read_text()
  assert set(PAGES) <= pages
  assert all(f"docs/tutorials/{name}.md" in readme for name in pages)
