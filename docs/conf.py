"""How the documentation becomes a site: `make docs` builds it, warnings being errors, without a look at the network."""

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
html_copy_source = False

#: Documents that lie elsewhere in the repository, and the page that includes each.
PAGES = {
    "../helm/sagittal/README.md": "chart.md",
    "../SECURITY.md": "threats.md",
    "../CONTRIBUTING.md": "contributing.md",
    "../CHANGELOG.md": "changelog.md",
    "../README.md": "index.md",
}

#: Pages of the navigation that a release may lack.
OPTIONAL = ("models", "concepts")


#: A picture in a paragraph of its own.
PICTURE = re.compile(r"^!\[([^\]]*)\]\((images/[\w-]+)\.webp\)$", re.MULTILINE)


def point_at_pages(_app: Sphinx, _name: str, text: list[str]) -> None:
    """Lets links to documents elsewhere in the repository lead to the pages that include them."""
    for outside, page in PAGES.items():
        text[0] = text[0].replace(f"]({outside}", f"]({page}")


def add_dark_pictures(app: Sphinx, _name: str, text: list[str]) -> None:
    """Puts the drawing for dark pages beside each one that has it; the theme shows the one that fits."""

    def both(found: re.Match[str]) -> str:
        alt, stem = found[1], found[2]
        if not (Path(app.srcdir) / f"{stem}-dark.webp").exists():
            return found[0]
        alt = " ".join(alt.split())
        pictures = ((f"{stem}.webp", "only-light"), (f"{stem}-dark.webp", "only-dark"))
        return "\n\n".join(f"```{{image}} {path}\n:alt: {alt}\n:class: {kind}\n```" for path, kind in pictures)

    text[0] = PICTURE.sub(both, text[0])


def leave_out_what_is_not_written(app: Sphinx, name: str, text: list[str]) -> None:
    """Takes pages out of the navigation that this release does not have."""
    for page in OPTIONAL:
        if name == "index" and not (Path(app.srcdir) / f"{page}.md").exists():
            text[0] = text[0].replace(f"\n{page}\n", "\n")


def setup(app: Sphinx) -> None:
    """Registers what is done to sources before they are read."""
    app.connect("source-read", point_at_pages)
    app.connect("source-read", add_dark_pictures)
    app.connect("source-read", leave_out_what_is_not_written)
