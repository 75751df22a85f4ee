"""The two locks, and what the package's bounds allow."""

import pathlib
import re
import tomllib

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = ("requirements.lock", "requirements.newest.lock")


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_index(lock):
  text = (ROOT / lock).read_text()
  assert not re.search(r"://|^\s*-(?!-hash=sha256:)|@", text, re.MULTILINE)


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_every_direct_dependency(lock):
  text = (ROOT / lock).read_text()
  held = {canonicalize_name(n) for n in re.findall(r"^([\w.-]+)==", text, re.M)}
  asked = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
  names = {canonicalize_name(Requirement(line).name) for line in asked}
  assert names - held == set()


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_bounds_exclude_the_pair_that_breaks(python):
  pair = {"jax": "0.11.1", "flax": "0.12.8"}
  environment = default_environment() | {"python_version": python}
  environment["python_full_version"] = f"{python}.0"

  def allows(versions):
    return all(
      requirement.specifier.contains(versions[requirement.name])
      for requirement in map(Requirement, PROJECT["dependencies"])
      if requirement.name in versions
      and (not requirement.marker or requirement.marker.evaluate(environment))
    )

  assert not allows(pair)
  assert not allows(pair | {"jax": "0.11.2"})
  assert allows({"jax": "0.10.2", "flax": "0.12.8"})


def test_what_a_short_run_leaves_out_is_there():
  text = (ROOT / "Makefile").read_text().replace("\\\n", "")
  [left_out] = re.findall(r"^LEFT_OUT := (.*)$", text, re.MULTILINE)
  assert all((ROOT / "tests" / path).exists() for path in left_out.split())
