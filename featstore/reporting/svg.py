"""Matplotlib figures as elements of an HTML page."""

from __future__ import annotations

import re
from html import escape
from io import StringIO

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle

_NOT_KEPT = re.compile(
    r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->"
    r'| xmlns(:xlink)?="[^"]*"| font-family: [^;"]*;| transform="rotate\(-?0 [^"]*"',
    flags=re.DOTALL,
)


def inline_svg(ax: Axes, name: str, alt: str) -> Markup:
    """The figure of `ax` as an <svg> element with its text left as text.

    Parameters
    ----------
    ax : any axes of the figure
    name : unique in the page; ids in the element start with it
    alt : what a reader who cannot see it is told
    """
    figure = ax.figure
    assert isinstance(figure, Figure)  # not a subfigure: ours have none
    buffer = StringIO()
    unused = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(
            buffer,
            format="svg",
            bbox_inches=figure.get_tightbbox().padded(0.03),  # "tight" would draw it twice
            transparent=True,
            metadata=unused,
        )
    return Markup(_for_page(buffer.getvalue(), name, alt))


def marker_svg(marker: str) -> Markup:
    """A small <svg> element of one of Matplotlib's markers, in the colour of the text around it."""
    style = MarkerStyle(marker)
    (polygon, *_) = style.get_path().transformed(style.get_transform()).to_polygons()
    points = " ".join(f"{x:.3f},{-y:.3f}" for x, y in np.asarray(polygon, dtype=float))
    return Markup(
        '<svg class="marker" viewBox="-.7 -.7 1.4 1.4" aria-hidden="true">'
        '<polygon points="{}" fill="currentColor"/></svg>'
    ).format(points)


def _for_page(text: str, name: str, alt: str) -> str:
    """The <svg> element of a file, without what only a file needs.

    A group whose id is `tip:TEXT` gets that text as its tooltip. Ids are made unique or dropped,
    and a <style> would hold for the whole page.
    """
    prefix = re.sub(r"[^a-zA-Z0-9]+", "-", name)
    text = _NOT_KEPT.sub("", text[text.index("<svg") :])
    text = re.sub(r'<g id="tip:([^"]*)">', r"<g><title>\1</title>", text)
    used = set(re.findall(r'href="#([^"]*)"', text)) | set(re.findall(r"url\(#([^)]*)\)", text))

    def renamed(match: re.Match[str]) -> str:
        return f' id="{prefix}-{match[1]}"' if match[1] in used else ""

    text = re.sub(r' id="([^"]*)"', renamed, text)
    text = text.replace('href="#', f'href="#{prefix}-').replace("url(#", f"url(#{prefix}-")
    text = re.sub(r"\s*\n\s*", "\n", text)
    points = re.search(r'width="([0-9.]+)pt"', text)
    width = f"{float(points[1]) * 4 / 3:.0f}" if points else "600"  # in CSS pixels
    text = re.sub(r'width="[^"]*pt" height="[^"]*pt"', f'style="--width: {width}px"', text, count=1)
    return text.replace(
        "<svg ", f'<svg role="img" aria-label="{escape(alt)}" data-name="{prefix}" ', 1
    )
