"""Mathematics as MathML, which browsers draw by themselves: no script, no network."""

import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.errors import ExtensionError
from sphinx.writers.html5 import HTML5Translator


def mathml(node: nodes.math | nodes.math_block, *, as_block: bool) -> str:
    """Return a formula as MathML. To docutils the 12 of a fraction is one number."""
    if re.search(r"frac\s*[^{\s]", node.astext()):
        raise ExtensionError(f"Write \\frac{{1}}{{2}}. Got {node.astext()!r}.")
    return tex2mathml(node.astext(), as_block=as_block)


def visit_inline(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(mathml(node, as_block=False))
    raise nodes.SkipNode


def visit_block(translator: HTML5Translator, node: nodes.math_block) -> None:
    formula = mathml(node, as_block=True)
    translator.body.append(f'<div class="math">{formula}</div>')
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
