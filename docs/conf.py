"""How the documentation becomes a site: `make docs` builds it, warnings being errors, without a look at the network."""

from importlib.metadata import version as installed_version

from sphinx.application import Sphinx

project = "Sagittal"
author = "The Sagittal authors"
copyright = "The Sagittal authors"  # noqa: A001 - Sphinx's name for it
release = version = installed_version("sagittal")

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["conf.py"]
nitpicky = True

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


def point_at_pages(_app: Sphinx, _name: str, text: list[str]) -> None:
    """Lets links to documents elsewhere in the repository lead to the pages that include them."""
    for outside, page in PAGES.items():
        text[0] = text[0].replace(f"]({outside}", f"]({page}")


def setup(app: Sphinx) -> None:
    """Registers what is done to sources before they are read."""
    app.connect("source-read", point_at_pages)
