"""The revision is that of the code that ran, and the command names no folder."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flatmin import compare_dynamics
from flatmin._utils.versions import list_versions
from flatmin.comparison import _compare, _revision
from flatmin.comparison._revision import describe_command, find_revision

from ._problems import classifier, digits

VERSION = f"flatmin {list_versions()['flatmin']}"
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@pytest.fixture
def checkout(tmp_path):
    """Return a package in a repository of its own, and what runs git there."""
    package = tmp_path / "repo" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package.parent / "README.md").write_text("one")
    (package.parent / ".gitignore").write_text("ignored.py\n")

    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=0"]
        command = ["git", *who, *arguments]
        found = subprocess.run(
            command, cwd=package, check=True, capture_output=True, text=True
        )
        return found.stdout.strip()

    git("init", "-q", "..")
    git("add", "..")
    git("commit", "-qm", "all")
    return package, git


@needs_git
def test_the_commit_and_whether_the_tree_is_that(checkout, monkeypatch):
    package, git = checkout
    commit = git("rev-parse", "HEAD")
    assert len(commit) == 40
    assert find_revision(package) == commit
    # What a run writes does not change it, nor what git is told to ignore.
    (package.parent / "a.json").write_text("{}")
    (package / "ignored.py").write_text("")
    # As inside a hook of another repository.
    monkeypatch.setenv("GIT_DIR", str(package / "nowhere"))
    assert find_revision(package) == commit
    monkeypatch.delenv("GIT_DIR")
    module = package / "new.py"
    module.write_text("")
    assert find_revision(package) == f"{commit}+changes"
    module.unlink()
    (package.parent / "README.md").write_text("two")
    assert find_revision(package) == f"{commit}+changes"
    git("add", "..")
    assert find_revision(package) == f"{commit}+changes"
    git("commit", "-qm", "two")
    assert find_revision(package) == git("rev-parse", "HEAD") != commit


@needs_git
def test_a_package_inside_the_checkout_of_something_else(checkout):
    package, _ = checkout
    installed = package / "site-packages" / "flatmin"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert find_revision(installed) == VERSION


def test_no_checkout_and_no_git(tmp_path, monkeypatch):
    (tmp_path / "__init__.py").write_text("")
    assert find_revision(tmp_path) == VERSION

    def missing(*arguments, **settings):
        raise FileNotFoundError("git")

    monkeypatch.setattr(_revision.subprocess, "run", missing)
    assert find_revision() == VERSION


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/usr/bin/python3", "/home/me/plot.py", "--full"], "python3 plot.py --full"),
        (["python", "examples/paper/plot.py"], "python examples/paper/plot.py"),
        (
            ["python", "-u", "-W", "ignore", "a/b.py", "-c"],
            "python -u -W ignore a/b.py -c",
        ),
        (["python", "-m", "pytest", "/a/b.py"], "python -m pytest b.py"),
        (["python", "-c", "open('/a')", "/a/b", "1"], "python -c ... b 1"),
        (["/v/bin/pytest", "x.py"], "pytest x.py"),
        (["python", "p.py", "--out", "../results/"], "python p.py --out results"),
        (["python", "p.py", "--out=/me/my results/x"], "python p.py --out=x"),
        (["python", "p.py", "/me/my results/x y"], "python p.py 'x y'"),
        (["python", "p.py", "~/a", "in:/b/c,/d/e"], "python p.py a in:c,e"),
        (["python", "p.py", r"C:\Users\me\x.json"], "python p.py x.json"),
        (["python", "p.py", "--lr", "1/3", "a/b"], "python p.py --lr 1/3 a/b"),
        ([], "python"),
    ],
)
def test_commands(argv, expected, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert describe_command(argv) == expected


def test_paths_inside_the_working_directory_stay(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    found = describe_command(["python", "p.py", "results/a.json", "--to=results/b"])
    assert found == "python p.py results/a.json --to=results/b"
    inside = describe_command(["python", str(tmp_path / "p.py"), "../x/y", "."])
    assert inside == "python p.py y ."


def test_the_command_is_that_of_this_process():
    assert describe_command().startswith(Path(sys.orig_argv[0]).name)


def test_each_result_says_it_once_for_all_workers(monkeypatch, tmp_path):
    calls = []
    given = _compare.provenance

    def counted(device):
        calls.append(device)
        return given(device)

    monkeypatch.setattr(_compare, "provenance", counted)
    X, y, *_ = digits()
    settings = {"estimator": classifier(memory=str(tmp_path / "memory"))}
    settings |= {"n_seeds": [0, 1], "checkpoint_dir": tmp_path / "units"}
    seen = []
    found = compare_dynamics(["gd"], X, y, n_jobs=2, on_unit=seen.append, **settings)
    assert len(calls) == 1
    (origin,) = found.provenance
    assert origin["revision"] == find_revision()
    assert origin["command"] == describe_command()
    assert [unit.provenance for unit in seen] == [[origin]] * 2
    # A later call, from another revision, names the one of what it takes.
    monkeypatch.setattr(_compare, "provenance", lambda device: {"revision": "later"})
    again = compare_dynamics(["gd"], X, y, **settings)
    assert again.provenance == [origin]
    found.to_json(tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    for folder in (tmp_path, Path.cwd(), Path(sys.executable).parent, Path.home()):
        assert str(folder) not in text
