"""Pages hold every section, the ledger's own numbers, and nothing that would be fetched."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mobillama.errors import DamagedFileError, InputError, MissingExtraError
from mobillama.report.page import write_picture, write_quickstart_page, write_run_page
from mobillama.report.run import read_run

VOID = {"meta", "br", "link", "img", "input", "hr", "col", "source"}
FETCHING = {"script", "link", "img", "iframe", "object", "embed", "audio", "video", "source", "base"}


class Page(HTMLParser):
    """Elements, text and data-values of a page, by the id of the section they stand in."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: dict[str, str] = {}
        self.values: dict[str, list[float]] = {}
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == [], "every element is closed"

    def section(self) -> str:
        return next((str(found["id"]) for _, found in reversed(self.open) if found.get("id")), "")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag not in VOID:
            self.open.append((tag, found))
        if "data-value" in found:
            self.values.setdefault(self.section(), []).append(float(str(found["data-value"])))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        self.words[self.section()] = self.words.get(self.section(), "") + data


def assert_offline(path: Path, page: Page) -> None:
    assert not FETCHING & {tag for tag, _ in page.tags}
    for tag, found in page.tags:
        assert not {"src", "href", "srcset", "action"} & set(found), (tag, found)
    text = path.read_text(encoding="utf-8")
    assert "url(" not in text and "@import" not in text
    assert "http://" not in text and "https://" not in text


def test_quickstart_page_holds_every_section_and_fetches_nothing(quickstart_folder: Path, tmp_path: Path) -> None:
    path = write_quickstart_page(quickstart_folder, tmp_path / "page.html")
    page = Page(path)
    sections = {"summary", "models", "loss", "samples", "engine", "sources", "dropped", "times", "machine", "check"}
    assert sections <= {str(found.get("id")) for _, found in page.tags}
    assert_offline(path, page)


def test_quickstart_page_shows_the_numbers_of_ledger_manifest_and_results(
    quickstart_folder: Path, tmp_path: Path
) -> None:
    page = Page(write_quickstart_page(quickstart_folder, tmp_path / "page.html"))
    for name in ("shared", "dense"):
        for line in read_run(quickstart_folder / name).validations:
            assert line["loss"] in page.values["loss"]
            assert line["bits_per_byte"] in page.values["loss"]
    results = json.loads((quickstart_folder / "results.json").read_text())
    for model in results["models"]:
        for key in ("validation_loss", "margin", "bits_per_byte", "stored_parameters", "executed_parameters", "tokens"):
            assert model[key] in page.values["models"]
    assert results["unigram"]["entropy"] in page.values["loss"]
    assert page.values["dropped"] == [7, 3]
    assert page.values["sources"] == [70, 60, 10, 9_000_000, 8, 8, 0, 500_000, 78, 68, 10, 9_500_000]
    assert page.values["engine"] == [1000, 6.25, 900.5, 5000.5, 1001, 6.25, 901.5, 5000.5]
    assert "one text at a time" in page.words["engine"] and "shared.gguf" in page.words["engine"]
    assert page.values["times"] == [12.25, 3.5, 20.75, 36.5, 40.5]


def test_quickstart_page_says_which_goals_are_met_and_escapes_what_models_write(
    quickstart_folder: Path, tmp_path: Path
) -> None:
    page = Page(write_quickstart_page(quickstart_folder, tmp_path / "page.html"))
    assert [found["data-met"] for _, found in page.tags if "data-met" in found] == ["true", "false"]
    assert "✗ dense did <not>" in page.words["summary"]
    assert "def a <b> & c" in page.words["samples"]
    assert "compute in float32" in page.words["summary"]


def test_picture_is_one_svg_that_fetches_nothing(quickstart_folder: Path, tmp_path: Path) -> None:
    text = write_picture(quickstart_folder, tmp_path / "docs" / "picture.svg").read_text()
    assert text.startswith("<svg ") and text.endswith("</svg>\n")
    assert text.count("http") == 1, "only the name space"
    assert "unigram entropy" in text and "shared FFN: validation" in text


def test_run_page_shows_the_ledger_and_escapes_the_recipe(run: Path, tmp_path: Path) -> None:
    path = write_run_page(run, tmp_path / "run.html")
    page = Page(path)
    assert_offline(path, page)
    for line in read_run(run).validations:
        assert line["loss"] in page.values["validation"]
    assert "</script><b>&" in page.words["recipe"]
    assert "c0ffee" in page.words["checkpoints"]
    assert "The run has ended" in page.words["summary"]


def test_a_step_that_was_repeated_counts_once_and_a_cut_line_not_at_all(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = make_run(tmp_path / "again", floor=4.0, steps=20)
    lines = (run / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    steps = [line for line in lines if b'"kind": "step"' in line]
    resumed = json.dumps({"kind": "resumed", "result": {"step": 18}, "circumstance": {}}).encode() + b"\n"
    (run / "ledger.jsonl").write_bytes(b"".join([*lines[:-1], resumed, *steps[18:], steps[0][:30]]))
    found = read_run(run)
    assert [step["step"] for step in found.steps] == list(range(1, 21))
    assert found.restarts == 1 and not found.ended
    assert "go" in Page(write_run_page(run, tmp_path / "run.html")).words["summary"]


def test_a_damaged_ledger_line_is_named(run: Path) -> None:
    lines = (run / "ledger.jsonl").read_text().splitlines()
    lines[4] = lines[4][:20]
    (run / "ledger.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(DamagedFileError, match="line 5"):
        read_run(run)


def test_a_folder_without_ledger_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no ledger\.jsonl"):
        write_run_page(tmp_path, tmp_path / "run.html")


def test_page_of_a_run_that_has_not_begun_says_so(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_text("")
    page = Page(write_run_page(tmp_path, tmp_path / "run.html"))
    assert "No step" in page.words["summary"]


def test_missing_jinja2_is_a_clear_error(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match="report"):
        write_run_page(run, tmp_path / "run.html")
