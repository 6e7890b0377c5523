"""What the docs name is there: files, pictures, sections and make targets."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "deploy/helm/headrace/README.md",
]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def anchors(page: Path) -> set[str]:
    """As a page's headings are linked to."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_option_of_the_load_test_is_in_its_page() -> None:
    """Locust's own help does not show them."""
    options = re.findall(r'add\(\s*"(--[a-z0-9-]+)"', (ROOT / "loadtest" / "locustfile.py").read_text())
    page = (ROOT / "docs" / "load-testing.md").read_text()
    assert len(options) > 20
    assert [name for name in options if f"`{name}`" not in page] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} is not there"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{target}: no such section"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_are_targets_and_nothing_waits_to_be_filled_in(page: Path) -> None:
    text = page.read_text()
    assert set(re.findall(r"(?:^|`|&& )make ([a-z][a-z-]*)", text, re.MULTILINE)) <= TARGETS
    assert not re.findall(r"@[A-Z]+@", text)


def test_every_target_can_be_made_though_a_folder_has_its_name() -> None:
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    phony = set(next(line for line in makefile.splitlines() if line.startswith(".PHONY:")).split()[1:])
    assert phony >= TARGETS
