"""A doctest ends in an empty line before the fence, which no reader needs to see."""

from docutils import nodes


def strip(app, doctree) -> None:
    for block in doctree.findall(nodes.literal_block):
        if block.children == [*block.findall(nodes.Text)]:  # one text, not coloured yet
            text = block.astext().rstrip("\n")
            block.children = []
            block += nodes.Text(text)
            block.rawsource = text


def setup(app):
    app.connect("doctree-read", strip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
