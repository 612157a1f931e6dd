"""From problems to prompt ids and from ids to text: the only place that knows the tokenizer.

Every stage renders with the same settings, so that a policy is asked the same way when it responds, trains and is
evaluated. Responses are never re-tokenised: their ids are kept as generated.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from typing import Any

from cruxtune.errors import ConfigError, DataError, ModelError
from cruxtune.records import Problem
from cruxtune.settings import PromptSettings
from cruxtune.shots import Shots

CHAT_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
CHOICE_INSTRUCTION = "Please reason step by step, and put the letter of your choice within \\boxed{}."
_WINDOW = 32
"""Tokens decoded together, at least, where their character offsets are asked for."""
_SAID = "cruxtune was here"
"""What an assistant says where a chat template is asked what it puts behind that."""
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NEXT_QUESTION = "\nQuestion:"
_NOW = re.compile(r"strftime_now\(\s*(?P<quote>['\"])(?P<format>.*?)(?P=quote)\s*\)")


class Renderer:
    """A tokenizer with the prompt settings applied.

    Raises:
        ConfigError: template "chat" without a chat template, a date that is none, or examples that there are not.
        DataError: examples that cannot be read.
    """

    def __init__(self, tokenizer: Any, settings: PromptSettings) -> None:
        self.tokenizer = tokenizer
        self._settings = settings
        template = _chat_template(tokenizer)
        if settings.template == "chat" and not template:
            raise ConfigError("--template chat, but the tokenizer has no chat template; use --template plain")
        self.chat = settings.template != "plain" and bool(template)
        if settings.system is not None and not self.chat:
            raise ConfigError(
                f"--system {settings.system!r} needs a chat template; leave it out, or use --template chat"
            )
        self._template = _pin_date(template, settings.date) if template and self.chat else None
        self._shots = Shots(settings, chat=self.chat)

    def render(self, problem: Problem) -> list[int]:
        """Return the prompt ids of a problem, up to where the response begins.

        Raises:
            DataError: the chat template refuses the messages.
        """
        shown = [(self.user_text(example), worked_solution(example)) for example in self._shots.before(problem)]
        text = self.user_text(problem)
        if not self.chat:
            before = "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in shown)
            return self._without_final_eos(self.tokenizer(f"{before}Question: {text}\nAnswer:")["input_ids"])
        messages = [
            message
            for question, answer in shown
            for message in ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
        ]
        messages.append({"role": "user", "content": text})
        if self._settings.system is not None:
            messages.insert(0, {"role": "system", "content": self._settings.system})
        try:
            encoded = self.tokenizer.apply_chat_template(
                messages, chat_template=self._template, add_generation_prompt=True, tokenize=True, return_dict=True
            )
        except Exception as error:  # a template is the model author's code: it raises what it likes
            raise DataError(
                f"the chat template fails on problem {problem.id} ({error}); use --template plain"
            ) from error
        return list(encoded["input_ids"])

    def user_text(self, problem: Problem) -> str:
        """Return the question with its options and the instruction."""
        parts = [problem.question]
        if problem.choices:
            parts.append(
                "\n".join(f"({letter}) {text}" for letter, text in zip(_LETTERS, problem.choices, strict=False))
            )
        instruction = self._settings.instruction
        if instruction is None and self.chat:
            instruction = CHOICE_INSTRUCTION if problem.choices else CHAT_INSTRUCTION
        if instruction:
            parts.append(instruction)
        return "\n".join(parts)

    def solution_ids(self, problem: Problem) -> list[int]:
        """Return the ids of the worked solution as a response that ends as responses do (see `text_ids`).

        The plain template ends in "Answer:", so that a solution there begins with a space.

        Raises:
            DataError: the problem has no worked solution.
            ModelError: the tokenizer has no end-of-sequence token.
        """
        if not problem.solution:
            raise DataError(
                f"problem {problem.id} has no worked solution, and --method gold and --worked-solutions take them; "
                "map a column with --field solution=COLUMN"
            )
        return self.text_ids(worked_solution(problem) if self.chat else " " + worked_solution(problem), ended=True)

    def text_ids(self, text: str, *, ended: bool) -> list[int]:
        """Return the ids of a text as a response; an ended one has the token that ends it.

        That is the one that the chat template puts behind a turn, where it is used, else the tokenizer's end of a
        sequence.

        Raises:
            ModelError: there is no such token.
        """
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if not ended:
            return ids
        if self._end_id is None:
            raise ModelError("the tokenizer has no end-of-sequence token, so that a response could never end; set one")
        return [*ids, self._end_id]

    @cached_property
    def _end_id(self) -> int | None:
        turn = end_of_turn_id(self.tokenizer) if self.chat else None
        end: int | None = self.tokenizer.eos_token_id if turn is None else turn
        return end

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of response ids, special tokens left out: what the verifier reads.

        After plain examples a base model goes on with questions of its own making; these are no part of its answer.
        """
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text if self.chat or not self._shots.count else text.partition(_NEXT_QUESTION)[0]

    def end_ids(self) -> set[int]:
        """Return the ids that end a response because of how the policy is asked, besides those that end a sequence.

        Plain examples are separated by a blank line, behind which a base model goes on with a question of its own, up
        to the token limit: tokens with a blank line end its responses, unless an example's own answer has one.
        """
        if self.chat or not self._shots.count or self._shots.any_answer(_has_blank_line):
            return set()
        texts = self.tokenizer.batch_decode([[number] for number in range(len(self.tokenizer))])
        return {number for number, text in enumerate(texts) if _has_blank_line(text)}

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return what each token adds to the text, special tokens shown.

        A character of several tokens belongs to its last one, so that the pieces concatenate to the text.
        """
        pieces, done = [], ""
        for end in range(1, len(ids) + 1):
            text = self.tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            whole = text.startswith(done) and (not text.endswith("\ufffd") or end == len(ids))
            pieces.append(text[len(done) :] if whole else "")
            done = text if whole else done
        return pieces

    def facts(self) -> dict[str, Any]:
        """Return what identifies tokenizer and template, for manifests."""
        template = hashlib.sha256(self._template.encode()).hexdigest() if self._template else None
        return {
            "tokenizer": tokenizer_hash(self.tokenizer),
            "chat_template": template,
            "template_date": self._settings.date if self.chat else None,
            **({"examples": self._shots.fingerprint()} if self._shots.count else {}),
        }

    def _without_final_eos(self, ids: list[int]) -> list[int]:
        # Some tokenizers end every text with EOS; a prompt that ends so would ask for nothing.
        return ids[:-1] if len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id else ids


def character_spans(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of response ids and each token's (start, end) in it, special tokens left out (empty spans).

    A token that holds some bytes of a character has the whole character in its span, so that spans may overlap.
    """

    def decode(part: Sequence[int]) -> str:
        return tokenizer.decode(part, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    text = decode(ids)
    spans: list[tuple[int, int]] = []
    anchor = base = start = 0
    for place in range(len(ids)):
        piece = decode(ids[anchor : place + 1])
        # What is decoded of an unfinished character is a replacement mark, which the whole text does not have there.
        agreed = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(piece, text[base:], strict=False)))
        end = base + agreed
        spans.append((start, min(end + (agreed < len(piece)), len(text))))
        start = end
        # Decoding from the beginning every time would be quadratic, and from anywhere else may differ at its start.
        if agreed == len(piece) and place - anchor >= _WINDOW:
            last = decode(ids[place : place + 1])
            if last and text.endswith(last, 0, end):
                anchor, base = place, end - len(last)
    return text, spans


