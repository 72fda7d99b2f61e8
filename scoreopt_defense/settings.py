"""Settings as frozen objects: a constructor's arguments, repr, JSON, and a resumed run's key.

What a user may choose by name (a loss, an optimiser, a gradient) is itself an object, and a user's
own object stands where a name does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from scoreopt_defense._checks import check_choice

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Frozen", "Settings", "chosen", "described", "name_of"]

Options = Mapping[str, type]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of frozen settings: a subclass lists fields and checks them in ``__post_init__``."""

    @classmethod
    def names(cls) -> list[str]:
        """The settings that there are."""
        return [field.name for field in dataclasses.fields(cls)]

    @classmethod
    def options(cls) -> dict[str, Options]:
        """Of each setting that may be chosen by name: what there is to choose from."""
        return {}

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Settings by name.

        Raises:
            TypeError: if a name is unknown; the error lists the known ones.
        """
        unknown = sorted(set(values) - set(cls.names()))
        if unknown:
            raise TypeError(f"there is no setting {unknown[0]!r}; there are {cls.names()}")
        return cls(**values)

    def replace(self, **changes: Any) -> Self:
        """The same settings but for these."""
        return self.of(**({name: getattr(self, name) for name in self.names()} | changes))

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it: numbers, strings, lists, and a dictionary for each chosen object."""
        return {name: described(getattr(self, name), self._known(name)) for name in self.names()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`as_dict`, for objects that are the library's own."""
        return cls.of(
            **{
                name: _restored(name, value, cls._known(name)) if isinstance(value, dict) else value
                for name, value in values.items()
            }
        )

    @classmethod
    def _known(cls, name: str) -> Options:
        return cls.options().get(name, {})

    def __str__(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.names())


def chosen(setting: str, value: Any, known: Options) -> Any:
    """The object of that name, or the object that was passed in.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(value, str) or value is None or isinstance(value, type):
        check_choice(setting, value, known)
        return known[str(value)]()
    return value


def name_of(value: Any, known: Options) -> str:
    """What an object is chosen by; a user's own goes by its class or function."""
    names = [name for name, kind in known.items() if type(value) is kind]
    return names[0] if names else getattr(value, "__name__", type(value).__qualname__)


def described(value: Any, known: Options) -> Any:
    """A setting as JSON has it."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return [described(part, known) for part in value]
    fields = _fields(value)
    return {"name": name_of(value, known)} | fields


def _fields(value: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return dict(getattr(value, "__dict__", {}))


def _restored(setting: str, value: dict[str, Any], known: Options) -> Any:
    fields = dict(value)
    name = fields.pop("name", None)
    check_choice(f"{setting}'s name", name, known)
    return known[name](**fields)


class Frozen(nn.Module):
    """A module that is what it was made: nothing public of it can be set a second time.

    ``train()`` and ``eval()`` do not reach the modules inside, which keep their owners' modes.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name != "training" and self._has(name):
            raise AttributeError(
                f"{name} of a {type(self).__name__} cannot be changed: make another with "
                f"replace({name}=...)"
            )
        super().__setattr__(name, value)

    def _has(self, name: str) -> bool:
        inside = (self.__dict__.get(kind, {}) for kind in ("_modules", "_parameters", "_buffers"))
        return name in self.__dict__ or any(name in kind for kind in inside)

    def train(self, mode: bool = True) -> Self:
        self.training = mode
        return self

    def _twin(self, **attributes: Any) -> Self:
        """A module of the same parts, but for these; neither changes the other."""
        twin = type(self).__new__(type(self))
        parts = {name: _own(value) for name, value in self.__dict__.items()}
        modules = {name: part for name, part in attributes.items() if isinstance(part, nn.Module)}
        parts["_modules"] |= modules
        twin.__dict__.update(parts)
        rest = {name: part for name, part in attributes.items() if name not in modules}
        twin.__dict__.update(rest)
        return twin


def _own(value: Any) -> Any:
    """torch's tables of parts and hooks, one level deep; anything else is shared."""
    return value.copy() if isinstance(value, (dict, set)) else value
