"""Options out of constructors: laws for every plugin, and rules of the command line on toys."""

from __future__ import annotations

import inspect
import json
from typing import ClassVar, Literal

import click
import pytest
from click.testing import CliRunner

from stylegan2_fewshot.options import (
    Command,
    PluginCommand,
    all_options,
    describe,
    options_of,
    parse,
    switch,
    title,
)
from stylegan2_fewshot.plugin import Plugin, isolated, register, registry

ALL = list(registry().values())
SAMPLES = {float: 0.5, int: 2, str: "some text", bool: True}


def read(*args):
    """Return what a command line of plugin options says, the way train.py reads it."""
    read = {}

    @click.command(cls=PluginCommand)
    @click.option("--aug")
    @click.option("--plugin", multiple=True)
    def command(plugin, **values):
        read.update(values)

    result = CliRunner().invoke(command, args, catch_exceptions=False)
    return (result.exit_code, result.output) if result.exit_code else read


def sample(option):
    """Return a value of the option's type: its default where that is one, as it is valid."""
    if option.type is bool:
        return not option.default
    if option.default is not None:
        return option.default
    return SAMPLES.get(option.type) or option.type.__args__[-1]


def as_argument(option, value):
    if isinstance(value, bool):
        return f"--{option.flag}" if value else f"--no-{option.flag}"
    return f"--{option.flag}={value}"


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.name)
def test_every_parameter_is_keyword_only_annotated_defaulted_documented(cls):
    options = options_of(cls)  # raises for a parameter that is not
    assert [option.parameter for option in options] == list(inspect.signature(cls).parameters)
    assert all(option.help and option.flag == option.flag.lower() for option in options)
    assert title(cls).endswith(".") or title(cls).endswith(")")


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.name)
def test_signature_option_json_constructor_round_trip(cls):
    options = options_of(cls)
    wanted = {option.parameter: sample(option) for option in options}
    args = [as_argument(option, wanted[option.parameter]) for option in options]
    aug = [f"--aug={cls.name}"] if cls.augmentation else []
    plugins = parse(read(*aug, *args))
    assert plugins == {cls.name: wanted}
    assert json.loads(json.dumps(plugins)) == plugins
    assert isinstance(cls(**json.loads(json.dumps(plugins))[cls.name]), cls)


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.name)
def test_switching_on_changes_nothing_else(cls):
    first = options_of(cls)[0]
    on = switch(cls) if cls.augmentation else as_argument(first, sample(first))
    arguments = parse(read(on))[cls.name]
    defaults = {option.parameter: option.default for option in options_of(cls)}
    assert arguments == defaults | ({} if cls.augmentation else {first.parameter: sample(first)})


def test_nothing_given_is_nothing_on():
    assert parse(read()) == {}


class _Toy(Plugin):
    def penalty(self, step):
        return None


class Blur(_Toy):
    """Blur it.

    Args:
        target: How much.
        kind: Which kind, over
            two lines: of text.
    """

    augmentation = True
    option_names: ClassVar = {"target": "target"}

    def __init__(self, *, target: float = 0.5, kind: Literal["box", "disc"] = "box") -> None:
        super().__init__()


class Shake(_Toy):
    """Shake it.

    Args:
        target: How much.
    """

    augmentation = True

    def __init__(self, *, target: float = 0.5) -> None:
        super().__init__()


class Decay(_Toy):
    """Decay (Nobody 2000).

    Args:
        lambda_: How fast.
        start_kimg: When.
        normalize: Whether.
        file: Where.
    """

    def __init__(
        self,
        *,
        lambda_: float = 0.0,
        start_kimg: int = 3,
        normalize: bool = False,
        file: str | None = None,
    ) -> None:
        super().__init__()


class Frozen(_Toy):
    """Freeze it.

    Args:
        frozen: How many.
    """

    def __init__(self, *, frozen: int = 0) -> None:
        super().__init__()


@pytest.fixture
def toys():
    """Four plugins in place of the real ones."""
    with isolated(empty=True):
        for toy in (Blur, Shake, Decay, Frozen):
            register(toy.__name__.lower())(toy)
        yield


def test_names_of_options(toys):
    assert sorted(all_options()) == [
        "blur_kind",
        "decay_file",
        "decay_lambda",
        "decay_normalize",
        "decay_start_kimg",
        "frozen",
        "shake_target",
        "target",
    ]
    assert all_options()["blur_kind"][0].help == "Which kind, over two lines: of text."


def test_first_option_switches_on_and_the_rest_has_defaults(toys):
    assert parse(read("--decay-lambda=5e8", "--no-decay-normalize", "--decay-file=x")) == {
        "decay": {"lambda_": 5e8, "start_kimg": 3, "normalize": False, "file": "x"}
    }
    assert parse(read("--frozen=2", "--aug=noaug")) == {"frozen": {"frozen": 2}}


@pytest.mark.parametrize(
    ("args", "order"),
    [
        ("--aug=blur,shake --frozen=1", ["blur", "shake", "frozen"]),
        ("--aug=shake,blur --frozen=1", ["shake", "blur", "frozen"]),
        ("--frozen=1 --decay-lambda=2 --aug=blur", ["frozen", "decay", "blur"]),
    ],
)
def test_order_is_that_of_the_command_line(toys, args, order):
    assert list(parse(read(*args.split()))) == order


