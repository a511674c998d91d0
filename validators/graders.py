"""What takes the answer out of a text: strict patterns, one canonical spelling, and None where there is no answer."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from typing import Final

INTEGER: Final = re.compile(r"([+-]?[0-9]{1,1000})\.?")
NUMBER: Final = re.compile(r"-?(?:[0-9]{1,3}(?:,[0-9]{3}){1,300}|[0-9]{1,1000})(?:\.[0-9]{1,1000})?(?![0-9])")
BOXED: Final = re.compile(r"\\boxed\{\s{0,9}([+-]?[0-9]{1,1000})\s{0,9}\}")
LONE: Final = re.compile(r"\**\(?([A-Z])\)?[.:]?\**\.?")
SAID: Final = re.compile(
    r"(?i:(?:.{0,200}\b)?answer(?: is)?[:：]?|.{0,200}答案(?:是|为)?[:：]?|.{0,200}\\boxed\{)\s{0,9}\**\(?([A-Z])\)?\}?\**[.。]?\$?"
)
YES_NO: Final = re.compile(r"(?i:(?:.{0,200}\banswer(?: is)?[:：]?)?\s{0,9}\**(yes|no)\**[.!。]?)")


def said(text: str) -> str:
    """Return what a text says after its thoughts, without surrounding white space."""
    return text.rpartition("</think>")[2].strip()


def last_line(text: str) -> str:
    """Return the last line of what a text says that is not blank."""
    return said(text).rpartition("\n")[2].strip()


def final_integer(text: str) -> str | None:
    """Return the integer that `text` answers with, in canonical form ("82" for "+082."), or None.

    What follows the last `</think>`, without surrounding white space, must be one integer in ASCII digits and nothing else,
    except for one period that ends the sentence. "82.0", "1,024", "37+45=82" and an unclosed `<think>` are no answers.
    """
    match = INTEGER.fullmatch(said(text))
    return str(int(match[1])) if match else None


def last_number(text: str) -> str | None:
    """Return the last number in what a text says ("1024" for "$1,024.00"), as GSM8K is commonly graded, or None."""
    found = NUMBER.findall(said(text))
    if not found:
        return None
    number = Decimal(found[-1].replace(",", ""))
    plain = f"{number:f}"
    short = plain.rstrip("0").rstrip(".") if "." in plain else plain
    whole, dot, rest = short.removeprefix("-").partition(".")
    canonical = (whole.lstrip("0") or "0") + dot + rest
    return canonical if canonical == "0" or not short.startswith("-") else f"-{canonical}"


def boxed_integer(text: str) -> str | None:
    r"""Return the integer in the last \boxed{…} of what a text says, or None; a text that is an integer alone is one too."""
    found = BOXED.findall(said(text))
    return str(int(found[-1])) if found else final_integer(text)


def exact(text: str) -> str | None:
    """Return what a text says, in Unicode's composed form, or None if it says nothing."""
    return unicodedata.normalize("NFC", said(text)) or None


def choice_letter(text: str) -> str | None:
    r"""Return the capital letter that a text chooses, or None.

    What is said must be that letter alone ("B", "(B)", "**B**."), or its last line must end with it after "answer", "答案" or \boxed.
    """
    match = LONE.fullmatch(said(text)) or SAID.fullmatch(last_line(text)) or LONE.fullmatch(last_line(text))
    return match[1] if match else None


def yes_no(text: str) -> str | None:
    """Return "yes" or "no" where a text says that alone, or its last line says it after "answer"; else None."""
    match = YES_NO.fullmatch(said(text)) or YES_NO.fullmatch(last_line(text))
    return match[1].lower() if match else None


def choice_loglikelihood(text: str) -> str | None:
    """Return the letter of the most likely choice, given their log-likelihoods as a JSON list, or None where two share the top.

    A capital letter alone stands for itself: an expected answer.
    """
    if re.fullmatch(r"[A-Z]", text):
        return text
    try:
        values = [float(value) for value in json.loads(text)]
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None
    if not values or len(values) > 26 or any(map(math.isnan, values)):
        return None
    top = max(values)
    return chr(ord("A") + values.index(top)) if values.count(top) == 1 else None


GRADERS: Final[dict[str, Callable[[str], str | None]]] = {
    "final-integer": final_integer,
    "last-number": last_number,
    "boxed-integer": boxed_integer,
    "exact": exact,
    "choice-letter": choice_letter,
    "yes-no": yes_no,
    "choice-loglikelihood": choice_loglikelihood,
}
"""What takes the answer out of a text, by the name it has in the matrix; answers are compared as its canonical strings."""
LOGLIKELIHOOD: Final = "choice-loglikelihood"
"""The grader that asks no question: it lets the model score each choice."""
