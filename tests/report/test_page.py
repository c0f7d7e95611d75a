"""The viewer's code is the published one, and it is in what is installed and exported."""

import gzip
import hashlib
import re
from pathlib import Path

import plugins.report
from plugins.report.page import VIEWER, viewer_code

ASSETS = Path(plugins.report.__file__).parent / "assets"


def test_the_viewer_is_the_one_that_is_written_down():
    code, told = gzip.decompress((ASSETS / VIEWER).read_bytes()), (ASSETS / "README.md").read_text()
    assert hashlib.sha256(code).hexdigest() in told
    assert f"{len(code):,} bytes" in told
    assert re.search(rb'"0\.69\.0"', code)


def test_the_page_carries_the_licence_of_the_viewer():
    code = viewer_code()
    assert "Copyright (c) 2021, Niivue" in code[:2000]
    assert "</script" not in code.lower()
