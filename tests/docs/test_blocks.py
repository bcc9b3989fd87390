"""Every code block of the README and of docs/ runs, and prints what the page says."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentflow.engine.definitions import REGISTRY
from agentflow.providers import scripted
from tests.docs.blocks import Page
from tests.docs.example_process import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_LINK = re.compile(r"\]\((?!https?://)([^)#]*)(#[^)]+)?\)")
README_LINES = 200
MEASURED = {
    ROOT / "docs/crash-table.md",
    ROOT / "docs/chaos.md",
    ROOT / "benchmarks/README.md",
}  # by make crash, make chaos, make bench


@pytest.fixture
def _clean(tmp_path: Path) -> Iterator[None]:
    """Begin without what other tests have registered, and forget what the page has."""
    workflows, REGISTRY.workflows = REGISTRY.workflows, {}
    scripts, modules = dict(scripted._REGISTERED), set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    REGISTRY.workflows = workflows
    scripted._REGISTERED.clear()
    scripted._REGISTERED.update(scripts)


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
@pytest.mark.usefixtures("_clean")
def test_the_blocks_of_a_page_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the top to the end, in an empty folder, without a key and without a network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    Page(path, tmp_path).run()


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(path: Path) -> None:
    """A link within the repository names a file, and a heading in it."""
    for target, anchor in _LINK.findall(path.read_text(encoding="utf-8")):
        file = path.parent / target if target else path
        assert file.exists() or file in MEASURED, f"{path.name}: {target}"
        if anchor and file.suffix == ".md":
            assert anchor[1:] in anchors(file), f"{path.name}: {target}{anchor}"


def anchors(file: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    heads = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_the_readme_is_short() -> None:
    """Two hundred lines are enough to decide."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES
