"""Equality, hash and repr for all frozen attrs classes of the package.

attrs generates and compiles these methods for each class, which takes most of the time to create a
class. For the eighty classes of this package that was a fifth of its import time.
"""

from __future__ import annotations

from typing import Final, cast

import attrs

_compared: Final[dict[type, tuple[str, ...]]] = {}
"""The fields of each class that make two of its values equal."""


class Value:
    """Base of classes made by `attrs.frozen(eq=False, repr=False)`.

    It compares, hashes and shows an instance by its fields. The options `eq` and `repr` of a field
    work as they do in attrs.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if other is self:
            return True
        if other.__class__ is not self.__class__:
            return NotImplemented
        names = _compared_fields(self.__class__)
        return all(getattr(self, name) == getattr(other, name) for name in names)

    def __hash__(self) -> int:
        kind = self.__class__
        return hash((kind, *[getattr(self, name) for name in _compared_fields(kind)]))

    def __repr__(self) -> str:
        shown: list[str] = []
        for field in _fields(self.__class__):
            value = cast("object", getattr(self, field.name))
            if callable(field.repr):
                shown.append(f"{field.name}={field.repr(value)}")
            elif field.repr:
                shown.append(f"{field.name}={value!r}")
        name = self.__class__.__qualname__.rsplit(">.", 1)[-1]
        return f"{name}({', '.join(shown)})"


def _fields(kind: type) -> tuple[attrs.Attribute[object], ...]:
    # A type checker cannot know that all subclasses are attrs classes.
    fields = attrs.fields(cast("type[attrs.AttrsInstance]", kind))
    return cast("tuple[attrs.Attribute[object], ...]", fields)


def _compared_fields(kind: type) -> tuple[str, ...]:
    names = _compared.get(kind)
    if names is None:
        names = _compared[kind] = tuple(field.name for field in _fields(kind) if field.eq)
    return names
