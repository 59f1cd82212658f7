"""The documents: what they tell a reader to type works, and the figures they show are the measured ones."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mobillama.config import presets

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "DESIGN.md", *sorted((ROOT / "docs").glob("*.md"))]
# What this very test is run by.
RUN_BY_CI = {"make test", "make setup"}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    lines = [line.partition("  #")[0].strip() for block in blocks(page, "sh") for line in block.splitlines()]
    return [line for line in lines if line]


def test_the_readme_shows_the_measured_figures():
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "figures.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_begins_with_what_it_is_the_two_commands_a_picture_and_a_table():
    first = (ROOT / "README.md").read_text(encoding="utf-8")[:5000]
    for part in ("make quickstart", "make test", "docs/quickstart.svg", "| measured |"):
        assert part in first


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_make_targets_in_the_documents_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {target for page in PAGES for target in re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8"))}
    named |= {command.split()[1] for page in PAGES for command in commands(page) if command.startswith("make ")}
    assert {"quickstart", "test"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"


def test_recipes_named_in_the_documents_exist():
    for page in PAGES:
        for kind, name in re.findall(r"recipes/(model|data|train)/([\w.-]+)\.toml", page.read_text(encoding="utf-8")):
            assert name in presets(kind), f"{page.name}: {kind}/{name}"


@pytest.mark.slow
def test_every_command_of_the_documents_runs():
    """In order, from the root of the checkout, as a reader would type them."""
    ran = 0
    for page in PAGES:
        for command in commands(page):
            if command in RUN_BY_CI:
                continue
            words = [sys.executable, "-m", "mobillama.cli"] if ".venv/bin/mobillama" in command else []
            words += shlex.split(command)[1:] if words else shlex.split(command)
            done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=1200)
            assert done.returncode == 0, f"{page.name}: {command}\n{done.stdout}\n{done.stderr}"
            ran += 1
        for block in blocks(page, "python"):
            done = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, f"{page.name}: {block}\n{done.stderr}"
            assert len(done.stdout) > 1  # more than print's own newline: a model this small may go on with nothing else
            ran += 1
    assert ran >= 10
