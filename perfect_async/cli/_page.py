"""A page with the thumbnails of the styles, for a browser.

It is one file without scripts. Only the thumbnails come from elsewhere: from the vendor, by https.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from html import escape
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Final

from perfect_async.cli._output import print_error, print_line
from perfect_async.errors import ConfigurationError

if TYPE_CHECKING:
    from perfect_async.reports import Template

_HEAD: Final = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src https:; style-src 'unsafe-inline'">
<meta name="referrer" content="no-referrer">
<title>Styles for avatars</title>
<style>
  :root { color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; }
  body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
  h2 { margin: 2rem 0 .75rem; font-size: 1.1rem; }
  ul { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: 1rem;
    margin: 0; padding: 0; list-style: none; }
  figure { margin: 0; }
  img, .none { display: grid; place-content: center; width: 100%; aspect-ratio: 3 / 4;
    object-fit: cover; border-radius: .5rem; background: color-mix(in srgb, canvastext 8%, canvas);
    }
  code { display: block; overflow-wrap: anywhere; user-select: all; font-size: .85rem; }
</style>
<h1>Styles for avatars</h1>
<p>The id below a picture goes into <code>perfect-async avatar PICTURE --template ID</code></p>
"""


def page(templates: Iterable[Template]) -> str:
    """Return the page as HTML; texts of the vendor are escaped."""
    ordered = sorted(templates, key=lambda one: one.category)
    parts = [_HEAD]
    for category, group in groupby(ordered, key=lambda one: one.category):
        parts.append(f"<h2>{escape(category) or 'Others'}</h2>\n<ul>\n")
        parts += map(_figure, group)
        parts.append("</ul>\n")
    return "".join(parts)


def _figure(template: Template) -> str:
    picture = '<span class="none">no picture</span>'
    if template.thumb is not None:
        source, alt = escape(template.thumb), escape(template.title)
        picture = f'<img src="{source}" alt="{alt}" loading="lazy" width="240" height="320">'
    title, name = escape(template.title), escape(template.id)
    return (
        f"<li><figure>{picture}<figcaption>{title}<code>{name}</code></figcaption></figure></li>\n"
    )


def show_page(templates: Iterable[Template]) -> None:
    """Write the page to a temporary file, open it in a browser, and print its path.

    The file stays, since the browser may read it later. Raises `ConfigurationError`
    where it cannot be written.
    """
    # Only this command needs them.
    import tempfile
    import webbrowser

    try:
        descriptor, name = tempfile.mkstemp(".html", "perfect-async-templates-")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
            file.write(page(templates))
    except OSError as exc:
        raise ConfigurationError(f"the page cannot be written: {exc.strerror}.") from exc
    path = Path(name)
    print_line(str(path))
    if not webbrowser.open(path.as_uri()):
        print_error("no browser was found: open that file in one.")
