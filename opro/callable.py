"""Modules that are also functions: `opro.optimize(...)` beside ``python -m opro.optimize``."""

import inspect
import sys
from types import ModuleType
from typing import Any


class CallableModule(ModuleType):
    """A module that, called, calls its function of the same name."""

    @property
    def _function(self) -> Any:
        return vars(self)[self.__name__.rpartition(".")[2]]

    def __call__(self, *given: Any, **named: Any) -> Any:
        """Calls it."""
        return self._function(*given, **named)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function)


def make_callable(module: str) -> None:
    """Lets a module be called. The import system binds a submodule to its package, over a function of the same name."""
    sys.modules[module].__class__ = CallableModule
