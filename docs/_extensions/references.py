"""How docstrings refer: public names without their floor, and bars as norms."""

import inspect

from docutils.parsers.rst.states import Inliner


def resolve(app, env, node, contnode):
    """Find a name on whichever floor it lies: ``flatmin.EmpiricalRisk.audit``."""
    if node.get("refdomain") != "py" or node.get("refspecific"):
        return None
    node["refspecific"] = True  # any object whose name ends so; two are a warning
    target = node["reftarget"].removeprefix("flatmin.")
    return env.get_domain("py").resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], target, node, contnode
    )


def bar(inliner, match, lineno):
    """Take |λ| as it stands. In reStructuredText it would be a substitution."""
    end = match.end("start")
    return match.string[:end], [], match.string[end:], []


def signature(app, what, name, obj, options, text, returns):
    """Give an adapter its own signature, and not that of a base that is not there."""
    if what != "class" or not name.startswith("flatmin.integrations."):
        return None
    _, *own = inspect.signature(obj.__init__).parameters.values()
    bare = [parameter.replace(annotation=parameter.empty) for parameter in own]
    return str(inspect.Signature(bare)), None


def setup(app):
    app.connect("autodoc-process-signature", signature)
    Inliner.dispatch["|"] = bar
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
