"""Captions of the nano world: many phrasings over a closed vocabulary, at most 23 words."""

from __future__ import annotations

import random
import re
from typing import Any

NOUNS = {
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "block", "tile"),
    "triangle": ("triangle", "pyramid"),
    "star": ("star", "starfish"),
    "cross": ("cross", "plus"),
}
COLORS = {
    "red": ("red", "crimson"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "purple": ("purple", "violet"),
}
BACKGROUNDS = {
    "navy": ("navy", "midnight"),
    "cream": ("cream", "ivory"),
    "mint": ("mint", "seafoam"),
    "gray": ("gray", "slate"),
    "pink": ("pink", "rose"),
}
TEXTURES = {
    "plain": ("plain", "smooth"),
    "striped": ("striped", "pinstriped"),
    "dotted": ("dotted", "speckled"),
    "checkered": ("checkered", "chequered"),
}
SIZES = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
MOTIONS = {
    "left": ("glides to the left", "slides left", "moves left across the frame", "drifts from right to left"),
    "right": ("glides to the right", "slides right", "moves right across the frame", "drifts from left to right"),
    "up": ("rises", "floats up", "moves upwards", "climbs from the bottom to the top"),
    "down": ("falls", "sinks down", "moves downwards", "descends from the top to the bottom"),
    "grow": ("grows", "grows larger and larger", "expands in place", "swells up and comes closer"),
    "shrink": ("shrinks", "gets smaller and smaller", "contracts in place", "dwindles and goes further away"),
}
BACKDROPS = ("on a {background} background", "over a {background} backdrop", "in front of a {background} wall")
MANNERS = ("slowly", "calmly", "steadily", "gently", "")
TEMPLATES = (
    "a {size} {texture} {color} {noun} {motion} {backdrop}",
    "a {size} {color} {noun} with a {texture} surface {motion} {backdrop}",
    "{backdrop} a {size} {texture} {color} {noun} {manner} {motion}",
    "in this video a {size} {color} {texture} {noun} {motion} {backdrop}",
    "animation of a {texture} {color} {noun} of {size} size that {manner} {motion} {backdrop}",
    "a {color} {noun} {motion} {backdrop} the {noun} is {size} and {texture}",
    "close shot {backdrop} a {texture} {noun} {size} and {color} {manner} {motion}",
    "one {size} {noun} in {color} with {texture} paint {manner} {motion} {backdrop}",
)
MAX_WORDS = 23


def caption(words: dict[str, str], rng: random.Random) -> str:
    """A caption of a scene's attributes (see `Scenes.words`): a random phrasing, in lower case, unpunctuated."""
    while True:
        text = rng.choice(TEMPLATES).format(
            size=rng.choice(SIZES[words["size"]]),
            texture=rng.choice(TEXTURES[words["texture"]]),
            color=rng.choice(COLORS[words["color"]]),
            noun=rng.choice(NOUNS[words["shape"]]),
            motion=rng.choice(MOTIONS[words["motion"]]),
            backdrop=rng.choice(BACKDROPS).format(background=rng.choice(BACKGROUNDS[words["background"]])),
            manner=rng.choice(MANNERS),
        )
        pieces = text.split()
        if len(pieces) <= MAX_WORDS:
            return re.sub(r"\ba (?=[aeiou])", "an ", " ".join(pieces))


def sentence(text: str) -> str:
    """The caption as a person would write it: a capital and a full stop. The tokenizer sees no difference."""
    return text[:1].upper() + text[1:] + "."


def word_list() -> list[str]:
    """Every word that a caption can hold, sorted."""
    groups: list[Any] = [NOUNS, COLORS, BACKGROUNDS, TEXTURES, SIZES, MOTIONS]
    phrases = [phrase for group in groups for options in group.values() for phrase in options]
    phrases += [*BACKDROPS, *MANNERS, *TEMPLATES]
    return sorted({"an", *(word for phrase in phrases for word in phrase.split() if "{" not in word)})
