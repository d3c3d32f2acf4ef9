"""Flags from dataclasses: their fields are the flags, their docstrings the help."""

import dataclasses
import difflib
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable


@runtime_checkable
class Options(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


T = TypeVar("T", bound=Options)


class UsageError(ValueError):
    """The command line says something that is not allowed."""


@dataclass(frozen=True)
class Flag:
    """A flag, named as the field behind it but for the dashes.

    Attributes:
        field: the field's name.
        kind: its type.
        default: its value where the command line does not give one.
        about: what its help says.
    """

    field: str
    kind: Any
    default: Any
    about: str

    @property
    def name(self) -> str:
        """The flag as the user writes it."""
        return "--" + self.field.replace("_", "-")


def flags_of(instance: Any, hidden: Iterable[str] = ()) -> list[Flag]:
    """Returns the flags of a dataclass's fields, with an instance's values as defaults."""
    kind = type(instance)
    hints, about = typing.get_type_hints(kind), described(kind)
    return [
        Flag(f.name, hints[f.name], getattr(instance, f.name), about.get(f.name, ""))
        for f in fields(instance)
        if f.name not in set(hidden)
    ]


def described(kind: type) -> dict[str, str]:
    """Returns what the docstrings of a class and its bases say of each attribute."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        _, _, section = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")
        name = ""
        for line in section.partition("\n\n")[0].splitlines():
            start = re.match(r"    (\w+): (.*)", line)
            if start:
                name, found[start[1]] = start[1], start[2]
            elif name:
                found[name] += " " + line.strip()
    return found


# --- Values -------------------------------------------------------------------------------------------------------


def _one_of(kind: Any) -> tuple[Any, ...]:
    """Returns the types of a union, or the one that there is."""
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if union else (kind,)


def _choices(kind: Any) -> list[Any]:
    """Returns the values of the literals among the types of a union."""
    return [
        value
        for one in _one_of(kind)
        if typing.get_origin(one) is Literal
        for value in typing.get_args(one)
    ]


def _metavar(kind: Any) -> str:
    words = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH", type(None): "none"}
    parts = _one_of(kind)
    # Where there may be any number, a whole one may be too.
    names = [words[one] for one in parts if one in words and (one is not int or float not in parts)]
    return "|".join([*map(str, _choices(kind)), *names])


def value_of(text: str, flag: Flag) -> Any:
    """Returns the value that a word on the command line stands for.

    Raises:
        UsageError: if the flag does not take it.
    """
    parts, choices = _one_of(flag.kind), _choices(flag.kind)
    optional = type(None) in parts
    if optional and text.lower() == "none":
        return None
    for value in choices:
        if text == str(value):
            return value
    if choices:
        near = difflib.get_close_matches(text, map(str, choices), n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]}?" if near else ""
        listed = ", ".join(map(str, choices)) + (", none" if optional else "")
        raise UsageError(f"{flag.name} is one of {listed}; got {text!r}.{hint}")
    wanted: dict[Any, tuple[Callable[[str], Any], str]] = {
        float: (float, "number"),
        int: (int, "whole number"),
        Path: (Path, "path"),
        str: (str, "text"),
    }
    for kind, (convert, words) in wanted.items():
        if kind in parts:
            try:
                return convert(text)
            except ValueError:
                what = f"is neither none nor a {words}" if optional else f"is no {words}"
                shown = text if len(text) < 100 else f"{text[:100]}…"
                raise UsageError(f"{flag.name}: {shown!r} {what}.") from None
    raise TypeError(f"{flag.name} has the type {flag.kind}, for which there is no flag.")


# --- Command lines ------------------------------------------------------------------------------------------------


def read(flags: Sequence[Flag], arguments: Sequence[str], prog: str, about: str) -> dict[str, Any]:
    """Reads a command line of flags.

    Args:
        flags: those that there are.
        arguments: of the command line.
        prog: how the command is called, for its help.
        about: what `--help` says first.

    Returns:
        The value of every flag, by the names of the fields.

    Raises:
        UsageError: if there is a flag that does not exist, or a value that is not allowed.
        SystemExit: after `--help`, with 0.
    """
    import tyro

    kind = make_dataclass("Flags", [_tyro_field(flag) for flag in flags])
    parsed: Any
    rest: list[str]
    try:
        parsed, rest = tyro.cli(
            kind, args=list(arguments), prog=prog, description=about, return_unknown_args=True
        )
    except _Refused as refused:
        raise UsageError(f"{refused} See {prog} --help.") from None
    if rest:
        raise UsageError(_unexpected(rest[0], flags, prog))
    return vars(parsed)


def options(default: T, arguments: Sequence[str], prog: str, about: str) -> T:
    """Reads a command line into a dataclass of options; see `read`."""
    return dataclasses.replace(default, **read(flags_of(default), arguments, prog, about))


class _Refused(Exception):
    """Carries what we say of a value past tyro, which has words of its own for a ValueError."""


def _tyro_field(flag: Flag) -> tuple[str, Any, Any]:
    """Returns a field of the dataclass that tyro reads."""
    import tyro

    help_text = tyro.conf.arg(help=flag.about)
    kind: Any
    if flag.kind is bool:
        kind = Annotated[bool, help_text]
    else:

        def convert(words: list[str]) -> Any:
            if not words:
                raise _Refused(f"{flag.name} needs a value.")
            if len(words) > 1:
                raise _Refused(f"unexpected: {words[1]}.")
            try:
                return value_of(words[0], flag)
            except UsageError as error:
                raise _Refused(str(error)) from None

        spec = tyro.constructors.PrimitiveConstructorSpec(
            nargs="*",
            metavar=_metavar(flag.kind),
            instance_from_str=convert,
            is_instance=lambda value: True,
            str_from_instance=lambda value: ["none" if value is None else str(value)],
        )
        kind = Annotated[object, spec, help_text]
    return flag.field, kind, dataclasses.field(default=flag.default)


def _unexpected(word: str, flags: Sequence[Flag], prog: str) -> str:
    """Says what to do about a word that no flag takes."""
    if not word.startswith("-"):
        return f"unexpected: {word}. See {prog} --help."
    name = word.split("=")[0]
    known = [flag.name for flag in flags] + ["--help"]
    near = difflib.get_close_matches(name.replace("_", "-"), known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"unknown flag {name}.{hint} All of them: {prog} --help."


def wants_help(arguments: Sequence[str]) -> bool:
    """Says whether a command line asks for help."""
    return any(word in ("-h", "--help") for word in arguments)


def subjects(arguments: Sequence[str], prog: str) -> tuple[list[str], list[str]]:
    """Returns the names that a command is about, which come first, and what follows them.

    Args:
        arguments: of the command line.
        prog: how the command is called, with the names in capitals, such as "companion sample CHECKPOINT".

    Raises:
        UsageError: if one is missing.
    """
    words = prog.split()
    wanted = [word for word in words if word.isupper()]
    command = " ".join(word for word in words if not word.isupper())
    for place, what in enumerate(wanted):
        if place >= len(arguments):
            raise UsageError(f"{what} is missing: {prog} [FLAGS]. See {command} --help.")
        if arguments[place].startswith("-"):
            raise UsageError(
                f"{what} comes before the flags: {prog} [FLAGS], got {arguments[place]!r}. See {command} --help."
            )
    return list(arguments[: len(wanted)]), list(arguments[len(wanted) :])


def subjects_and_options(
    default: T, arguments: Sequence[str], prog: str, about: str
) -> tuple[list[str], T]:
    """Reads a command line of names and flags; see `subjects` and `options`.

    Raises:
        UsageError: as from those two.
        SystemExit: after `--help`, with 0.
    """
    if wants_help(arguments):
        options(default, ["--help"], prog, about)
    names, rest = subjects(arguments, prog)
    return names, options(default, rest, prog, about)


def require_at_least_one(instance: Any, *names: str) -> None:
    """Raises `UsageError` for the first of some options that is below 1."""
    for name in names:
        if getattr(instance, name) < 1:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} must be at least 1, got {getattr(instance, name)}.")


def require_features(features: str | None, weights: str | None) -> None:
    """Raises `UsageError` for a file of weights where nobody said what they are the weights of."""
    if weights is not None and features is None:
        raise UsageError(
            "--weights are for the extractor 'inception'; give --features inception too, or leave them out."
        )
