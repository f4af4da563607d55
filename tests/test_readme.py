"""Every Python example of the README and of the documentation's pages runs, in the order of its page."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if "```python\n" in page.read_text()
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, namespace = page.read_text(), {"__name__": "__page__"}
    try:
        for block in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            before = text[: block.start(1)].count("\n")  # so that a traceback shows the line of the page
            exec(compile("\n" * before + block.group(1), page, "exec"), namespace)
    finally:
        import matplotlib.pyplot as plt

        plt.close("all")


def test_the_readme_shows_its_pictures():
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / picture).stat().st_size < 150_000