def end_of_turn_id(tokenizer: Any) -> int | None:
    """Return the id that the chat template puts behind an assistant's turn, None where it puts none there.

    Base models with a chat template often name another token as their end of sequence (Qwen2.5 does).
    """
    template = _chat_template(tokenizer)
    if not template:
        return None
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _SAID}]
    try:
        text = tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)
    except Exception:  # a template is the model author's code: it raises what it likes
        return None
    _, said, behind = text.rpartition(_SAID)
    rest = behind.lstrip() if said else ""
    special = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    # The longest one, if one begins as another does.
    return special.get(max((token for token in special if rest.startswith(token)), key=len, default=""))


def worked_solution(problem: Problem) -> str:
    r"""Return the worked solution with its answer stated, so that the verifier finds it.

    >>> worked_solution(Problem("p", "1 + 1?", "2", solution="One and one make two."))
    'One and one make two.\n#### 2'
    >>> worked_solution(Problem("p", "1 + 1?", "2", solution="So \\boxed{2}."))
    'So \\boxed{2}.'
    """
    solution = (problem.solution or "").strip()
    stated = "####" in solution or "\\boxed" in solution
    if stated:
        return solution
    return f"{solution}\n#### {problem.answer}" if solution else f"#### {problem.answer}"


def tokenizer_hash(tokenizer: Any) -> str:
    """Return a hash of what ids mean: the vocabulary with its added tokens."""
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    text = json.dumps(sorted(vocabulary.items(), key=lambda item: (item[1], item[0])), ensure_ascii=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _has_blank_line(text: str) -> bool:
    return "\n\n" in text


def _chat_template(tokenizer: Any) -> str | None:
    """Return the chat template; of several (one for tools, say), the one called default."""
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, Mapping) else template


def _pin_date(template: str, date: str) -> str:
    """Replace a template's calls for today's date by a fixed one: a prompt must not depend on the day.

    >>> _pin_date('{{ strftime_now("%d %b %Y") }}', "2024-07-26")
    "{{ '26 Jul 2024' }}"
    """
    try:
        day = datetime.date.fromisoformat(date)
    except ValueError as error:
        raise ConfigError(f"--date {date!r} is no date; write it as YYYY-MM-DD") from error
    return _NOW.sub(lambda call: repr(day.strftime(call["format"])), template)
