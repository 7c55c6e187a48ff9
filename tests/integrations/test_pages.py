"""The programs on the pages of other packages run as they stand, in an empty folder."""

import re
from pathlib import Path

import pytest

HOWTO = Path(__file__).parents[2] / "docs" / "howto"

# Of the other packages, which warn about much.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("page", "package", "printed"),
    [
        ("hugging_face", "transformers", "2 eigenpairs"),
        ("language_model", "transformers", "gradients"),
        ("lightning", "lightning", "max_eigenvalue"),
        ("trackers", "tensorboard", ""),
    ],
)
def test_page(page, package, printed, tmp_path, monkeypatch, capsys):
    pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    text = (HOWTO / f"{page}.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    program = "\n".join(block for block in blocks if ">>>" not in block)
    exec(compile(program, f"{page}.md", "exec"), {"__name__": "__main__"})
    assert printed in capsys.readouterr().out
