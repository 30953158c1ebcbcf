"""The little HTML that the reports need: escaped tables, inline pictures, one style sheet."""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from subquad.files import printable

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, sans-serif; color: #24292f; max-width: 60rem;
       margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; margin-bottom: .25rem; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .5rem; }
p.lead { color: #57606a; margin-top: 0; }
p.note { color: #57606a; font-size: .88rem; margin: .3rem 0 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; margin: .5rem 0; }
th, td { text-align: right; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid #e6e8eb;
         font-variant-numeric: tabular-nums; }
th { color: #57606a; font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
tr.ours td { background: #f1f6fb; font-weight: 600; }
img { max-width: 100%; display: block; margin: .5rem 0; }
pre { background: #f6f8fa; padding: .75rem 1rem; overflow-x: auto; font-size: .85rem;
      border-radius: 6px; }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """Return a whole page that needs no other file."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def text(value: object) -> str:
    """Return ``value`` as text in which no character is read as HTML."""
    return html.escape(printable(str(value)))


def heading(words: str) -> str:
    """Return a section's heading."""
    return f"<h2>{text(words)}</h2>"


def paragraph(words: str, kind: str = "") -> str:
    """Return a paragraph; ``kind`` may be lead or note."""
    return f"<p{f' class={kind!r}' if kind else ''}>{text(words)}</p>"


def table(
    head: Sequence[str], rows: Iterable[Sequence[object]], *, ours: Iterable[int] = ()
) -> str:
    """Return a table whose first column is text; the rows numbered in ``ours`` stand out."""
    marked = set(ours)
    lines = ["<tr>" + "".join(f"<th>{text(cell)}</th>" for cell in head) + "</tr>"]
    for i, row in enumerate(rows):
        mark = ' class="ours"' if i in marked else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>")
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def picture(path: Path, description: str) -> str:
    """Return the PNG file as part of the page itself."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{text(description)}" src="data:image/png;base64,{data}">'


def code(words: str) -> str:
    """Return ``words`` set as a command or as a file."""
    return f"<pre>{text(words)}</pre>"
