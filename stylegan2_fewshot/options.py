"""Command-line options out of constructors: a plugin's signature is its part of the command."""

from __future__ import annotations

import inspect
import math
import os
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import click

from .drawing import DrawOptions
from .external import load_external
from .files import legible
from .plugin import Plugin, find, registry

_OPTIONS = f"{__name__}.options"


class Text(click.types.StringParamType):
    """Text in which a leading `~/` is the home directory, for options that name files."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = super().convert(value, param, ctx)
        return os.path.expanduser(text) if str(text).startswith("~/") else text


class Number(click.types.FloatParamType):
    """A number that is neither NaN nor infinite."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class Finite(Number, click.FloatRange):
    """A number that is neither NaN nor infinite, within bounds."""


SCALARS: dict[Any, click.ParamType[Any]] = {
    float: Number(),
    int: click.INT,
    str: Text(),
    bool: click.BOOL,
}


@dataclass(frozen=True)
class Option:
    """One parameter of a plugin's constructor, as an option of the command line.

    Attributes:
        plugin: Name of the plugin.
        parameter: Name of the constructor's parameter.
        flag: The option without its leading dashes.
        type: Annotation without `| None`: float, int, bool, str or a Literal of strings.
        default: Value where the option is not given.
        help: Text of the docstring's `Args:` section.
    """

    plugin: str
    parameter: str
    flag: str
    type: Any
    default: Any
    help: str

    @property
    def key(self) -> str:
        """The option as an identifier, the key in the values that a command hands on."""
        return self.flag.replace("-", "_")

    @property
    def bare(self) -> bool:
        """Whether the option does without the plugin's name in front."""
        return self.flag != self.plugin and not self.flag.startswith(f"{self.plugin}-")


def options_of(cls: type[Plugin] | type[DrawOptions]) -> list[Option]:
    """Return the options of a plugin, or of its drawing, in the order of its constructor.

    Raises:
        TypeError: A parameter is not keyword-only, annotated, defaulted and documented.
    """
    texts = _documented(cls)
    hints = {name: _without_none(hint) for name, hint in get_type_hints(cls.__init__).items()}
    options = []
    for name, parameter in inspect.signature(cls).parameters.items():
        rules = {
            "keyword-only": parameter.kind is parameter.KEYWORD_ONLY,
            "annotated": name in hints,
            "defaulted": parameter.default is not parameter.empty,
            "described under Args:": bool(texts.get(name)),
        }
        for rule, holds in rules.items():
            if not holds:
                raise TypeError(f"plugin {cls.name!r}: parameter {name!r} must be {rule}")
        _click_type(hints[name])
        flag, default = _flag(cls, name), parameter.default
        options.append(Option(cls.name, name, flag, hints[name], default, texts[name]))
    return options


def switch(cls: type[Plugin]) -> str:
    """Return the option that switches a plugin on, as the user types it."""
    return f"--aug={cls.name}" if cls.augmentation else f"--{options_of(cls)[0].flag}"


def title(cls: type[Plugin]) -> str:
    """Return the first line of the plugin's docstring."""
    return (inspect.getdoc(cls) or cls.name).partition("\n")[0]


def all_options() -> dict[str, list[Option]]:
    """Return the options of all registered plugins by key; a bare one may serve several."""
    claims: dict[str, list[Option]] = {}
    for cls in registry().values():
        for option in options_of(cls):
            claims.setdefault(option.key, []).append(option)
    return claims


