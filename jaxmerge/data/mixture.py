"""Corpora that are trained and scored on together, in shares by weight.

One corpus alone is a mixture of one part, whose name is empty. Each part has a
token cache of its own, that of plain runs with the same tokenizer.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import TypeVar

import numpy as np

from jaxmerge.data import cache, corpora
from jaxmerge.data.cache import TokenizedCorpus
from jaxmerge.data.config import CorpusConfig, DataConfig
from jaxmerge.data.corpora import load_corpus
from jaxmerge.data.documents import Skip, Skipped
from jaxmerge.data.file_hashes import sha256_of_json
from jaxmerge.data.heldout import HeldOut, held_out, window_counts
from jaxmerge.data.local_text import LOCAL_SOURCES
from jaxmerge.data.packing import Packed, open_plan
from jaxmerge.data.pipeline import Concatenated, Part, Windows
from jaxmerge.data.shares import apportioned, pick, whole_weights
from jaxmerge.data.tokenizers.hugging_face import SAMPLE_BYTES
from jaxmerge.data.tokenizers.load import load_tokenizer
from jaxmerge.data.tokenizers.protocol import Tokenizer
from jaxmerge.errors import InputError, Problems

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Open token caches by the names of their parts, and what each weighs."""

  parts: Mapping[str, TokenizedCorpus]
  weights: Mapping[str, float]

  @property
  def tokenizer(self) -> Tokenizer:
    """That of all parts."""
    return next(iter(self.parts.values())).tokenizer

  @property
  def identity(self) -> str:
    """A hash of all tokens and their shares."""
    if "" in self.parts:
      return self.parts[""].identity
    whole = whole_weights(self.weights)
    return sha256_of_json(
      {k: [p.identity, whole[k]] for k, p in self.parts.items()}
    )

  @property
  def skipped(self) -> Skipped:
    """Documents of the corpora that are not in the parts, by reason."""
    total = Skipped()
    for name, part in self.parts.items():
      for reason, (number, first) in part.skipped.items():
        known = total.get(reason, Skip(0, document_name(name, first)))
        total[reason] = Skip(known.number + number, known.first)
    return total

  def train_parts(self, seq_len: int, packs_documents: bool) -> list[Part]:
    """Sequences to train on; InputError where no plan of them can be kept."""
    windows: dict[str, Windows] = {}
    for name, corpus in self.parts.items():
      train = corpus.splits["train"]
      if packs_documents:
        plan = open_plan(train, corpus.identity, seq_len)
        windows[name] = Packed(train, plan, seq_len)
      else:
        windows[name] = Concatenated(train, seq_len)
    return [Part(w, self.weights[name], name) for name, w in windows.items()]

  def held_out(
    self,
    split: str,
    *,
    seq_len: int,
    max_sequences: int | None = None,
    documents: Collection[str] | None = None,
  ) -> HeldOut:
    """Sequences of a split, as heldout.held_out.

    Each part gives its share of them, by the largest remainder, and their
    number is the most for which all parts have enough; among the first n too
    each part has its share. Ids of documents begin with their part's name.

    Args:
      max_sequences: at most; None: all there are in these shares.
      documents: ids; then all sequences of these, in no shares.
    """
    counts = dict.fromkeys(self.parts, max_sequences)
    if documents is None and "" not in self.parts:
      counts = self._counts(split, seq_len, max_sequences)
    found = {
      name: held_out(
        part.splits[split],
        part.tokenizer.bytes_per_token_V,
        seq_len=seq_len,
        max_sequences=counts[name],
        documents=None if documents is None else _own(name, documents),
      )
      for name, part in self.parts.items()
    }
    return _interleaved(found)

  def _counts(
    self, split: str, seq_len: int, max_sequences: int | None
  ) -> dict[str, int | None]:
    whole = whole_weights(self.weights)
    has = {
      name: int(window_counts(part.splits[split], seq_len).sum())
      for name, part in self.parts.items()
    }
    total = min(n * sum(whole.values()) // whole[k] for k, n in has.items())
    if max_sequences is not None:
      total = min(total, max_sequences)
    shares = apportioned(self.weights, total)
    # A share that is rounded up may be one more than there are.
    return {name: min(has[name], n) for name, n in shares.items()}


def document_name(part: str, name: str) -> str:
  """A document's id in a mixture: "code/a.py" of the part "code"."""
  return f"{part}/{name}" if part else name


def _own(part: str, documents: Collection[str]) -> set[str]:
  """Ids, within a part, of those documents that are of it."""
  start = document_name(part, "")
  return {d.removeprefix(start) for d in documents if d.startswith(start)}


def _interleaved(found: Mapping[str, HeldOut]) -> HeldOut:
  """All sequences in turn, and the documents in the order of these."""
  if list(found) == [""]:
    return found[""]
  counts = {k: len(held.document_N) for k, held in found.items()}
  chosen = {name: found[name] for name, count in counts.items() if count}
  weights = [counts[name] for name in chosen]
  order = [pick(weights, i) for i in range(sum(weights))]
  first = np.cumsum([0, *weights])
  order_N = np.array([first[part] + i for part, i in order], np.int64)
  names = [
    document_name(name, held.document_ids[d])
    for name, held in chosen.items()
    for d in held.document_N
  ]
  names = [names[i] for i in order_N]
  number = {name: i for i, name in enumerate(dict.fromkeys(names))}
  tokens, mask, _, sizes, _ = (
    zip(*chosen.values()) if chosen else zip(*found.values())
  )
  return HeldOut(
    tokens_NxL1=np.concatenate(tokens)[order_N],
    mask_NxL=np.concatenate(mask)[order_N],
    document_N=np.array([number[name] for name in names], np.int32),
    bytes_N=np.concatenate(sizes)[order_N],
    document_ids=tuple(number),
  )


def open_corpus(
  config: DataConfig, *, progress: Callable[[str], None] = lambda text: None
) -> Mixture:
  """Gives the tokens of all parts, from their caches where they are in them.

  A tokenizer is trained on text of all parts by weight. Raises InputError as
  cache.open_corpus does.
  """
  if not config.mixture:
    return Mixture({"": cache.open_corpus(config, progress=progress)}, {"": 1})
  if config.tokenizer_path:
    tokenizer = load_tokenizer(config.tokenizer_path)
  else:
    sizes = apportioned(config.weights, SAMPLE_BYTES)
    sampled = [
      (
        _named(name, partial(load_corpus, part, progress=progress)),
        sizes[name],
      )
      for name, part in config.corpora.items()
    ]
    tokenizer = cache.trained_tokenizer(config, sampled, progress)
  parts = {
    name: _named(
      name,
      partial(
        cache.open_corpus,
        part.with_tokenizer(""),
        tokenizer=tokenizer,
        progress=partial(_tell, progress, name),
      ),
    )
    for name, part in config.corpora.items()
  }
  return Mixture(parts, config.weights)


def _named(name: str, action: Callable[[], _T]) -> _T:
  """Does an action of a part, whose problems say that they are of it."""
  if not name:
    return action()
  try:
    return action()
  except InputError as error:
    place = f"config.data.mixture.{name}"
    raise InputError([f"{place}: {text}" for text in error.problems]) from error


def _tell(progress: Callable[[str], None], name: str, text: str) -> None:
  progress(f"{name}: {text}")


def is_local(config: CorpusConfig) -> bool:
  """Says whether all text lies on this machine."""
  return all(c.source in LOCAL_SOURCES for c in config.corpora.values())


def tokenizer_problems(config: DataConfig) -> Problems:
  """Says which parts of a mixture have another tokenizer than it."""
  problems, path = Problems(), config.tokenizer_path
  whole = Problems()(lambda: load_tokenizer(path)) if path else None
  if path and whole is None:
    return problems  # told where it is loaded
  for name, part in config.mixture.items():
    if not part.tokenizer_path:
      continue
    own = problems(partial(load_tokenizer, part.tokenizer_path))
    if own and (whole is None or own.hash != whole.hash):
      whose = "is not that of" if path else "goes with the same as"
      problems.add(
        f"config.data.mixture.{name}.tokenizer_path {whose} "
        "config.data.tokenizer_path: a mixture has one tokenizer for all parts"
      )
  return problems


def content_hash(config: CorpusConfig) -> str:
  """Hashes text as it lies there; "" if a catalogue's is not yet.

  Of a mixture what each part's is, by name.
  """
  problems = Problems()
  found = {
    name: problems(partial(_named, name, partial(corpora.content_hash, part)))
    for name, part in config.corpora.items()
  }
  problems.check()
  if "" in found:
    return found[""] or ""
  if not all(found.values()):
    return ""
  return " ".join(f"{name}={content}" for name, content in found.items())


def changed_files(config: CorpusConfig, before: str) -> str:
  """Names the files that are not as in the text of an earlier content_hash."""
  if "" in config.corpora:
    return corpora.changed_files(config, before)
  was = dict(word.split("=", 1) for word in before.split() if "=" in word)
  told = {
    name: corpora.changed_files(part, was[name])
    for name, part in config.corpora.items()
    if name in was
  }
  return "; ".join(f"{name}: {text}" for name, text in told.items() if text)
