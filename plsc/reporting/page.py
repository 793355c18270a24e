"""A page of HTML that is whole by itself: no scripts, nothing from elsewhere, pictures inside."""

import base64
import html
from collections.abc import Sequence

import cv2
import numpy as np

_STYLE = """
:root { color-scheme: light; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --band: #f6f8fa; --link: #0550ae; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem; color: var(--ink); background: #fff;
       font: 16px/1.5 system-ui, "Segoe UI", "Liberation Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line);
     overflow-wrap: anywhere; }
p, figcaption { color: var(--soft); margin: .25rem 0 .75rem; max-width: 60rem; overflow-wrap: anywhere; }
a { color: var(--link); }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; padding: 0; margin: 1rem 0 0; }
.scroll { overflow-x: auto; }
.scroll:focus-visible, summary:focus-visible, a:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .75rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { background: var(--band); font-weight: 600; }
.left { text-align: left; }
td.left { white-space: normal; overflow-wrap: anywhere; max-width: 32rem; }
tbody th { background: none; font-weight: 400; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1rem; }
figure { margin: 0; }
figure svg { max-width: 100%; height: auto; display: block; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: 1rem; padding: 0;
            margin: 0; list-style: none; }
.pictures img { width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--band);
                border: 1px solid var(--line); }
.pictures figcaption { font-size: .8rem; line-height: 1.35; margin: .25rem 0 0; color: var(--ink); }
img.fine { image-rendering: pixelated; }
.bar { display: inline-block; height: .6rem; background: #2f6fb3; vertical-align: middle; }
.track { display: inline-block; width: 8rem; background: #e6eaef; line-height: 0; }
.note { border-left: 4px solid #9a6700; background: #fff8e5; color: var(--ink); padding: .5rem .75rem; }
pre { background: var(--band); padding: .75rem; overflow-x: auto; font-size: .8rem; line-height: 1.4; }
details { margin-top: .75rem; }
summary { cursor: pointer; color: var(--link); }
@media print { body { max-width: none; } nav { display: none; } }
"""
_SMALL = 64  # pixels; smaller pictures are enlarged without smoothing
_LONGEST = 224  # pixels of a picture in the page


def escape(text: object) -> str:
    """Text as HTML shows it; stray bytes of file names become question marks."""
    return html.escape(str(text).encode("utf-8", "replace").decode())


def document(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """The page: (heading, HTML) sections below a title, with links to them."""
    links = "".join(f'<li><a href="#part{n}">{escape(name)}</a></li>' for n, (name, _) in enumerate(sections))
    parts = "".join(
        f'<section aria-labelledby="part{n}"><h2 id="part{n}">{escape(name)}</h2>{body}</section>\n'
        for n, (name, body) in enumerate(sections)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(title)}</h1><p>{escape(lead)}</p>"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n<main>\n{parts}</main>\n</body>\n</html>\n'
    )


def table(rows: Sequence[Sequence[object]], *, left: Sequence[bool], caption: str) -> str:
    """A table, titles first; `caption` is for screen readers. Cells that are `Html` stand as they are."""
    classes = [' class="left"' if at_left else "" for at_left in left]
    head = "".join(f'<th scope="col"{c}>{_cell(text)}</th>' for text, c in zip(rows[0], classes, strict=True))
    lines = []
    for row in rows[1:]:
        first, *others = zip(row, classes, strict=True)
        cells = f'<th scope="row"{first[1]}>{_cell(first[0])}</th>'
        lines.append(f"<tr>{cells}{''.join(f'<td{c}>{_cell(text)}</td>' for text, c in others)}</tr>")
    return (
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


class Html(str):
    """Text that is HTML already."""


def _cell(value: object) -> str:
    return value if isinstance(value, Html) else escape(value)


def paragraph(text: str) -> str:
    """A line of explanation."""
    return f"<p>{escape(text)}</p>"


def note(text: str) -> str:
    """A line that something is missing, and why."""
    return f'<p class="note">{escape(text)}</p>'


def details(summary: str, text: str) -> str:
    """Text that is shown when it is asked for."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def drawing(svg: str, label: str) -> str:
    """An <svg> element that screen readers name."""
    return f'<figure>{svg.replace("<svg ", f"""<svg role="img" aria-label="{escape(label)}" """, 1)}</figure>'


def bar(share: float) -> Html:
    """A share of 1 as a bar."""
    return Html(f'<span class="track"><span class="bar" style="width:{8 * share:.3f}rem"></span></span>')


def pictures(items: Sequence[tuple[np.ndarray, str, str]]) -> str:
    """Pictures [H, W, C] uint8, RGB or grey, each with a text for screen readers and a caption."""
    cells = []
    for picture, alternative, caption in items:
        fine = ' class="fine"' if max(picture.shape[:2]) < _SMALL else ""
        cells.append(
            f'<li><figure><img{fine} alt="{escape(alternative)}" src="{_encoded(picture)}">'
            f"<figcaption>{escape(caption)}</figcaption></figure></li>"
        )
    return f'<ul class="pictures">{"".join(cells)}</ul>'


def _encoded(picture: np.ndarray) -> str:
    """A data: address; small pictures without loss."""
    height, width = picture.shape[:2]
    shown = picture[..., 0] if picture.shape[2] < 3 else np.ascontiguousarray(picture[..., 2::-1])
    scale = _LONGEST / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        shown = cv2.resize(shown, size, interpolation=cv2.INTER_AREA)
    small = max(height, width) < _SMALL
    ending, kind = (".png", "image/png") if small else (".jpg", "image/jpeg")
    done, encoded = cv2.imencode(ending, shown)
    assert done
    return f"data:{kind};base64,{base64.b64encode(encoded.tobytes()).decode()}"