def parse(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the plugins that are on, with all of their constructor arguments.

    Args:
        values: Options that were given, by key and in the order of the command line; None stands
            for one that was not. `aug` lists augmentation plugins, separated by commas.

    Raises:
        ValueError: An unknown augmentation, or an option of a plugin that is not on.
    """
    given = {key: value for key, value in values.items() if value is not None}
    claims = all_options()
    names: list[str] = []
    for key, value in given.items():
        if key == "aug":
            names += augmentations(value)
        else:
            names += [o.plugin for o in claims.get(key, []) if _switched_by(o)]
    plugins = {n: {o.parameter: o.default for o in options_of(find(n))} for n in names}
    for key, value in given.items():
        for option in _receivers(key, claims, given, names) if key != "aug" else ():
            plugins[option.plugin][option.parameter] = value
    return plugins


def resolve(
    plugins: Mapping[str, Mapping[str, Any]], *, kimg: float, resumed: bool, few_shot: bool
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the plugins with the arguments that follow from the run, and what these were.

    Args:
        plugins: Plugins that are on, with their constructor arguments.
        kimg: Length of the run, in thousands of images.
        resumed: Whether it starts from a network.
        few_shot: Whether its base configuration is that for few images.

    Returns:
        The plugins, and places such as `plugins.ada.kimg`.
    """
    resolved, places = {name: dict(arguments) for name, arguments in plugins.items()}, []
    for name, arguments in resolved.items():
        found = find(name).derived(kimg=kimg, resumed=resumed, few_shot=few_shot)
        for key in found.keys() & {key for key, value in arguments.items() if value is None}:
            arguments[key] = found[key]
            places.append(f"plugins.{name}.{key}")
    return resolved, places


def describe(values: Mapping[str, Any]) -> list[str]:
    """Return the plugins and bare options that were given as words for a run directory's name."""
    claims, words = all_options(), []
    for key, value in values.items():
        if value is None:
            continue
        if key == "aug":
            words += augmentations(value) or ["noaug"]
            continue
        option, is_text = claims[key][0], isinstance(value, str)
        if option.bare or option.flag == option.plugin:
            number = "" if is_text else f"{value:g}"
            words.append(value if option.bare and is_text else option.flag + number)
        elif _switched_by(option):
            words.append(option.plugin)
    return words


def augmentations(text: str) -> list[str]:
    """Return the plugins that `--aug=text` names; `noaug` names none.

    Raises:
        ValueError: One of them is not an augmentation, or is named twice.
    """
    names = [] if text == "noaug" else text.split(",")
    known = [name for name, cls in registry().items() if cls.augmentation]
    if not set(names) <= set(known) or len(set(names)) < len(names):
        raise ValueError(f"--aug={text}: use noaug, or each at most once of {', '.join(known)}")
    return names


def drawing(values: Mapping[str, Any]) -> list[DrawOptions]:
    """Build what each method has for drawing images from options by key, those that were given."""
    built: list[DrawOptions] = []
    known: set[str] = set()
    for cls in registry().values():
        if cls.draws is not None:
            options = {option.key: option.parameter for option in options_of(cls.draws)}
            known |= options.keys()
            given = {name: values[key] for key, name in options.items() if key in values}
            built.append(cls.draws(**given))
    for key in values.keys() - known:
        raise ValueError(f"--{key.replace('_', '-')}={values[key]}: no method has this option")
    return built


def drawing_of_external(args: list[str]) -> list[click.Option]:
    """Import what `--plugin` names among raw arguments; return these methods' options for drawing.

    Their values come under the keys `method_KEY`.
    """
    drawn = [cls.draws for cls in map(load_external, _external(args)) if cls.draws is not None]
    return [
        click.Option(
            [f"--{option.flag}", f"method_{option.key}"],
            type=_click_type(option.type),
            default=None,
            help=option.help,
        )
        for cls in drawn
        for option in options_of(cls)
    ]


def _switched_by(option: Option) -> bool:
    """Return whether giving `option` switches its plugin on."""
    cls = find(option.plugin)
    first = options_of(cls)[0].parameter
    return not cls.augmentation and option.parameter in (first, *cls.switches)


def _receivers(
    key: str, claims: Mapping[str, list[Option]], given: Mapping[str, Any], names: list[str]
) -> list[Option]:
    """Return whom a value belongs to: plugins that are on and claim it, or else the only
    augmentation that has a parameter of that name, as `--target` with `--aug=apa`."""
    if key not in claims:
        raise ValueError(f"--{key.replace('_', '-')}={given[key]}: no plugin has this option")
    if direct := [option for option in claims[key] if option.plugin in names]:
        return direct
    active = [cls for cls in map(find, names) if cls.augmentation]
    heirs = [o for cls in active for o in options_of(cls) if o.parameter == key]
    if claims[key][0].bare and len(active) == 1 and heirs:
        return heirs
    owners = [option.plugin for option in claims[key]]
    ways = [switch(find(owner)) for owner in owners]
    if (aug := given.get("aug", "noaug")) != "noaug":
        ways = [way.replace("--aug=", f"--aug={aug},") for way in ways]
    raise ValueError(
        f"--{claims[key][0].flag}={given[key]} needs {' or '.join(owners)}, which is off; "
        f"add {' or '.join(ways)}"
    )


def _flag(cls: type[Plugin] | type[DrawOptions], parameter: str) -> str:
    name = parameter.rstrip("_").replace("_", "-")
    return cls.option_names.get(parameter, name if name == cls.name else f"{cls.name}-{name}")


def _documented(cls: type[Plugin] | type[DrawOptions]) -> dict[str, str]:
    """Return the parameters' descriptions out of a google-style `Args:` section."""
    section = re.search(r"^Args:\n((?: +.*\n?|\n)+)", inspect.getdoc(cls) or "", re.MULTILINE)
    entries = re.split(r"^    (?=\w+: )", section[1] if section else "", flags=re.MULTILINE)
    pairs = (entry.partition(": ") for entry in entries if entry.strip())
    return {name: " ".join(text.split()) for name, _, text in pairs}


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 else annotation


def _click_type(annotation: Any) -> click.ParamType[Any]:
    if get_origin(annotation) is Literal:
        return click.Choice(get_args(annotation))
    if annotation not in SCALARS:
        raise TypeError(f"no option can hold {annotation}; use float, int, bool, str or Literal")
    return SCALARS[annotation]


class PluginOption(click.Option):
    """A plugin's option: None unless it was given, and listed under its plugin in the help."""

    def __init__(self, option: Option) -> None:
        cls = find(option.plugin)
        self.heading = f"{switch(cls)}: {title(cls).rstrip('.')}"
        negative = f"/--no-{option.flag}" if option.type is bool else ""
        default = "" if option.default in (None, "") else f"  [default: {option.default}]"
        super().__init__(
            [f"--{option.flag}{negative}", option.key],
            type=_click_type(option.type),
            default=None,
            help=option.help + default,
        )


class Command(click.Command):
    """A command whose user's mistakes end in one line and exit status 2."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise Mistake(error.format_message()) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, OSError) as error:
            raise Mistake(legible(error)) from error


class PluginCommand(Command):
    """A command that has the options of every registered plugin, and those of `--plugin`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Import what `--plugin` names before its options are looked for."""
        try:
            for place in _external(args):
                load_external(place)
            return super().parse_args(ctx, args)
        except (ValueError, TypeError) as error:
            raise Mistake(str(error)) from error

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the command's own parameters, then the plugins'."""
        own = super().get_params(ctx)
        # click tells parameters apart by identity, so one context has to see the same ones.
        if _OPTIONS not in ctx.meta:
            ctx.meta[_OPTIONS] = _plugin_options({name for param in own for name in param.opts})
        return [*own, *ctx.meta[_OPTIONS]]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section per plugin, headed by the first line of its docstring."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                sections.setdefault(getattr(param, "heading", "Options"), []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


class Mistake(click.ClickException):
    """A user's mistake: `Error: message` and exit status 2, without a traceback."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(legible(message))


def _plugin_options(taken: set[str]) -> list[PluginOption]:
    """Return one option per key; TypeError where the command has one of that name itself."""
    options = [PluginOption(claimants[0]) for claimants in all_options().values()]
    for option in options:
        if taken & set(option.opts):
            raise TypeError(f"{option.heading}: the command itself has the option {option.opts[0]}")
    return options


def _external(args: list[str]) -> list[str]:
    """Return the values of `--plugin` among raw arguments."""
    joined = [arg.partition("=")[2] for arg in args if arg.startswith("--plugin=")]
    apart = [value for arg, value in pairwise(args) if arg == "--plugin"]
    return joined + apart
