"""A small corpus of local files, and its token cache, shared by the tests."""

import random
from pathlib import Path

import pytest

from jaxmerge.data.cache import open_corpus
from jaxmerge.data.config import DataConfig

LINE = "the cat sat on a mat while rain fell and naïve 猫 slept 🐈 well"
WORDS = LINE.split()


def write_texts(folder: Path, count: int = 80, seed: int = 0) -> Path:
  """Writes text files of 3 to 120 words a line, some over several lines."""
  rng = random.Random(seed)
  for number in range(count):
    lines = [
      " ".join(rng.choices(WORDS, k=rng.randint(3, 120)))
      for _ in range(rng.randint(1, 6))
    ]
    path = folder / f"part{number % 3}" / f"{number}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")
  return folder


@pytest.fixture(scope="session")
def text_writer():
  return write_texts


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
  return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="session")
def cached(texts, tmp_path_factory):
  return open_corpus(
    DataConfig(
      source="text_files",
      globs=(f"{texts}/**/*.txt",),
      cache_dir=str(tmp_path_factory.mktemp("cache")),
      vocab_size=300,
    )
  )
