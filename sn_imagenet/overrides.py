"""Check command-line arguments before Hydra parses them; describe Hydra's errors in one line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sn_imagenet.errors import ConfigError, UserError, closest_name

if TYPE_CHECKING:
    from omegaconf import DictConfig

# The groups of configs/, of which a run takes one choice each.
_GROUPS = (
    *("norm", "batch", "augment", "data", "model", "protocol", "trainer", "calibration"),
    *("checkpoint", "task", "pair", "sweep"),
)
# What other programs call these options.
_OTHER_NAMES = {
    "lr": "protocol.base_lr",
    "learning_rate": "protocol.base_lr",
    "batch_size": "batch",
    "num_workers": "data.workers",
    "arch": "model.name",
}


def read_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command line, with ``~`` for the home folder expanded also in quotes and
    after ``=``.

    Raises:
        ConfigError: an argument ends with a carriage return, gives several choices in brackets
            (Hydra would silently use the last), or gives a number as a choice (Hydra would crash).
    """
    for argument in arguments:
        if argument.endswith("\r"):
            raise ConfigError(
                f"{argument!r} ends with a carriage return: the script that gives it has the line "
                "ends of Windows; remove them: sed -i 's/\\r$//' SCRIPT"
            )
        group, _, value = argument.partition("=")
        if group in _GROUPS and value.startswith("["):
            raise ConfigError(_several_values(f"{group}={value.strip('[]')}"))
        if group in _GROUPS and re.fullmatch(r"[0-9,]+", value):
            expected = _setting(value) if group == "batch" else "expected the name of a choice"
            raise ConfigError(f"{argument}: {expected}")
    home = re.compile(r"(-*[\w./@+]+=|)(~(?:/.*)?)")
    found = [(argument, home.fullmatch(argument)) for argument in arguments]
    return [m[1] + str(Path(m[2]).expanduser()) if m else argument for argument, m in found]


def refuse_dashes(arguments: Iterable[str]) -> None:
    """
    Raises:
        ConfigError: an option of a run is written as one of Hydra's, such as ``--norm sn``.
    """
    for argument in arguments:
        option, _, value = argument.lstrip("-").partition("=")
        name = option.partition(".")[0]
        if argument.startswith("-") and name in (*_GROUPS, *_OTHER_NAMES, "seed", "runs_dir"):
            raise ConfigError(f"{argument}: write {option}={value or 'VALUE'}, without dashes")


def list_index(error: ValueError) -> str:
    """The key that an override gives in place of a list's index; empty for another error."""
    found = re.match(r"invalid literal for int\(\) with base 10: '(.*)'$", str(error))
    return found[1] if found else ""


def describe_error(error: Exception) -> str:
    """One line for an error in composing the config, with the most similar valid name."""
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ValueError) and (name := list_index(error)):
        return f"KEY.{name}=VALUE: KEY is a list; give all of it, such as norm.args.omega=[in,bn]"
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return _unknown_choice(group, choice, error.options)
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if isinstance(error, OSError) and error.filename:  # of Hydra's folder among a sweep's runs
        return (
            f"cannot write {error.filename}: {error.strerror}; free some space or allow writing "
            "there, or choose another folder with runs_dir="
        )
    if several := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.*)'", str(error)):
        return _several_values(several[1])
    cause = error.__cause__
    override = re.search(r"To append to your config use \+(\S+)", str(error))
    parent = getattr(cause, "parent_node", None)
    if override and isinstance(parent, DictConfig):
        return _unknown_key(override[1], str(getattr(cause, "full_key", "")), parent)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(cause, OmegaConfBaseException):
        lines[1:] = str(cause).splitlines()[:1]
    return ": ".join(dict.fromkeys(lines[:2]))


def _unreadable(override: str) -> str:
    key, _, value = override.partition("=")
    if "=" not in override:
        return f"{override}: expected OPTION=VALUE, such as norm=sn"
    if key == "batch":
        return f"{override}: {_setting(value)}"
    return f"{override}: Hydra cannot read the value; quote it for the shell and for Hydra: " + (
        quoted(key, value)
    )


def _several_values(override: str) -> str:
    """For an override with commas in a single run."""
    key, _, value = override.partition("=")
    if key == "batch" and re.fullmatch(r"[0-9]+,[0-9]+", value):
        return f"{override}: {_setting(value)}"
    text = f"{override}: several values; add -m to train one run for each: -m {override}"
    return text if key in _GROUPS else f"{text}. For one value with commas: {quoted(key, value)}"


def _setting(value: str) -> str:
    numbers = re.findall(r"[0-9]+", value)
    example = "x".join(numbers) if len(numbers) == 2 else "8x2"
    return f"expected GPUs x samples per GPU, as in batch={example}"


def quoted(key: str, value: str) -> str:
    """``key=value`` for a shell, in quotes where Hydra or the shell would read something else."""
    if re.fullmatch(r"[\w/.:@%+-]+", value, re.ASCII):
        return f"{key}={value}"
    # A backslash is doubled before a quote, of which the last closes the value.
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', value)
    escaped += "\\" * (len(value) - len(value.rstrip("\\")))
    return shlex.quote(f'{key}="{escaped}"')


def _unknown_choice(group: str, choice: str, options: Iterable[str]) -> str:
    known = sorted(options)
    # model= may also be given the name of a network of timm: resnet18 is no typo of resnet50.
    match = closest_name(choice, known, 0.85 if group == "model" else 0.5)
    guesses = [f"{group}={match}"] if match else []
    if group == "model":
        guesses.append(f"model.name={choice}, a network of timm")
    guess = f"did you mean {', or '.join(guesses)}? " if guesses else ""
    others = {
        "batch": ", or any GxN (GPUs x samples per GPU), such as 4x6",
        "norm": ", or one of your own in the folder of --config-dir",
    }.get(group, "")
    expected = ", ".join(known) + others
    return f"{group}={choice}: unknown choice; {guess}expected one of {expected}"


def _unknown_key(override: str, failing: str, parent: DictConfig) -> str:
    """``failing`` is the unknown first part of ``override``; ``parent`` is its config section."""
    from omegaconf import OmegaConf

    section: Any = OmegaConf.to_container(parent)
    section.pop("hydra", None)
    key, _, value = override.partition("=")
    *above, name = failing.split(".")
    other = (_OTHER_NAMES.get(name) or _elsewhere(name, parent)) if key == failing else None
    if not section and not other:
        return f"{override}: unknown config key; to add it, write +{override}"
    guess = f"expected one of {', '.join(section)}"
    if other == "batch":
        guess = f"did you mean batch=GxN ({_setting('')})?"
    elif other:
        guess = f"did you mean {other}={value}?"
    elif match := _closest_key(section, key.split(".")[len(above) :]):
        guess = f"did you mean {'.'.join([*above, match])}={value}?"
    return f"{override}: unknown config key; {guess} (--cfg job shows all)"


def _closest_key(section: Any, names: Sequence[str]) -> str | None:
    """The key in ``section`` whose parts are the most similar to ``names``, if there is one."""
    match = closest_name(names[0], section) if isinstance(section, dict) else None
    if not match or not names[1:]:
        return match
    below = _closest_key(section[match], names[1:])
    return below and f"{match}.{below}"


def _elsewhere(name: str, parent: DictConfig) -> str | None:
    """The key of this name in another section, if there is exactly one."""
    root: Any = parent._get_root()
    keys = [f"{group}.{name}" for group in _GROUPS if name in (root.get(group) or ())]
    return keys[0] if len(keys) == 1 else None
