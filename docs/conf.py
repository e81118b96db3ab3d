"""Configuration of the documentation's site. `make docs` builds it without the network; every warning is an error."""

import re
from importlib.metadata import version as installed_version
from pathlib import Path

from sphinx.application import Sphinx

project = "Sagittal"
author = "The Sagittal authors"
copyright = "The Sagittal authors"  # noqa: A001 - Sphinx's name for it
release = version = installed_version("sagittal")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["conf.py"]
nitpicky = True
#: Types that these pages do not describe: of other libraries, and internal ones that annotations name.
nitpick_ignore_regex = [("py:.*", ".*")]

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True, "exclude-members": "DESCRIPTOR"}
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_use_rtype = False
#: Docstrings write names in single backticks.
default_role = "code"

copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
copybutton_copy_empty_lines = False

html_theme = "furo"
html_title = f"Sagittal {release}"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["tables.js"]
html_copy_source = False

#: Documents elsewhere in the repository, and the page that includes each.
PAGES = {
    "../helm/sagittal/README.md": "chart.md",
    "../SECURITY.md": "threats.md",
    "../CONTRIBUTING.md": "contributing.md",
    "../CHANGELOG.md": "changelog.md",
    "../README.md": "index.md",
}

#: A picture in a paragraph of its own.
PICTURE = re.compile(r"^!\[([^\]]*)\]\((images/[\w-]+)\.webp\)$", re.MULTILINE)


def point_at_pages(_app: Sphinx, _name: str, text: list[str]) -> None:
    """Redirects links to documents elsewhere in the repository to the pages that include them."""
    for outside, page in PAGES.items():
        text[0] = text[0].replace(f"]({outside}", f"]({page}")


def add_dark_pictures(app: Sphinx, _name: str, text: list[str]) -> None:
    """Adds the drawing for dark pages beside the one for light pages, if there is one; the theme shows one of them."""

    def both(found: re.Match[str]) -> str:
        alt, stem = found[1], found[2]
        if not (Path(app.srcdir) / f"{stem}-dark.webp").exists():
            return found[0]
        alt = " ".join(alt.split())
        pictures = ((f"{stem}.webp", "only-light"), (f"{stem}-dark.webp", "only-dark"))
        return "\n\n".join(f"```{{image}} {path}\n:alt: {alt}\n:class: {kind}\n```" for path, kind in pictures)

    text[0] = PICTURE.sub(both, text[0])


def setup(app: Sphinx) -> None:
    """Registers the changes of sources before they are read."""
    app.connect("source-read", point_at_pages)
    app.connect("source-read", add_dark_pictures)
