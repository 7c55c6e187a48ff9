"""How the site is built: ``tox run -e docs``, or ``sphinx-build docs docs/site``."""

import os
import sys
import warnings
from pathlib import Path

import numpydoc.xref

import flatmin

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_extensions"))

project = "flatmin"
author = "flatmin developers"
project_copyright = "flatmin developers"
release = version = flatmin.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.extlinks",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "mathml",
    "generated_pages",
    "code_blocks",
    "references",
    "stored_runs",
]
autodoc_mock_imports = ["lightning", "transformers"]
extlinks = {"doi": ("https://doi.org/%s", "doi:%s")}
if os.environ.get("FLATMIN_DOCS_ONLINE"):  # references into other packages' sites
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "numpy": ("https://numpy.org/doc/stable", None),
        "python": ("https://docs.python.org/3", None),
        "scipy": ("https://docs.scipy.org/doc/scipy", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
        "skorch": ("https://skorch.readthedocs.io/en/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }

nitpicky = True
# Without the network nobody can tell whether a name of another package exists.
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(torch|numpy|np|scipy|sklearn|skorch|pandas|matplotlib|joblib|lightning"
        r"|transformers|collections|typing|contextlib|dataclasses|abc|functools|fnmatch)"
        r"(\..*)?",
    ),
]
suppress_warnings = [
    "config.cache",  # sphinx-gallery's reset functions do not pickle
    # Two folders have a script of one name. Pages of a folder are apart.
    "sphinx_gallery.duplicate_filename",
]

source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "_generated", "_templates", "site"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

templates_path = ["_templates"]
autosummary_generate = True
autodoc_typehints = "none"
autodoc_class_signature = "mixed"
autoclass_content = "class"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
# Types of parameters and results are links where they are public names of one floor.
numpydoc_xref_param_type = True
numpydoc_xref_ignore = "all"
numpydoc.xref.DEFAULT_LINKS.clear()  # int is a word, and no page of another site
_names = [name for f in flatmin._FLOORS for name in getattr(flatmin, f).__all__]
numpydoc_xref_aliases = {
    name: f"flatmin.{name}"
    for name in _names
    if _names.count(name) == 1 and name != "Cost"  # an audit has others
}
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "pydata_sphinx_theme"
html_title = "flatmin"
html_static_path = ["_static"]
html_css_files = ["flatmin.css"]
html_show_sourcelink = False
# Pages that stand alone have no neighbours to show beside them.
html_sidebars = {
    page: [] for page in ("index", "getting_started", "reproduction", "claims")
}
html_theme_options = {
    "navbar_align": "left",
    "show_prev_next": True,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    # The others take longer, or need a launcher, a cluster or a download. What is
    # stored of them is shown.
    "filename_pattern": r"examples/plot_(analyze_any_network|noise_laws)",
    "ignore_pattern": r"^(_|report\.py|page\.py)",
    "backreferences_dir": "api/generated/backreferences",
    "doc_module": ("flatmin",),
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "write_computation_times": False,
    "min_reported_time": 1,
    "plot_gallery": "True",
}
warnings.filterwarnings("ignore", category=UserWarning, message=".*non-interactive.*")
