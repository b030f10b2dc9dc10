"""The site of these pages: ``sphinx-build -W -b html docs site``."""

import flowmc

project = "flowmc"
author = "the authors of flowmc"
copyright = f"2026, {author}"
version = release = flowmc.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath", "deflist"]
# Headings that pages link to, as GitHub names them.
myst_heading_anchors = 3

autodoc_member_order = "groupwise"
autodoc_typehints = "none"
napoleon_use_ivar = True
napoleon_use_rtype = False

# Words of docstrings that several classes have as attributes.
suppress_warnings = ["ref.python"]

# Blocks without a language are output and commands.
highlight_language = "text"

html_theme = "furo"
html_title = f"flowmc {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
