"""Which code a function runs: its own, what it reaches, and whose it is."""

from __future__ import annotations

import dis
import hashlib
import importlib
import platform
import sys
import sysconfig
import types
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["find_package", "globals_of", "package_version", "summarize"]

_OWN_FOLDER = Path(__file__).resolve().parent.parent
_INSTALLED = ("site-packages", "dist-packages")


def summarize(code: types.CodeType) -> list[Any]:
    """Describe what compiled code does, and the functions that it makes.

    Parameters
    ----------
    code : code object

    Returns
    -------
    list
        Of bytes, strings, numbers and lists of them.
    """
    constants: list[Any] = []
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            constants.append(summarize(constant))
        elif isinstance(constant, frozenset):
            constants.append(sorted(map(repr, constant)))
        else:
            constants.append(repr(constant))
    names = [*code.co_names, *code.co_varnames, *code.co_freevars, *code.co_cellvars]
    kinds = [code.co_flags, code.co_argcount, code.co_posonlyargcount]
    kinds.append(code.co_kwonlyargcount)
    return [code.co_code, names, constants, code.co_exceptiontable, kinds]


def globals_of(
    function: types.FunctionType,
) -> tuple[dict[str, Any], frozenset[str], frozenset[str]]:
    """Return the globals and modules that the code of a function reads.

    Parameters
    ----------
    function : function

    Returns
    -------
    found : dict of str to object
        By their names in the code. What it imports by itself is imported now.
    names : frozenset of str
        All global names and names of attributes in the code.
    handed : frozenset of str
        Those of the found that it does more with than to read an attribute.
    """
    found: dict[str, Any] = {}
    names: set[str] = set()
    handed: set[str] = set()
    own_globals = function.__globals__
    for code in _with_inner(function.__code__):
        names.update(code.co_names)
        instructions = list(dis.get_instructions(code))
        for place, instruction in enumerate(instructions):
            name = instruction.argval
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                if name in own_globals:
                    found[name] = own_globals[name]
                    after = instructions[place + 1].opname
                    if after not in ("LOAD_ATTR", "LOAD_METHOD"):
                        handed.add(name)
            elif instruction.opname == "IMPORT_NAME":
                # Its operands are pushed before it: the level, what is taken from it.
                level, taken = (i.argval for i in instructions[place - 2 : place])
                module = _import(name, level, taken or (), own_globals)
                if module is not None:
                    found[name] = module
    return found, frozenset(names), frozenset(handed)


def find_package(module: str | None, file: str | None) -> str | None:
    """Return the installed package that code is of.

    Parameters
    ----------
    module : str or None
        The name of its module, if it has one.
    file : str or None
        Where it was compiled from; None is the file of the module.

    Returns
    -------
    str or None
        "Python" for what comes with it; None for the user's own code, which lies
        elsewhere or in no file. An editable installation is the user's own, but for
        this package, which counts as one thing wherever it lies.
    """
    if not (module is None or isinstance(module, str)) or str(module)[:8] == "_cython_":
        return "Python"  # made by a compiler
    root = (module or "").partition(".")[0]
    if file is None or file.startswith("<"):
        if root in ("", "__main__"):
            return None
        loaded = sys.modules.get(module or "") or sys.modules.get(root)
        # Its file before its name: trace.py may be the user's, beside the script.
        file = getattr(loaded, "__file__", None)
        if file is None:
            known = root in sys.builtin_module_names or root in sys.stdlib_module_names
            return "Python" if known else None
    return _package_of(file)


@cache
def _package_of(file: str) -> str | None:
    path = Path(file)
    if _OWN_FOLDER in path.parents or _OWN_FOLDER in path.resolve().parents:
        return "flatmin"
    for place, part in enumerate(path.parts):
        if part in _INSTALLED and place + 1 < len(path.parts):
            # A function may bear the name of the one that it wraps.
            return path.parts[place + 1].partition(".")[0]
    standard = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    if file.startswith("<") or any(str(path).startswith(each) for each in standard):
        return "Python"
    return None


@cache
def package_version(name: str) -> str:
    """Return the version of a package, or of Python.

    Parameters
    ----------
    name : str
        Of an imported package, or "Python".

    Returns
    -------
    str
        Without what tells one build of a version from another. Of this package, if it
        is not installed but lies in a working tree, also a hash of its files.
    """
    if name == "Python":
        return ".".join(platform.python_version_tuple()[:2])
    if name == "flatmin" and not {*_INSTALLED} & {*_OWN_FOLDER.parts}:
        return _OWN_FILES
    found = getattr(sys.modules.get(name), "__version__", None)
    if not isinstance(found, str):
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "unknown"
    return found.partition("+")[0]


def _with_inner(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _with_inner(constant)


def _import(
    name: str, level: int, taken: Sequence[str], own_globals: dict[str, Any]
) -> types.ModuleType | None:
    """Import what a function would, or return None if it would fail."""
    try:
        module = importlib.import_module(
            "." * level + name, own_globals.get("__package__")
        )
        for part in taken:
            if not hasattr(module, part):
                importlib.import_module(f"{module.__name__}.{part}")
    except (Exception, SystemExit):  # the function may have another way then
        return None
    return module


def _hash_own_files() -> str:
    found = hashlib.sha256()
    for path in sorted(_OWN_FOLDER.rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()


# Read when it is imported: later the files may say something else than what runs.
_OWN_FILES = "" if {*_INSTALLED} & {*_OWN_FOLDER.parts} else _hash_own_files()
