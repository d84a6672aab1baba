"""Simulators, presets and robots by name: the package's own, those that installed distributions offer, and
module:function (docs/simulators.md)."""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pizero.types import UserError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


@dataclass(frozen=True)
class Registry:
    """One kind of thing that users name. Entry points are read only for a name that is not built in.

    kind: what messages call it. group: of entry points. built_in: functions by name. others: what else a name may be.
    """

    kind: str
    group: str
    built_in: Mapping[str, Callable[..., Any]]
    others: str = "module:function"

    def find(self, name: str) -> Callable[..., Any]:
        """The function of that name. UserError lists the names, or says why it cannot be loaded."""
        if name in self.built_in:
            return self.built_in[name]
        if ":" in name:
            return self._function(name)
        found = [point for point in self._entry_points() if point.name == name]
        if not found:
            raise UserError(self._unknown(name))
        if len(offers := {_offer(point) for point in found}) > 1:
            raise UserError(f"{self.kind} {name!r} is offered twice, by {' and by '.join(sorted(offers))}; remove one")
        try:
            return found[0].load()
        except Exception as error:
            raise UserError(f"{self.kind} {name!r} of {_offer(found[0])} cannot be loaded: {_reason(error)}") from error

    def make(self, name: str, *arguments: Any, **options: Any) -> Any:
        """What the function of that name returns; a UserError in one line for whatever it raises."""
        function = self.find(name)
        if name in self.built_in:
            return function(*arguments, **options)
        try:
            return function(*arguments, **options)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{self.kind} {name!r} cannot be made: {_reason(error)}") from error

    def _function(self, name: str) -> Callable[..., Any]:
        module_name, _, attribute = name.partition(":")
        if os.getcwd() not in sys.path:  # the `pizero` script does not look there
            sys.path.append(os.getcwd())
        try:
            module = import_module(module_name)
        except Exception as error:
            if isinstance(error, ModuleNotFoundError) and error.name == module_name:
                reason = "there is no such module in this folder, and none is installed"
            else:
                reason = _reason(error)
            raise UserError(f"{self.kind} {name!r}: {module_name!r} cannot be imported: {reason}") from error
        function = getattr(module, attribute, None)
        if not callable(function):
            own = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            raise UserError(
                f"{self.kind} {name!r}: {module.__file__ or module_name} has no function {attribute!r}"
                f"{_meant(attribute, own)}"
            )
        return function

    def _entry_points(self) -> list[EntryPoint]:
        from importlib.metadata import entry_points

        return list(entry_points(group=self.group))

    def _unknown(self, name: str) -> str:
        known = list(dict.fromkeys([*self.built_in, *(point.name for point in self._entry_points())]))
        return (
            f"unknown {self.kind} {name!r}{_meant(name, known)}; expected one of {', '.join(known)}, or {self.others}"
        )


def _meant(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _offer(point: EntryPoint) -> str:
    return f"{point.dist.name if point.dist else 'an unknown distribution'} ({point.value})"


def _reason(error: Exception) -> str:
    """The exception as one line, with the place in the plug-in that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename != __file__ and "importlib" not in frame.filename]
    place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
