"""report.html: self-contained, the same bytes twice, all or nothing."""

import dataclasses
import html.parser
import re
from pathlib import Path

import pytest

from jaxmerge.errors import InputError
from jaxmerge.reporting.page import write_report
from jaxmerge.reporting.results import Precision
from jaxmerge.reporting.search_figures import convergence


@pytest.fixture
def arguments(results) -> dict:
  image = convergence(results)
  return {
    "title": "Merging runs/a",
    "results": results,
    "figures": {"convergence": image, "training_curve": image},
    "facts": {"corpus": "python <source>", "parameters": "812,544"},
    "commands": ["python -m jaxmerge.search --workdir=runs/a"],
  }


class _Page(html.parser.HTMLParser):
  """Tags with their attributes, and the text without style sheets."""

  def __init__(self, text: str):
    super().__init__()
    self.tags: list[tuple[str, dict[str, str | None]]] = []
    self.words: list[str] = []
    self.open: list[str] = []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in ("meta", "img", "link", "br"):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if "style" not in self.open:
      self.words.append(data)

  @property
  def text(self) -> str:
    return " ".join(" ".join(self.words).split())


def _files(folder: Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_directory_is_complete(tmp_path, arguments):
  page = write_report(tmp_path / "report", **arguments)
  assert str(page) == str(tmp_path / "report" / "report.html")
  assert list(_files(tmp_path / "report")) == [
    "convergence.png",
    "report.html",
    "results.json",
    "training_curve.png",
  ]
  assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_same_arguments_same_bytes(tmp_path, arguments):
  write_report(tmp_path / "a", **arguments)
  write_report(tmp_path / "b", **arguments)
  assert _files(tmp_path / "a") == _files(tmp_path / "b")


def test_nothing_comes_from_outside(tmp_path, arguments):
  text = Path(write_report(tmp_path / "r", **arguments)).read_text("utf-8")
  page = _Page(text)
  assert page.open == []
  names = {name for name, _ in page.tags}
  assert not names & {"script", "link", "iframe", "object", "a", "base"}
  for _, attributes in page.tags:
    assert not {"href", "srcset", "data", "action"} & set(attributes)
    source = attributes.get("src", "data:")
    assert source.startswith("data:")
  bare = re.sub(r'"data:image/png;base64,[^"]*"', "", text)
  assert not re.search(r"https?:|//|url\(|@import", bare)


def test_the_page_says_what_was_found_and_how(tmp_path, arguments):
  path = write_report(tmp_path / "r", **arguments)
  page = _Page(Path(path).read_text("utf-8"))
  for part in (
    "how many forward passes over the search split it took",
    "lowers the report loss by 0.0271 ± 0.0044 nats/token",
    "the run needs 492,611 more tokens to get there.",
    "600: 0.4000, 750: 0.6000",
    "4 (chosen) pi",
    "clustered by document",
    "In this run: 492,611 tokens.",
    "python -m jaxmerge.search --workdir=runs/a",
    "corpus python <source>",
    "parameters 812,544",
    "tokens trained, to the last merged step 3,072,000",
  ):
    assert part in page.text
  images = [attributes for name, attributes in page.tags if name == "img"]
  assert len(images) == 2
  assert all(attributes["alt"] for attributes in images)
  headers = [attributes for name, attributes in page.tags if name == "th"]
  assert all(header["scope"] in ("col", "row") for header in headers)
  assert ("html", {"lang": "en"}) in page.tags


def test_how_sure_the_weights_are(tmp_path, arguments, results):
  weights = {"all <of> it": {600: 0.35, 750: 0.65}}
  stderr = {"all <of> it": {600: 0.0125, 750: 0.0}}
  known = Precision("the split is the limit", 4.2e-4, weights, stderr, 9.6)
  arguments["results"] = dataclasses.replace(results, precision=known)
  page = _Page(Path(write_report(tmp_path / "r", **arguments)).read_text())
  assert page.open == []
  for part in (
    "How sure the weights are",
    "about 0.42 millinats/token. The split is the limit.",
    "took about 10 forward passes",
    "weights of 600 750",
    "all <of> it 0.350 ± 0.025 0.650 ",
  ):
    assert part in page.text
  headers = [attributes for name, attributes in page.tags if name == "th"]
  assert all(header["scope"] in ("col", "row") for header in headers)
  unknown = Precision("not known: no memory")
  arguments["results"] = dataclasses.replace(results, precision=unknown)
  page = _Page(Path(write_report(tmp_path / "r", **arguments)).read_text())
  assert "How sure the weights are Not known: no memory." in page.text
  arguments["results"] = results
  page = _Page(Path(write_report(tmp_path / "r", **arguments)).read_text())
  assert "How sure" not in page.text


def test_trials_without_a_loss_are_listed_with_their_reason(
  tmp_path, arguments, results, trials
):
  failed = trials[2]._replace(
    number=6, loss=float("nan"), failure="not finite <nan>"
  )
  # It was stopped at the chosen weights: still not the chosen trial.
  stopped = trials[4]._replace(number=7, loss=1.3, failure="stopped early")
  listed = [stopped, *trials, failed]
  arguments["results"] = dataclasses.replace(results, trials=listed)
  page = _Page(Path(write_report(tmp_path / "r", **arguments)).read_text())
  assert "6 ucb not finite <nan> 600: 0.5000, 750: 0.5000" in page.text
  assert "7 pi stopped early at 1.3000 600: 0.3500, 750: 0.6500" in page.text
  assert "4 (chosen) pi" in page.text
  wide = [a for name, a in page.tags if name == "td" and "colspan" in a]
  assert [cell["colspan"] for cell in wide] == ["2", "2"]


def test_steps_far_from_the_merge_are_folded_away(
  tmp_path, arguments, of_trail
):
  arguments["results"] = of_trail(merged=(70, 80, 90, 100, 110, 120, 130, 140))
  page = _Page(Path(write_report(tmp_path / "r", **arguments)).read_text())
  main, _, rest = page.text.partition("The other 6 checkpoints alone")
  assert ("details", {}) in page.tags
  assert "step_70 1" in main
  assert "step_70 1" not in rest
  assert "step_10 1" in rest
  assert "step_10 1" not in main
  # The numbers that decide come first, the weights wrap.
  assert "report loss delta vs last ± 95% weights" in main


def test_an_acquisition_that_is_new_here_is_listed(
  tmp_path, arguments, results, trials
):
  new = trials[4]._replace(asked_by="knowledge <gradient>")
  listed = [*trials[:4], new]
  arguments["results"] = dataclasses.replace(results, trials=listed)
  page = _Page(Path(write_report(tmp_path / "r", **arguments)).read_text())
  assert (
    "4 (chosen) knowledge <gradient> 1.1980 0.0010 600: 0.3500" in page.text
  )


def test_losses_are_in_the_unit_of_the_results(tmp_path, arguments, results):
  arguments["results"] = dataclasses.replace(results, unit="bits/byte")
  page = _Page(Path(write_report(tmp_path / "r", **arguments)).read_text())
  assert page.text.count("bits/byte") == 3
  assert "nats" not in page.text


def test_figures_come_in_one_order_whatever_the_arguments(tmp_path, arguments):
  image = arguments["figures"]["training_curve"]
  names = [
    "calibration",
    "hedge",
    "slices",
    "ternary",
    "posterior",
    "convergence",
    "training_curve",
    "baselines",
  ]
  arguments["figures"] = dict.fromkeys(names, image)
  page = _Page(Path(write_report(tmp_path / "r", **arguments)).read_text())
  files = re.findall(r"File: (\w+).png", page.text)
  assert files == [
    "baselines",
    "training_curve",
    "posterior",
    "ternary",
    "slices",
    "convergence",
    "hedge",
    "calibration",
  ]


def test_honest_sentences_in_the_other_cases(tmp_path, arguments, results):
  merged = dataclasses.replace(
    results.rows[-1], report_delta_vs_last=-0.001, report_loss=1.2215
  )
  weak = dataclasses.replace(
    results, rows=(*results.rows[:-1], merged), tokens_saved=None
  )
  arguments |= {"results": weak, "figures": {}}
  path = write_report(tmp_path / "r", **arguments)
  text = _Page(Path(path).read_text("utf-8")).text
  assert "shows no measurable gain over step 750" in text
  assert "the row grid has a lower loss" in text
  assert "In this run no checkpoint reaches the merged loss." in text
  assert "Training curve" not in text


def test_a_report_replaces_a_report(tmp_path, arguments):
  write_report(tmp_path / "r", **arguments)
  write_report(tmp_path / "r", **{**arguments, "title": "again"})
  assert b"<h1>again</h1>" in _files(tmp_path / "r")["report.html"]
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="is a file"):
    write_report(tmp_path / "file", **arguments)


def test_bad_results_write_nothing(tmp_path, arguments, results):
  row = dataclasses.replace(results.rows[1], search_loss=float("nan"))
  rows = (results.rows[0], row, *results.rows[2:])
  broken = dataclasses.replace(results, rows=rows)
  with pytest.raises(InputError, match="is not finite"):
    write_report(tmp_path / "r", **{**arguments, "results": broken})
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="cannot write"):
    write_report(tmp_path / "file" / "r", **arguments)
  assert [path.name for path in tmp_path.iterdir()] == ["file"]
