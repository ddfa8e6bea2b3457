"""Settings as people give them: a preset or a YAML file, `a.b=c` overrides, and a message where they are wrong."""

from __future__ import annotations

import difflib
import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from flashvideo_ray.errors import InputError

_SHOWN = 80  # characters of a wrong value


class SettingsError(InputError):
    """The settings are wrong. The message names the key and says what to do."""


def presets() -> list[str]:
    """Names of the presets that ship with the package."""
    folder = importlib.resources.files("flashvideo_ray") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read(source: str | Path) -> dict[str, Any]:
    """The keys and values of a preset or a YAML file. Raises SettingsError."""
    if str(source) in presets():
        text = (importlib.resources.files("flashvideo_ray") / "presets" / f"{source}.yaml").read_text()
    elif Path(source).is_file():
        try:
            text = Path(source).read_text()
        except UnicodeDecodeError:
            raise SettingsError(f"{source}: not a text file") from None
    else:
        raise SettingsError(f"{source}: neither a file nor a preset (presets: {', '.join(presets())})")
    try:
        tree = _parse(text)
    except _TwiceError as error:
        raise SettingsError(f"{source}: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SettingsError(f"{source}: not valid YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise SettingsError(f"{source}: expected keys and values at the top level, found a {type(tree).__name__}")
    return tree


class _TwiceError(Exception):
    """A key that a mapping has twice: YAML would silently keep the last."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses a key that is given twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            line, name = key.start_mark.line + 1, (key.tag, str(key.value))
            if name in first and key.tag != "tag:yaml.org,2002:merge":
                raise _TwiceError(
                    f"line {line}: the key {key.value} is given twice (first in line {first[name]}); drop one"
                )
            first[name] = line
        return node


def _parse(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def apply(tree: dict[str, Any], override: str) -> None:
    """Set `a.b=c` in the tree; the value is read as YAML, so `null`, numbers, lists and quotes work."""
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise SettingsError(f"--set {override}: expected key=value, for example --set pools.refine.size=4")
    try:
        value = _parse(text) if text.strip() else ""
    except _TwiceError as error:
        raise SettingsError(f"--set {override}: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        value = text  # an expression such as `motion > 0.5: ...` that YAML cannot read is a plain string
    *parents, leaf = key.strip().split(".")
    for name in parents:
        child = tree.setdefault(name, {})
        if not isinstance(child, dict):
            raise SettingsError(f"--set {override}: {name} holds a value, not keys")
        tree = child
    tree[leaf] = value


def explained(error: ValidationError, root: type[BaseModel], where: str) -> SettingsError:
    """What is wrong, a line for each wrong key."""
    return SettingsError("\n".join(_explain(issue, root, where) for issue in error.errors()))


def _explain(issue: Any, root: type[BaseModel], where: str) -> str:
    """One line for one validation error; an unknown key gets the nearest known one."""
    path = [str(part) for part in issue["loc"]]
    key = ".".join(path)
    if issue["type"] == "extra_forbidden":
        known = _fields_at(root, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {'.'.join([*path[:-1], near[0]])}?" if near else f"known keys: {', '.join(sorted(known))}"
        return f"{where}: unknown key {key}; {hint}"
    message = issue["msg"].removeprefix("Value error, ")
    hidden = isinstance(issue["input"], dict) or path[0] in ("credentials", "notify")  # a secret, maybe
    shown = "" if hidden else f" (found {_short(issue['input'])})"
    return f"{where}: {key}: {message}{shown}"


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        field = model.model_fields.get(part)
        annotation: Any = field.annotation if field is not None else None
        inner = next((a for a in (annotation, *get_args(annotation)) if _is_model(a)), None)
        if inner is None:
            # an item of a list (`score.scorers.0`): stay, the list's item model was reached already
            continue
        model = inner
    return list(model.model_fields)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
