"""Values and the code that they run, described alike in every process."""

from __future__ import annotations

import copyreg
import io
import logging
import re
import threading
import types
import weakref
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from functools import partial, partialmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flatmin._runs.code import find_package, globals_of, package_version, summarize
from flatmin._runs.digest import hash_description
from flatmin._runs.objects import (
    cells_of,
    is_hidden,
    is_shown,
    name_of,
    origin_of,
    state_of,
)

__all__ = ["Description"]

_PLAIN = (str, bytes, bool, int, float, complex, type(None))
_CustomOp = torch._library.custom_ops.CustomOpDef
_CONTAINERS = (Mapping, list, tuple, Set, np.ndarray)
_OF_EVERY_MODULE = vars(nn.Module()).keys()
# What an object of these does is not a matter of its state.
_STATELESS = (type(threading.Lock()), type(threading.RLock()), threading.local)
# Known by their names: what they say of themselves holds objects of a compiler.
_OPERATORS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
# What Python makes of a class by itself, but for methods.
_MADE_BY_PYTHON = re.compile(r"(?!__match_args__)__\w+__|_abc_impl")
_OF_TYPES = ("builtins", "typing")
_METHODS = (types.FunctionType, staticmethod, classmethod, property, partialmethod)


class Description:
    """Describes values, and remembers the code that it has met on the way.

    Kinds that ``pickle`` refuses, or that say too little or too much of themselves, are
    known here; anything else is described by what ``pickle`` would keep of it.
    """

    def __init__(self) -> None:
        self._above: list[int] = []  # the ids of the values that hold this one
        self._ahead: list[types.FunctionType] = []  # whose code is not followed yet
        # Two things may have one name, such as two lambdas of one function.
        self._code: dict[str, set[str]] = {}
        # With the thing itself: another one could have its id after it.
        self._objects: dict[int, tuple[Any, Any]] = {}
        self._modules: dict[tuple[int, frozenset[str]], types.ModuleType] = {}

    def follow(self) -> None:
        """Describe what the code met so far reaches, and what that reaches."""
        # One after the other: a chain of calls may be longer than Python's stack.
        while self._ahead:
            self._reach(self._ahead.pop())

    def code(self) -> dict[str, str]:
        """Return the hashes of the code met so far, by its name."""
        return {name: " ".join(sorted(found)) for name, found in self._code.items()}

    def of(self, value: Any) -> Any:
        """Describe a value, by its kind."""
        if isinstance(value, np.generic):
            value = value.item()
        if type(value) in _PLAIN:
            return value
        if isinstance(value, type):
            return self._class(value)
        if id(value) in self._above:
            return "itself"
        if id(value) in self._objects:
            return self._objects[id(value)][1]
        self._above.append(id(value))
        try:
            if isinstance(value, Tensor):
                return self._derived(value, self._tensor(value))
            if isinstance(value, _CONTAINERS):
                return self._derived(value, self._container(value))
            described = self._object(value)
        finally:
            self._above.pop()
        self._objects[id(value)] = value, described
        return described

    def _derived(self, value: Any, content: Any) -> Any:
        """Add to what a container holds what its class and attributes do."""
        kind = type(value)
        if isinstance(value, np.ma.MaskedArray):
            content = [content, np.ma.getmaskarray(value)]
        elif isinstance(value, defaultdict):
            content = [content, self.of(value.default_factory)]
        own = find_package(kind.__module__, None) is None
        added = {}
        if own or isinstance(value, Tensor):
            # Private attributes of tensors are notes of PyTorch's compiler.
            attributes = dict(getattr(value, "__dict__", {}))
            for name in copyreg._slotnames(kind) if own else ():  # type: ignore[attr-defined]
                attributes[name] = getattr(value, name, None)
            added = {k: self.of(v) for k, v in attributes.items() if own or k[0] != "_"}
        if own or added:
            return [self._class(kind), added, content]
        return content

    def _tensor(self, tensor: Tensor) -> Any:
        if tensor.layout is not torch.strided:
            parts = tensor.detach().to_sparse_coo().coalesce()
            indices, values = self.of(parts.indices()), self.of(parts.values())
            return [str(tensor.layout), list(parts.shape), indices, values]
        dense = tensor.detach().as_subclass(Tensor).cpu().resolve_conj().resolve_neg()
        try:
            return np.ascontiguousarray(dense.numpy())
        except TypeError:  # NumPy has no such numbers
            dense = dense.contiguous()
            return [
                str(dense.dtype),
                list(dense.shape),
                dense.view(torch.uint8).numpy(),
            ]

    def _container(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            if value.dtype.hasobject or value.dtype.kind == "T":
                return self.of(value.tolist())
            return np.ascontiguousarray(value)
        if isinstance(value, Mapping):
            if all(isinstance(key, str) for key in value):
                return {str(key): self.of(item) for key, item in value.items()}
            return self._unordered([key, item] for key, item in value.items())
        if isinstance(value, Set):
            return self._unordered(value)
        return [self.of(item) for item in value]

    def _unordered(self, values: Iterable[Any]) -> list[Any]:
        return sorted((self.of(value) for value in values), key=hash_description)

    def _object(self, value: Any) -> Any:
        if isinstance(value, types.FunctionType):
            value = getattr(value, "_torchdynamo_orig_callable", value)
            return self._function(value)
        if isinstance(value, torch.jit.ScriptFunction):
            return self._graph(value.inlined_graph)
        if isinstance(value, _OPERATORS):
            return [type(value).__qualname__, str(value)]
        if isinstance(value, _CustomOp):
            registered = {"_lib", "_opoverload"}
            attributes = {k: v for k, v in vars(value).items() if k not in registered}
            return [type(value).__qualname__, self.of(attributes)]
        if isinstance(value, types.BuiltinFunctionType):
            owner = value.__self__
            if isinstance(owner, types.ModuleType | type | None):
                owner = None
            return [value.__module__, value.__qualname__, self.of(owner)]
        if isinstance(value, types.MethodType):
            return [self.of(value.__func__), self.of(value.__self__)]
        if isinstance(value, types.ModuleType):
            return self._python_module(value, frozenset())
        if isinstance(value, staticmethod | classmethod):
            return [type(value).__name__, self.of(value.__func__)]
        if isinstance(value, property):
            return [self.of(part) for part in (value.fget, value.fset, value.fdel)]
        if isinstance(value, types.GetSetDescriptorType | types.MemberDescriptorType):
            return value.__name__  # a slot has nothing but its name
        if isinstance(value, partial | partialmethod):
            return [self.of(part) for part in (value.func, value.args, value.keywords)]
        if isinstance(value, nn.Module):
            return self._module(getattr(value, "_orig_mod", value))
        if isinstance(value, torch.Generator):
            return [str(value.device), self.of(value.get_state())]
        if isinstance(value, logging.Logger):
            return [type(value).__qualname__, value.name]
        if isinstance(value, io.IOBase):
            return [type(value).__qualname__, str(getattr(value, "name", ""))]
        if isinstance(value, weakref.ref):
            return self.of(value())
        if isinstance(value, _STATELESS) or is_shown(value) or is_hidden(value):
            return type(value).__qualname__
        kind = type(value)
        own = find_package(kind.__module__, None) is None
        if not own and callable(value) and hasattr(value, "__wrapped__"):
            return [self._class(kind), self.of(value.__wrapped__)]
        return [self._class(kind), hash_description(self.of(state_of(value)))]

    def _class(self, kind: type) -> Any:
        package = self._add_package(kind.__module__, None)
        if package is None and id(kind) not in self._objects:
            name = name_of(kind)
            self._objects[id(kind)] = kind, name  # its methods may name it
            own = {
                key: self.of(value)
                for key, value in vars(kind).items()
                if not isinstance(value, types.MemberDescriptorType)
                if isinstance(value, _METHODS)
                or not _MADE_BY_PYTHON.fullmatch(key)
                # An object can be called as a method, too.
                or (callable(value) and type(value).__module__ not in _OF_TYPES)
            }
            bases = [self.of(base) for base in (*kind.__bases__, type(kind))]
            self._add_code(f"the class {'.'.join(map(str, name))}", [own, bases])
        return name_of(kind)

    def _function(self, function: types.FunctionType) -> Any:
        name = [function.__module__, function.__qualname__]
        code = function.__code__
        registry = vars(function).get("registry")
        made_by = function.__globals__.get("__name__")
        if registry and made_by == "functools":  # of singledispatch
            return [*name, self.of(registry)]  # it also holds a cache
        package = self._add_package(*origin_of(function))
        described: list[Any] = [*name]
        # The version of a package tells what its functions do. A lambda or an inner
        # function has no name that tells which one it is.
        if package is None or "<" in function.__qualname__:
            described.append(summarize(code))
        described += [
            self.of(function.__defaults__),
            self.of(function.__kwdefaults__),
            [self.of(content) for content in cells_of(function)],
            {k: self.of(v) for k, v in vars(function).items() if k != "__wrapped__"},
        ]
        if package is None:
            self._code["Python"] = {package_version("Python")}
            label = f"the function {'.'.join(map(str, name))}"
            self._add_code(label, described)
            self._ahead.append(function)
        return described

    def _reach(self, function: types.FunctionType) -> None:
        """Describe what the code of a function reads beside its arguments."""
        found, names, handed = globals_of(function)
        for name, value in found.items():
            if isinstance(value, types.ModuleType):
                self._python_module(value, frozenset() if name in handed else names)
            else:
                self._global(f"{function.__module__}.{name}", value)

    def _global(self, name: str, value: Any) -> None:
        try:
            described = self.of(value)
        except TypeError as error:
            raise TypeError(f"the global {name}: {error}") from error
        # Functions and classes have an entry of their own. What a package makes of a
        # function of the user's, such as torch.func.grad(f, argnums=1), has none.
        if isinstance(value, types.FunctionType):
            has_entry = not (value.__closure__ and self._is_packaged(value))
        else:
            has_entry = isinstance(value, type)
        if not has_entry:
            self._add_code(f"the global {name}", described)

    def _is_packaged(self, function: types.FunctionType) -> bool:
        return find_package(*origin_of(function)) is not None

    def _python_module(self, module: types.ModuleType, names: frozenset[str]) -> str:
        """Describe what code that has these names in it may take from a module."""
        file = getattr(module, "__file__", None)
        if self._add_package(module.__name__, file) is None:
            attributes = vars(module)
            # Without any of its names the module itself is handed on, and any may be.
            own = f"{module.__name__}."
            for name in sorted(names & attributes.keys() or attributes.keys()):
                part = attributes[name]
                if name[:2] == "__" and name != "__getattr__":
                    continue
                if not isinstance(part, types.ModuleType):
                    self._global(f"{module.__name__}.{name}", part)
                elif name in names or part.__name__.startswith(own):
                    seen = id(part), names
                    if seen not in self._modules:
                        self._modules[seen] = part
                        self._python_module(part, names)
        return module.__name__

    def _module(self, module: nn.Module) -> Any:
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        settings = {}
        for path, part in module.named_modules():
            of_torch = type(part).__module__.startswith("torch.")
            code = getattr(part, "code", None)  # graphs and TorchScript have it
            settings[path] = {
                "the class": self.of(type(part)),
                "the code": code if isinstance(code, str) else None,
            } | {
                name: self.of(value)
                for name, value in vars(part).items()
                # Private attributes of torch's own layers follow from the public ones.
                if not (of_torch and name[0] == "_") and name not in _OF_EVERY_MODULE
            }
            settings[path] |= {
                name: [self.of(hook) for hook in value.values()]
                for name, value in vars(part).items()
                if name.endswith("_hooks") and value
            }
        return [
            repr(module),
            self.of(tensors),
            [name for name, value in tensors.items() if value.requires_grad],
            settings,
        ]

    def _graph(self, graph: Any) -> Any:
        """Describe what TorchScript runs, with the functions that it calls."""
        constants = graph.findAllNodes("prim::Constant", True)
        tensors = [
            node.t("value")
            for node in constants
            if node.hasAttribute("value") and node.kindOf("value") == "t"
        ]
        return [graph.str(False), self.of(tensors)]  # without lines of files

    def _add_code(self, label: str, described: Any) -> None:
        self._code.setdefault(label, set()).add(hash_description(described))

    def _add_package(self, module: str | None, file: str | None) -> str | None:
        """Remember the version of the package that a name is of, and return it."""
        package = find_package(module, file)
        if package not in (None, "Python"):
            self._code[f"the package {package}"] = {package_version(package)}
        return package
