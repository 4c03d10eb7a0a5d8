"""The documentation site: `sphinx-build -W -b html docs docs/_build/html` runs every code cell on its pages."""

import os
import re

import shtopk

# The cells' own processes: on the CPU everywhere, so that the pages show the same anywhere.
os.environ["JAX_PLATFORMS"] = "cpu"

project = "shtopk"
copyright = "the shtopk authors"
release = version = shtopk.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "examples", "figures"]
nitpicky = True
# JAX and Python are not indexed here, nor is what is private.
nitpick_ignore_regex = [("py:.*", r"(?!shtopk\.[A-Za-z]).*")]

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

nb_execution_mode = "cache"  # `docs/_build` keeps what a page printed until its code changes
nb_execution_raise_on_error = True
nb_execution_timeout = 180
nb_output_stderr = "warn"  # a warning on a page is a failure of the build
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 60
napoleon_use_ivar = True
napoleon_attr_annotations = False  # docstrings say shapes, which is more
default_role = "code"  # docstrings are plain text with code in backticks

highlight_options = {"python": {"stripnl": True}}  # a piece of a file ends in blank lines

html_theme = "furo"
html_title = f"shtopk {release}"
html_static_path = ["_static"]
html_css_files = ["shtopk.css"]
copybutton_prompt_text = ">>> "
copybutton_only_copy_prompt_lines = True


def every_public_name_is_documented(app, env):
    documented = env.get_domain("py").objects
    missing = [
        name for name in vars(shtopk) if not name.startswith("_") and f"shtopk.{name}" not in documented
    ]
    if missing:
        raise ValueError(f"docs/api.md leaves out {', '.join(missing)}")


def plain_signature(app, what, name, thing, options, signature, returns):
    if name == "shtopk.Boost":
        return "", returns  # a protocol is not called; its `__call__` says what is
    # `jax.typing.ArrayLike` is a union of eight types, which is how a signature has it.
    return signature and re.sub(
        r"~?[\w.]+\.Array \| ~?numpy\.ndarray.*?complex", "ArrayLike", signature
    ), returns


def setup(app):
    app.connect("autodoc-process-signature", plain_signature)
    app.connect("env-check-consistency", every_public_name_is_documented)
