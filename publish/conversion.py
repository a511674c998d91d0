"""How weights are made, as a card prints it: the variables to fill in, and the steps with the edits of config.json between them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from release.types import JSON

VARIABLE: Final = re.compile(r"\$\{?([A-Z][A-Z0-9_]*)")
OWN: Final = ("SRC", "DST")
"""What we say ourselves where it lies: the checkpoint, and what is made of it."""
MODULES: Final = "examples."
ROOT: Final = "LLM_PATH"
"""Modules of the vendor's own are found from its folder alone, and its papers run its scripts there too."""
SENTENCE: Final = re.compile(r"(?<=[.!?])\s+")
PLACES: Final = {"before the first step": 0, "between the steps": 1}
"""Words of a recipe's note by which a sentence of it belongs in front of a command: that command's number, from 0."""
KEY: Final = re.compile(r"[a-z][a-z0-9_]*")
PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
EDIT: Final = (
    "import json, sys; path = sys.argv[1]; made = json.load(open(path)) | {edits}; json.dump(made, open(path, 'w'), indent=2)"
)


@dataclass(frozen=True)
class Step:
    """A command, with what is done before it: in the words of the recipe, and as a command of ours where they name a field that is set."""

    said: str
    edit: tuple[str, ...]
    command: tuple[str, ...]


@dataclass(frozen=True)
class Conversion:
    """A recipe as a reader runs it: what is left of its note, the variables that they fill in, the folder it runs in, and the steps."""

    note: str
    variables: tuple[str, ...]
    root: str
    steps: tuple[Step, ...]

    @property
    def declared(self) -> tuple[str, ...]:
        """Every variable that has a value when the commands run."""
        return (*OWN, *self.variables)


def conversion_of(recipe: JSON | None) -> Conversion | None:
    """Return the recipe of a plan (its `weights`) in steps; None where it has no commands."""
    commands = [tuple(map(str, command)) for command in recipe["commands"]] if recipe else []
    if not recipe or not commands:
        return None
    modules = any(word.startswith(MODULES) for command in commands for word in command)
    named = [name for command in commands for word in command for name in VARIABLE.findall(word)]
    variables = dict.fromkeys([*([ROOT] if modules else []), *(name for name in named if name not in OWN)])
    sentences = SENTENCE.split(str(recipe["note"]).strip())
    placed = [(sentence, _place(sentence, len(commands))) for sentence in sentences]
    steps = []
    for number, command in enumerate(commands):
        said = [sentence for sentence, place in placed if place == number]
        edits = dict(_edits(said, recipe["config"]))
        made_by = commands[number - 1] if number else ()
        steps.append(Step(" ".join(said), _edit(edits, _folder(made_by)), command))
    rest = " ".join(sentence for sentence, place in placed if place is None)
    return Conversion(rest, tuple(variables), ROOT if ROOT in variables else "", tuple(steps))


def _place(sentence: str, steps: int) -> int | None:
    found = (place for words, place in PLACES.items() if words in sentence.lower())
    return next((place for place in found if place < steps), None)


def _edits(sentences: Sequence[str], config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the fields of config.json that sentences name, with the values that the recipe sets."""
    words = set(re.findall(r"[a-z0-9_]+", " ".join(sentences)))
    for key, value in config.items():
        if key in words and KEY.fullmatch(key) and isinstance(value, str) and PLAIN.fullmatch(value):
            yield key, value


def _edit(edits: dict[str, str], folder: str) -> tuple[str, ...]:
    if not edits or not folder:
        return ()
    said = "{" + ", ".join(f'"{key}": "{value}"' for key, value in edits.items()) + "}"
    return "python3", "-c", EDIT.replace("{edits}", said).replace("'w'", '"w"'), f"{folder}/config.json"


def _folder(command: Sequence[str]) -> str:
    """Return the folder that a command has written to, as far as its words tell; the checkpoint's where there is no command before."""
    if not command:
        return "$SRC"
    return next((word for word in command if re.fullmatch(r"\$DST[A-Za-z0-9._-]*", word)), "")
