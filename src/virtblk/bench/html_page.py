"""The parts of an HTML page: text, tables, figures with their numbers, and the sheet they stand on. Control context.

Everything that comes from outside goes through `text`. The page needs nothing but itself: its policy forbids a
browser to load or run anything, so that a mistake here could show wrong letters and do no more.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

#: No script, no image, no font, no request; only the style sheet inside, and style attributes, which figures have.
POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

#: C0 and C1 controls and lone surrogates, which no HTML document may hold, become the replacement character.
_FORBIDDEN: Final = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000)), "\ufffd") | {
    0x09: " ",
    0x0A: " ",
}

#: Letters of a list that is shown without being asked for.
READABLE: Final = 1200

# The hues of paths are Okabe and Ito's, which the colour-blind can tell apart, and lighter ones of them on dark.
STYLE: Final = """
:root { color-scheme: light dark;
  --page: #f6f7f9; --surface: #ffffff; --ink: #1b1f24; --muted: #59636e; --grid: #dfe3e8; --link: #0b5cad;
  --request: #0072b2; --bio: #d55e00; --mq: #008a64; --auto: #b5568f; --driver: #0072b2; --device: #c77d00;
  --good: #0a6b4c; --good-back: #dff3ea; --bad: #a8320a; --bad-back: #fbe6dc; }
@media (prefers-color-scheme: dark) { :root {
  --page: #101418; --surface: #181d23; --ink: #e6eaef; --muted: #9aa5b1; --grid: #323a44; --link: #7ab8f5;
  --request: #56b4e9; --bio: #f08a3c; --mq: #34c79b; --auto: #e29ac4; --driver: #56b4e9; --device: #e8b04a;
  --good: #74d8b1; --good-back: #143529; --bad: #ffab86; --bad-back: #42231a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
main, header, footer { max-width: 1120px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 28px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 21px; margin: 40px 0 12px; padding-top: 12px; border-top: 2px solid var(--grid);
  overflow-wrap: anywhere; }
h3 { font-size: 16px; margin: 26px 0 6px; overflow-wrap: anywhere; }
p { margin: 6px 0; }
a { color: var(--link); }
.muted, figcaption, footer { color: var(--muted); }
footer { padding-top: 30px; padding-bottom: 40px; font-size: 13px; }
.card { background: var(--surface); border: 1px solid var(--grid); border-radius: 8px; padding: 14px 18px;
  margin: 12px 0; }
.warn { background: var(--bad-back); color: var(--bad); border-color: var(--bad); }
.headline { font-size: 17px; font-weight: 600; margin-bottom: 8px; overflow-wrap: anywhere; }
.card ul { margin: 8px 0; padding-left: 20px; }
.card li { margin: 2px 0; font-variant-numeric: tabular-nums; }
pre { margin: 8px 0 2px; padding: 10px 12px; background: var(--page); border-radius: 6px; overflow-x: auto;
  font: 13px/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
figure { margin: 12px 0; background: var(--surface); border: 1px solid var(--grid); border-radius: 8px;
  padding: 14px 18px; }
figcaption { font-size: 13.5px; margin-bottom: 8px; }
figcaption strong { display: block; font-size: 15.5px; color: var(--ink); }
.drawing { overflow-x: auto; }
.drawing svg { display: block; width: 100%; min-width: 680px; height: auto; }
.drawing svg text { font-family: inherit !important; }
details { margin: 10px 0; }
summary { cursor: pointer; color: var(--link); font-size: 14px; width: fit-content; }
.values > summary { font-size: 16px; font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; margin: 8px 0; }
caption { text-align: left; color: var(--muted); padding-bottom: 4px; }
th, td { padding: 4px 12px 4px 0; border-bottom: 1px solid var(--grid); text-align: right; vertical-align: top;
  white-space: nowrap; }
th { font-weight: 600; }
th[scope=row], th.name, .left th, .left td { text-align: left; }
.left td { white-space: normal; overflow-wrap: anywhere; }
td.win, td.lose { padding-left: 8px; padding-right: 8px; border-radius: 3px; }
td.win { color: var(--good); background: var(--good-back); }
td.lose { color: var(--bad); background: var(--bad-back); }
@media print { details:not([open]) > *:not(summary) { display: none; } figure, .card { break-inside: avoid; } }
"""


def text(value: object) -> str:
    """Anything as text of a document, or of a quoted attribute."""
    return html.escape(str(value).translate(_FORBIDDEN), quote=True)


@dataclass(frozen=True)
class Cell:
    """What stands in a table, with a class: `win`, `lose` or none."""

    text: str
    kind: str = ""


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str | Cell]],
    caption: str = "",
    *,
    heads: int = 1,
    left: bool = False,
) -> str:
    """A table, its first `heads` columns the heads of their rows. `left`: of words, not of numbers."""
    parts = [f'<div class="scroll" tabindex="0"><table{" class=left" if left else ""}>']
    if caption:
        parts.append(f"<caption>{text(caption)}</caption>")
    if headings:
        cells = [
            f'<th scope="col"{" class=name" if index < heads else ""}>{text(one)}</th>'
            for index, one in enumerate(headings)
        ]
        parts.append(f"<thead><tr>{''.join(cells)}</tr></thead>")
    parts.append("<tbody>")
    for row in rows:
        parts.append(f"<tr>{''.join(_cell(one, index < heads) for index, one in enumerate(row))}</tr>")
    parts.append("</tbody></table></div>")
    return "\n".join(parts)


def _cell(one: str | Cell, head: bool) -> str:
    cell = one if isinstance(one, Cell) else Cell(one)
    if head:
        return f'<th scope="row">{text(cell.text)}</th>'
    kind = f' class="{cell.kind}"' if cell.kind else ""
    return f"<td{kind}>{text(cell.text)}</td>"


def pairs(values: Mapping[str, str]) -> str:
    """A table of names and values."""
    return table([], list(values.items()), left=True)


def figure(title: str, caption: str, svg: str, numbers: str) -> str:
    """A drawing with what it shows and, below it, its numbers as a table."""
    return "\n".join(
        [
            "<figure>",
            f"<figcaption><strong>{text(title)}</strong>{text(caption)}</figcaption>",
            f'<div class="drawing">{svg}</div>',
            details("the numbers", numbers),
            "</figure>",
        ]
    )


def details(summary: str, inside: str, kind: str = "") -> str:
    """What is shown when it is asked for."""
    return f"<details{f' class={kind}' if kind else ''}>\n<summary>{text(summary)}</summary>\n{inside}\n</details>"


def card(headline: str, lines: Sequence[str] = (), code: Sequence[str] = (), note: str = "", kind: str = "") -> str:
    """A box: what matters first, its reasons, and lines to copy."""
    parts = [
        f'<div class="card {kind}">' if kind else '<div class="card">',
        f'<p class="headline">{text(headline)}</p>',
    ]
    if lines:
        listed = f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>"
        parts.append(details("in numbers", listed) if sum(map(len, lines)) > READABLE else listed)
    if code:
        parts.append(f'<p class="muted">{text(note)}</p><pre>{text_lines(code)}</pre>')
    return "\n".join([*parts, "</div>"])


def text_lines(lines: Sequence[str]) -> str:
    """Lines of preformatted text."""
    return "\n".join(text(line) for line in lines)


def page(title: str, head: str, body: str, foot: str) -> str:
    """The whole document."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
{head}
</header>
<main>
{body}
</main>
<footer>
{foot}
</footer>
</body>
</html>
"""