def test_bare_option_belongs_to_its_owner_or_to_the_only_augmentation(toys):
    assert parse({"aug": "blur", "target": 0.7})["blur"]["target"] == 0.7
    assert parse({"aug": "shake", "target": 0.7})["shake"]["target"] == 0.7
    both = parse({"aug": "shake,blur", "target": 0.7, "shake_target": 0.9})
    assert (both["blur"]["target"], both["shake"]["target"]) == (0.7, 0.9)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"decay_file": "x"}, "--decay-file=x needs decay, which is off; add --decay-lambda"),
        ({"target": 1.0}, "--target=1.0 needs blur, which is off; add --aug=blur"),
        (
            {"aug": "shake", "blur_kind": "box"},
            "--blur-kind=box needs blur, which is off; add --aug=shake,blur",
        ),
        ({"aug": "blur", "shake_target": 1.0}, "add --aug=blur,shake"),
        ({"aug": "blurr"}, "--aug=blurr: use noaug, or each at most once of blur, shake"),
        ({"aug": "blur,blur"}, "each at most once"),
        ({"aug": "noaug,blur"}, "use noaug, or"),
        ({"aug": ""}, "--aug=: use"),
        ({"aug": "decay"}, "--aug=decay: use"),
        ({"nonsense": 1}, "--nonsense=1: no plugin has this option"),
    ],
)
def test_nothing_is_ignored_in_silence(toys, values, message):
    with pytest.raises(ValueError) as caught:
        parse(values)
    assert message in str(caught.value)


def test_a_wrong_value_is_one_line_and_status_2(toys):
    status, output = read("--frozen=many")
    assert status == 2
    assert output == "Error: Invalid value for '--frozen': 'many' is not a valid integer.\n"


@pytest.mark.parametrize("error", [ValueError("--x=3: too much"), OSError("disk is full")])
def test_a_mistake_found_later_is_one_line_and_status_2(error):
    @click.command(cls=Command)
    def command():
        raise error

    result = CliRunner().invoke(command, [])
    assert (result.exit_code, result.output) == (2, f"Error: {error}\n")


def test_words_for_the_run_directory(toys):
    given = {"aug": "shake,blur", "target": 0.7, "blur_kind": "disc", "decay_lambda": 5e8}
    assert describe({**given, "frozen": 3}) == ["shake", "blur", "target0.7", "decay", "frozen3"]
    assert describe({"aug": "noaug", "frozen": None}) == ["noaug"]


def test_help_has_a_section_for_each_plugin(toys):
    @click.command(cls=PluginCommand)
    @click.option("--outdir", help="Where to.")
    def command(outdir):
        pass

    output = CliRunner().invoke(command, ["--help"], terminal_width=100).output
    sections = output.split("\n\n")
    assert "Where to." in sections[1] and "--help" in sections[1]
    assert sections[2].startswith("--aug=blur: Blur it:\n") and "--target FLOAT" in sections[2]
    assert sections[3].startswith("--decay-lambda: Decay (Nobody 2000):")
    assert "--decay-normalize / --no-decay-normalize" in sections[3]
    assert "[default: 3]" in sections[3]
    assert "None]" not in output


class _Positional(_Toy):
    """Title.

    Args:
        a: Text.
    """

    def __init__(self, a: int = 0) -> None:
        super().__init__()


class _Unannotated(_Positional):
    __doc__ = _Positional.__doc__

    def __init__(self, *, a=0) -> None:
        super().__init__()


class _Required(_Positional):
    __doc__ = _Positional.__doc__

    def __init__(self, *, a: int) -> None:
        super().__init__()


class _Undocumented(_Positional):
    """Title."""

    def __init__(self, *, a: int = 0) -> None:
        super().__init__()


class _Odd(_Positional):
    __doc__ = _Positional.__doc__

    def __init__(self, *, a: list[int] | None = None) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (_Positional, "keyword-only"),
        (_Unannotated, "annotated"),
        (_Required, "defaulted"),
        (_Undocumented, "described under Args:"),
        (_Odd, "no option can hold"),
    ],
)
def test_a_constructor_that_is_no_command_line_is_refused(cls, message):
    with pytest.raises(TypeError, match=message):
        options_of(cls)


def test_external_plugin_brings_its_options(toys, tmp_path, monkeypatch):
    (tmp_path / "their_methods.py").write_text(
        "from stylegan2_fewshot import Plugin\n"
        "class Mine(Plugin):\n"
        '    """Do mine.\n\n    Args:\n        strength: How much.\n    """\n'
        "    def __init__(self, *, strength: float = 0.0) -> None:\n"
        "        super().__init__()\n"
        "    def penalty(self, step):\n"
        "        return None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for args in (["--plugin=their_methods:Mine"], ["--plugin", "their_methods:Mine"]):
        values = read(*args, "--mine-strength=2")
        assert parse(values) == {"mine": {"strength": 2.0}}
    status, output = read("--plugin=their_methods:Yours")
    assert status == 2
    assert output.startswith("Error: --plugin=their_methods:Yours: there is no Yours in it; write ")
    status, output = read(f"--plugin={tmp_path / 'their_methods.py'}")
    assert status == 2 and "their_methods.py: names no class; write package.module" in output


def test_external_plugin_may_not_take_an_option_of_the_command(toys):
    @register("thief")
    class Thief(_Toy):
        """Steal.

        Args:
            a: Text.
        """

        option_names: ClassVar = {"a": "aug"}

        def __init__(self, *, a: int = 0) -> None:
            super().__init__()

    status, output = read()
    assert status == 2 and "--aug" in output
