"""A question set: one JSON object a line, pinned by its digest.

    {"id": "add-0000", "prompt": "What is 13+73?", "answer": "86"}
    {"id": "q7", "prompt": "…\\nA. iron\\nB. gold\\nAnswer with a letter.", "answer": "B", "cluster": "chemistry"}
    {"id": "q8", "prompt": "The capital of France is", "choices": [" Rome", " Paris"], "answer": "B", "cluster": "geography"}

`prompt` is sent as it stands, one user message of a chat; shots, choices and instructions are part of it. `answer` is what the grader
takes out of a right answer. `cluster` names what belongs together (a subject, a passage). Only `choice-loglikelihood` needs `choices`:
each is scored as what follows the prompt in a text completion, so it begins with the space that separates them; the answer is the
letter of its place. No choice should be the beginning of another one, which is then never less likely.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, ValidationError

from release.errors import FetchError, MatrixError
from release.types import Frozen
from release.validators.graders import GRADERS, LOGLIKELIHOOD
from release.validators.samples import complaint, json_lines

LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Question(Frozen):
    """One line of a question file."""

    id: Annotated[str, Field(min_length=1, max_length=200)]
    prompt: Annotated[str, Field(min_length=1)]
    answer: Annotated[str, Field(min_length=1)]
    choices: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(max_length=26)] = ()
    cluster: Annotated[str, Field(min_length=1, max_length=200)] | None = None


def read_questions(path: Path, sha256: str, grader: str) -> tuple[Question, ...]:
    """Read a question file: JSONL, ids unique, answers such as `grader` understands.

    Raises FetchError if the file is missing or its digest is not `sha256`, and MatrixError with file and line if a line is
    malformed.
    """
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise FetchError(f"the questions cannot be read: {problem.strerror}", where=str(path)) from problem
    found = "sha256:" + hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise FetchError(
            f"the questions have {found}, and the matrix says {sha256}", where=str(path), next_step="restore the file"
        )
    questions: dict[str, Question] = {}
    for where, value in json_lines(data, path, MatrixError):
        if isinstance(value.get("choices"), list):
            value["choices"] = tuple(value["choices"])
        try:
            question = Question.model_validate(value)
        except ValidationError as problem:
            raise MatrixError(f"no question: {complaint(problem)}", where=where) from problem
        if not question.id.strip() or not question.prompt.strip():
            raise MatrixError("id or prompt is blank", where=where)
        if question.id in questions:
            raise MatrixError(f"question id {question.id!r} stands twice", where=where)
        _check_answer(question, grader, where)
        questions[question.id] = question
    return tuple(questions.values())


def _check_answer(question: Question, grader: str, where: str) -> None:
    if GRADERS[grader](question.answer) is None:
        raise MatrixError(f"answer {question.answer!r} is none that the grader {grader} understands", where=where)
    if grader == LOGLIKELIHOOD and len(question.choices) < 2:
        raise MatrixError(f"the grader {grader} needs 'choices', two at least", where=where)
    if question.choices and question.answer not in tuple(LETTERS[: len(question.choices)]):
        raise MatrixError(f"answer {question.answer!r} is the letter of none of {len(question.choices)} choices", where=where)
    if len(set(question.choices)) < len(question.choices):
        raise MatrixError("a choice stands twice", where=where)
