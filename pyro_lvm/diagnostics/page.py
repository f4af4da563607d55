"""A diagnosis as a page of HTML that needs no other file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyro_lvm.verdict.finding import GRADES, Finding

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLORS = {"good": "#2e7d32", "doubtful": "#a15c00", "bad": "#c62828"}
_GREY = "#666666"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1100px; margin: 2rem auto;
  padding: 0 1rem }
h1 { font-size: 1.5rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .4rem .7rem; border-bottom: 1px solid #e3e3e3 }
th { color: #555; font-weight: 600 }
.grade { color: #fff; border-radius: .8em; padding: .1em .7em; font-size: .85em; white-space: nowrap }
h1 .grade { font-size: .7em; vertical-align: middle }
img { max-width: 100%; margin-top: 1.5rem }
"""


def page(fit: str, verdict: str, findings: Sequence[Finding], figure: Figure) -> str:
    """The findings, the worst first, and the figure, which is closed."""
    import matplotlib.pyplot as plt

    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    plt.close(figure)
    encoded = base64.b64encode(picture.getvalue()).decode()
    ordered = sorted(findings, key=lambda finding: -GRADES.index(finding.grade))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Can this fit be trusted?</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Can this fit be trusted? {_badge(verdict)}</h1>
<p>{html.escape(fit)}</p>
<div class="scroll"><table>
<thead><tr><th>grade</th><th>about</th><th>found</th><th>to try next</th></tr></thead>
<tbody>{"".join(map(_line, ordered))}</tbody>
</table></div>
<img alt="The fit, its marginals, weights and predictions" src="data:image/png;base64,{encoded}">
</body>
</html>
"""


def _line(finding: Finding) -> str:
    words = (html.escape(part) for part in (finding.about, finding.text, finding.advice))
    return f"<tr><td>{_badge(finding.grade)}</td>{''.join(f'<td>{part}</td>' for part in words)}</tr>\n"


def _badge(grade: str) -> str:
    return f'<span class="grade" style="background:{_COLORS.get(grade, _GREY)}">{html.escape(grade)}</span>'
