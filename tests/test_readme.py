"""Every Python example of the README and of the documentation's pages runs, and prints what the page shows."""

import doctest
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if BLOCK.search(page.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    text, namespace = page.read_text(), {"__name__": "__page__"}
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    try:
        for block in BLOCK.finditer(text):
            code, shown = block.groups()
            above = text[: block.start(1)].count("\n")  # so that a traceback shows the line of the page
            with redirect_stdout(StringIO()) as printed:
                exec(compile("\n" * above + code, page, "exec"), namespace)
            if shown is not None and not doctest.OutputChecker().check_output(shown, printed.getvalue(), options):
                pytest.fail(f"{page.name} shows\n{shown}\nbut its example prints\n{printed.getvalue()}")
    finally:
        plt.close("all")


def test_the_readme_shows_its_pictures():
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / picture).stat().st_size < 150_000
