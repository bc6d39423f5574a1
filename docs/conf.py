"""How Sphinx builds the site: ``python -m sphinx -W --keep-going -n -b html docs BUILD``. Nothing is fetched from the network."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

project = "metalearn"
author = "The metalearn developers"
copyright = author
version = release = re.search(r'^version = "(.*)"', (HERE.parent / "pyproject.toml").read_text(), re.MULTILINE)[1]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "notebooks",
    "commands",
    "rooms",
    "statements",
]
exclude_patterns = ["README.md", "figures/**", "extensions/**"]
nitpick_ignore_regex = [("py:class", "Taskset|Learn2LearnMAML")]  # of learn2learn, which need not be installed

# pages
myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 4  # [a link](page.md#a-heading), as on GitHub

# reference: docstrings have Google's sections, and code between double backticks
default_role = None
add_module_names = False
autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# gallery: the scripts are run, with the numbers that stand in them; -D plot_gallery=0 makes the pages without pictures
sphinx_gallery_conf = {
    "examples_dirs": ["../examples/gallery", "../examples/bilevel"],
    "gallery_dirs": ["gallery", "bilevel_examples"],
    "filename_pattern": "/",
    "within_subsection_order": "reading_order.ReadingOrder",
    "parallel": 2,  # scripts at a time, of one thread each
    "matplotlib_animations": False,
    "download_all_examples": False,
    "min_reported_time": 3600,  # seconds of whoever built the site say nothing
    "show_memory": False,
    "show_signature": False,
    "remove_config_comments": True,
    "write_computation_times": False,
}

# looks
html_theme = "furo"
html_title = "metalearn"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"sidebar_hide_name": False}
highlight_language = "text"  # a block without a language is output
pygments_style = "friendly"
pygments_dark_style = "native"
copybutton_exclude = ".linenos, .gp, .go"

# links, of which only --builder linkcheck asks the network
linkcheck_timeout = 20
linkcheck_retries = 2
