"""Sphinx: `make docs` writes the pages to build/docs; a warning is an error there."""

import plugins

project, author, version = "TANQ bundles", "the TANQ bundles authors", plugins.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing", "myst.header"]  # links out of docs/, which hold in the repository
exclude_patterns = ["notebooks"]
napoleon_use_ivar = True
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "imported-members": True, "show-inheritance": True}
html_theme = "alabaster"
html_theme_options = {"description": "VS and cochlea in hrT2, learnt from ceT1", "fixed_sidebar": True}
