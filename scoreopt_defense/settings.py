"""Settings as frozen objects: a constructor's arguments, repr, JSON, and a resumed run's key.

What a user may choose by name (a loss, an optimiser, a gradient) is itself an object, and a user's
own object stands where a name does.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from scoreopt_defense._checks import check_choice

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Frozen", "Options", "Settings", "Twinned", "chosen", "described", "name_of"]

Names = Mapping[str, type]


@dataclass(frozen=True)
class Options:
    """What a setting may be: an object of these names, or any of this kind.

    Args:
        named: the library's own classes by name, each made without arguments.
        kind: a protocol that an object of a user's own has.
    """

    named: Names
    kind: type


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of frozen settings: a subclass lists fields and checks them in ``__post_init__``.

    Where it calls this one's, what was chosen by name is an object from then on.
    """

    def __post_init__(self) -> None:
        for name, options in self.options().items():
            self._set(name, chosen(name, getattr(self, name), options))

    def _set(self, name: str, value: Any) -> None:
        """What only a constructor may: put the value that a checked argument becomes."""
        object.__setattr__(self, name, value)

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
        return cls.of(**values)

    @classmethod
    def _known(cls, name: str) -> Names:
        options = cls.options().get(name)
        return options.named if options else {}

    def __str__(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.names())


def chosen(setting: str, value: Any, options: Options) -> Any:
    """The object of that name, of that name and settings (``{"name": ..., ...}``), or passed in.

    Raises:
        ValueError: if it is none of them.
    """
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, Mapping):
        given = dict(value)
        name = given.pop("name", None)
        check_choice(setting, name, options.named)
        return options.named[name](**given)
    if isinstance(value, type) or not isinstance(value, options.kind):
        raise ValueError(
            f"{setting} must be one of {list(options.named)}, got {value!r}; or an object that is "
            f"a {options.kind.__module__}.{options.kind.__qualname__}"
        )
    return value


def name_of(value: Any, named: Names) -> str:
    """What an object is chosen by; a user's own goes by its class or function."""
    names = [name for name, kind in named.items() if type(value) is kind]
    return names[0] if names else getattr(value, "__name__", type(value).__qualname__)


def described(value: Any, named: Names) -> Any:
    """A setting as JSON has it.

    Raises:
        TypeError: of a value that JSON has no word for, such as a tensor.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return [described(part, {}) for part in value]
    if isinstance(value, Tensor) or not hasattr(value, "__dict__"):
        raise TypeError(f"a {type(value).__name__} cannot be written as JSON, got {value!r}")
    fields = {} if inspect.isfunction(value) else _that_count(value)
    about = {"name": name_of(value, named)}
    return about | {name: described(part, {}) for name, part in fields.items()}


def _that_count(value: Any) -> dict[str, Any]:
    """An object's fields, but for those of a dataclass that do not compare: no result is theirs."""
    if not dataclasses.is_dataclass(value):
        return vars(value)
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.compare}


class Twinned(nn.Module):
    """A module that has twins: of the same parts but for some, and neither changes the other.

    A twin has what construction set, and public attributes that its owner added. What a tool hung
    on the one is not the other's: hooks, and functions in place of its class's own, which are bound
    to the module that they were made for.
    """

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        # no metaclass: its __call__'s signature would stand for every constructor's
        if "__init__" in vars(cls):
            cls.__init__ = _recorded(cls.__init__)  # type: ignore[method-assign]

    def _set_by_construction(self, name: Any) -> bool:
        return name in self.__dict__.get("_constructed", ())

    def _twin(self, **attributes: Any) -> Self:
        twin = type(self).__new__(type(self))
        parts = {
            name: self._own(name, value)
            for name, value in self.__dict__.items()
            if self._set_by_construction(name)
            or not (name.startswith("_") or hasattr(type(self), name))
        }
        modules = {name: part for name, part in attributes.items() if isinstance(part, nn.Module)}
        parts["_modules"] |= modules
        rest = {name: part for name, part in attributes.items() if name not in modules}
        twin.__dict__.update(parts | rest)
        return twin

    def __repr__(self) -> str:
        """On a few lines: of a network inside its class and its number of parameters."""
        parts = [f"({name}): {_briefly(part)}" for name, part in self.named_children()]
        own = self.extra_repr()
        if not parts:
            return f"{type(self).__name__}({own})"
        lines = "\n".join([*textwrap.wrap(own, 96), *parts])
        return f"{type(self).__name__}(\n{textwrap.indent(lines, '  ')}\n)"

    def _own(self, name: str, value: Any) -> Any:
        """torch's tables of parts and hooks, one level deep; anything else is shared."""
        if isinstance(value, dict) and "_hooks" in name:
            own = {key: hook for key, hook in value.items() if self._set_by_construction(key)}
            return type(value)(own)
        return value.copy() if isinstance(value, (dict, set)) else value


def _briefly(part: nn.Module) -> str:
    if isinstance(part, Twinned) or not [*part.children()]:
        return repr(part)
    made = [weight for weight in part.parameters() if not nn.parameter.is_lazy(weight)]
    return f"{type(part).__name__}({sum(weight.numel() for weight in made):,} parameters)"


def _recorded(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor at whose end a module notes what there is: its attributes, parts and hooks."""

    @functools.wraps(init)
    def recorded(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        tables = [v for name, v in self.__dict__.items() if name[0] == "_" and isinstance(v, dict)]
        self.__dict__["_constructed"] = frozenset().union(["_constructed", *self.__dict__], *tables)

    return recorded


class Frozen(Twinned):
    """A module that is what it was made: nothing public that construction set can be set again.

    ``train()`` and ``eval()`` do not reach the modules inside, which keep their owners' modes.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        self._refuse(name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        self._refuse(name)
        super().__delattr__(name)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """As torch's; ``register_module`` is the same."""
        self._refuse(name)
        super().add_module(name, module)

    def _refuse(self, name: str) -> None:
        may = name.startswith("_") or name == "training" or "_is_replica" in self.__dict__
        if not may and self._has(name):  # torch.nn.DataParallel fills its replicas by name
            how = f" with replace({name}=...)" if name in self._replaceable() else ""
            raise AttributeError(
                f"{name} of a {type(self).__name__} cannot be changed: make another{how}"
            )

    def _replaceable(self) -> Sequence[str]:
        """What ``replace`` takes, of a module that has it."""
        return ()

    def _has(self, name: str) -> bool:
        return self._set_by_construction(name)

    def train(self, mode: bool = True) -> Self:
        self.training = mode
        return self
