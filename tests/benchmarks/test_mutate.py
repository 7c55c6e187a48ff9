"""What mutations are found, and that they are drawn with a seed."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "mutate.py"
if not PATH.exists():
    pytest.skip("a release has no benchmarks", allow_module_level=True)


@pytest.fixture(scope="module")
def mutate():
    spec = importlib.util.spec_from_file_location("mutate", PATH)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PATH.parent))
        patch.setitem(sys.modules, "mutate", module)
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("line", "mutants"),
    [
        ("σ / (n - 1)", ["σ * (n - 1)", "σ / (n + 1)", "σ / (n - 0)"]),
        ("x.var(ddof=1)", ["x.var(ddof=0)"]),
        ("a < b", ["a <= b"]),
        ("not a and b", ["not a or b", "a and b"]),
        ("x.abs() + max(y, 2)", ["x.abs() - max(y, 2)", "x + max(y, 2)",
                                 "x.abs() + min(y, 2)", "x.abs() + max(y, 3)"]),
        ("not (a or b)", ["(a or b)", "not (a and b)"]),
        ("f(x, keepdim=True)", ["f(x, keepdim=False)"]),
        ("f'{1 + 1}'", []),
    ],
)  # fmt: skip
def test_the_mutations_of_a_line(mutate, line, mutants):
    finder = mutate.Finder("a.py", line.encode())
    finder.visit(ast.parse(line))
    found = [m.apply(finder.source).decode() for m in finder.found]
    assert found == mutants


def test_every_mutation_of_a_folder_parses_and_is_drawn_again(mutate):
    found = mutate.mutations("linalg")
    assert len(found) > 500
    for m in found[::20]:
        source = (mutate.ROOT / m.file).read_bytes()
        assert ast.dump(ast.parse(m.apply(source))) != ast.dump(ast.parse(source))
    assert mutate.sample("linalg", 7, 3) == mutate.sample("linalg", 7, 3)
    assert mutate.sample("linalg", 7, 3) != mutate.sample("linalg", 7, 4)


def test_what_the_tests_say(mutate, tmp_path):
    code, tests = tmp_path / "flatmin/room", tmp_path / "tests/room"
    code.mkdir(parents=True)
    tests.mkdir(parents=True)
    (tmp_path / "flatmin/__init__.py").touch()
    source = "def half(x):\n    return x / 2 + 0 * x\n"
    (code / "_a.py").write_text(source)
    (tests / "test_a.py").write_text(
        "from flatmin.room._a import half\n\ndef test_half():\n"
        "    assert half(3) == 1.5\n"
    )

    def outcome(old, new):
        at = source.index(old)
        m = mutate.Mutation("flatmin/room/_a.py", at, at + len(old), new.encode())
        return mutate.run(m, tmp_path, 60)

    found = outcome("/", "*")
    assert (found["outcome"], found["line"]) == ("killed", 2)
    assert found["by"] == "tests/room/test_a.py::test_half"
    assert found["after"] == "return x * 2 + 0 * x"
    assert outcome("+", "-")["outcome"] == "survived"
    (tests / "test_b.py").write_text("def test_b():\n    assert False\n")
    assert outcome("+", "-")["outcome"] == "broken test"
    assert (code / "_a.py").read_text() == source
