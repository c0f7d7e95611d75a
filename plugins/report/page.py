"""The page: templates, the viewer, and the JSON beside it."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from plugins.files import whole_file, write_json
from plugins.report.cases import LIGHTS
from plugins.report.tables import number, spread

StrPath = str | os.PathLike[str]
PAGE, NUMBERS = "index.html", "report.json"
TEMPLATE, LIVE_TEMPLATE = "report.html.j2", "live.html.j2"
VIEWER = "niivue.umd.js.gz"
SIGNS = {"red": "✖", "amber": "▲", "green": "✔"}


@cache
def _environment() -> Environment:
    loader = PackageLoader("plugins.report")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.policies["json.dumps_kwargs"] = {"sort_keys": False}  # methods keep their order
    made.filters |= {"number": number, "spread": spread, "pretty": _pretty}
    made.globals |= {"lights": LIGHTS, "signs": SIGNS}
    return made


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def viewer_code() -> str:
    """NiiVue with its licence, to stand in a ``<script>``.

    Raises:
        RuntimeError: if it held what ends a script; it does not.
    """
    folder = files("plugins.report") / "assets"
    code = gzip.decompress((folder / VIEWER).read_bytes()).decode("utf-8")
    licence = (folder / "LICENSE").read_text(encoding="utf-8")
    if "</script" in code.lower() or "<!--" in code:
        raise RuntimeError(f"{VIEWER} cannot stand in a page")
    return f"/*! NiiVue, https://github.com/niivue/niivue\n{licence}*/\n{code}"


def render_live(content: Mapping[str, Any], media: Mapping[str, Any]) -> str:
    """The page of a run at work as text."""
    return _environment().get_template(LIVE_TEMPLATE).render(content=content, media=media)


def write_page(content: Mapping[str, Any], media: Mapping[str, Any], output_dir: StrPath) -> Path:
    """Write ``index.html``, piece by piece as its pictures are asked for, and ``report.json`` into a folder.

    Args:
        content: what goes into the JSON too: every number that the page shows.
        media: pictures, curves and volumes; ``volumes`` empty leaves the viewer out.
        output_dir: the folder.

    Returns:
        the page.
    """
    page = Path(output_dir, PAGE)
    viewer = viewer_code() if media.get("volumes") else ""
    pieces = _environment().get_template(TEMPLATE).stream(content=content, media=media, viewer=viewer)
    with whole_file(page) as part:
        pieces.dump(os.fspath(part), encoding="utf-8")
    write_json(Path(output_dir, NUMBERS), content)
    return page
