"""How docstrings refer: public names without their floor, and bars as norms."""

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


def setup(app):
    Inliner.dispatch["|"] = bar
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
