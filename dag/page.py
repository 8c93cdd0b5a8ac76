"""One HTML page with all tables and figures, which opens from the disk in any browser."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from html import escape
from pathlib import Path

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h2 { margin-top: 3rem; border-bottom: 1px solid #ccc; }
img { width: min(100%, 52rem); height: auto; }
table { border-collapse: collapse; font-size: 14px; }
td { border-top: 1px solid #ddd; padding: .5rem; vertical-align: top; }
td:first-child { white-space: nowrap; font-weight: 600; }
small { color: #666; }
pre { overflow-x: auto; background: #f6f6f6; padding: 1rem; font-size: 13px; line-height: 1.35; }
.notice { background: #fff6d6; padding: .75rem 1rem; border-left: 4px solid #e0b000; }
"""


def page(title: str, description: str, products: Mapping[str, Mapping], folder: Path) -> str:
    """The page as HTML.

    Parameters
    ----------
    title, description : str
        Of the experiment; the description says what its numbers may be compared with.
    products : mapping
        Tables (entries with "layout") and figures (entries with "kind") by name, in order.
    folder : Path
        Results of the experiment: tables/ and figures/ lie below; links are relative to it.
    """
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="notice">{escape(description)}</p>']
    parts += ['<h2 id="claims">What of the paper\'s claims holds</h2>', _claims(folder / "tables" / "claims.csv")]
    parts.append(_links("tables/claims", ("csv", "md")))
    for name, entry in products.items():
        parts.append(f'<h2 id="{name}">{escape(entry["title"])}</h2>')
        if "description" in entry:
            parts.append(f"<p>{escape(entry['description'])}</p>")
        if "layout" in entry:
            parts.append(_image(f"tables/{name}.svg", entry["title"]))
            text = (folder / "tables" / f"{name}.md").read_text(encoding="utf-8")
            parts.append(_details("Numbers, with standard errors, on float and on 8-bit images", text))
            parts.append(_links(f"tables/{name}", ("csv", "md", "tex", "png")))
        elif entry["kind"] == "gallery":
            parts.append(f'<p><a href="galleries/{name}/index.html">Look at every image</a></p>')
        else:
            parts.append(_image(f"figures/{name}.svg", entry["title"]))
            kinds = ("png",) if entry["kind"] == "examples" else ("csv", "png")
            parts.append(_links(f"figures/{name}", kinds))
    for name, title in (("perceptibility", "Perceptibility"), ("statuses", "How the attacks ended")):
        parts += _text_table(name, title, folder)
    parts.append('<p><small>What made these results: <a href="provenance.json">provenance.json</a></small></p>')
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _claims(path: Path) -> str:
    """The table of claims: verdict, claim with the paper's section, what was found, how it was decided."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = [
            f"<tr><td>{escape(row['verdict'])}</td><td>{escape(row['claim'])} ({_place(row['paper'])})</td>"
            f"<td>{escape(row['value'])}<br><small>{escape(row['measure'])}</small></td></tr>"
            for row in csv.DictReader(file)
        ]
    return "<table>\n" + "\n".join(rows) + "\n</table>"


def _place(paper: str) -> str:
    """Where the paper makes a claim: its section, or a remark in words."""
    return escape(f"section {paper}" if paper[:1].isdigit() else paper)


def _text_table(name: str, title: str, folder: Path) -> list[str]:
    """A table that is always made, as its Markdown."""
    text = (folder / "tables" / f"{name}.md").read_text(encoding="utf-8")
    return [
        f'<h2 id="{name}">{escape(title)}</h2>',
        f"<pre>{escape(text)}</pre>",
        _links(f"tables/{name}", ("csv", "md")),
    ]


def _image(path: str, text: str) -> str:
    return f'<p><img src="{path}" alt="{escape(text, quote=True)}"></p>'


def _details(summary: str, text: str) -> str:
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def _links(stem: str, suffixes: tuple[str, ...]) -> str:
    return "<p>" + " · ".join(f'<a href="{stem}.{suffix}">{suffix.upper()}</a>' for suffix in suffixes) + "</p>"
