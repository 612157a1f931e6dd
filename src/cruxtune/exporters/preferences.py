"""Preference pairs at critical positions, for direct preference optimisation by TRL's DPOTrainer.

At a critical position every alternative fails: the response from there on is chosen, the rollout of an alternative
rejected, and what both share is the prompt. DPOTrainer takes text alone and tokenises it again, so that a pair is
written only where that gives back its ids.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cruxtune.criticality import KEPT
from cruxtune.exporters.files import read_jsonl, write_jsonl
from cruxtune.records import Annotation

CUT_OFF = "cut off"
TEXT = "text"


@dataclass(frozen=True)
class Pair:
    """Two continuations of one beginning; `id` and `sample` are the response's, in which `position` counts."""

    id: str
    sample: int
    position: int
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


class Pairing:
    """Makes pairs of annotations and counts what it leaves out.

    `left_out` counts critical positions by reason: "cut off" where every rollout ended in a loop or at the limit, since
    DPOTrainer would put an end of sequence after it that the policy never said; "text" where the ids of text differ.
    """

    def __init__(self, tokenizer: Any, rollouts: Iterable[dict[str, Any]]) -> None:
        self._tokenizer = tokenizer
        self._rollouts: dict[tuple[str, int, int], list[dict[str, Any]]] = defaultdict(list)
        for rollout in rollouts:
            if not rollout["correct"] and rollout["rank"] != KEPT:
                self._rollouts[rollout["id"], rollout.get("sample", 0), rollout["position"]].append(rollout)
        self.left_out = Counter[str]()

    def pairs(self, annotation: Annotation) -> Iterator[tuple[Pair, dict[str, str]]]:
        """Yield a pair and its texts for each critical position: the first alternative whose rollout can be used."""
        for position, critical in enumerate(annotation.critical):
            if not critical:
                continue
            candidates = list(self._candidates(annotation, position))
            written = ((pair, texts) for pair in candidates if (texts := self._texts(pair)))
            if found := next(written, None):
                yield found
            else:
                self.left_out[TEXT if candidates else CUT_OFF] += 1

    def _candidates(self, annotation: Annotation, position: int) -> Iterator[Pair]:
        response = annotation.response
        ids = response.response_ids
        rollouts = sorted(self._rollouts[*response.key, position], key=lambda rollout: rollout["rank"])
        for rollout in rollouts:
            if rollout["finish_reason"] == "stop":
                prompt = [*response.prompt_ids, *ids[:position]]
                yield Pair(*response.key, position, prompt, ids[position:], rollout["ids"][position:])

    def _texts(self, pair: Pair) -> dict[str, str] | None:
        """Return prompt, chosen and rejected as text from which DPOTrainer makes the pair's ids; None if none does."""
        prompt, chosen, rejected = map(self._decode, (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids))
        prompts = [prompt]
        bos = self._tokenizer.bos_token
        if bos and prompt.startswith(bos):
            # Tokenizers that begin every text with it would do so once more.
            prompts.append(prompt[len(bos) :])
        for text in prompts:
            if self._ids(text, chosen, rejected) == (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids):
                return {"prompt": text, "chosen": chosen, "rejected": rejected}
        return None

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _ids(self, prompt: str, chosen: str, rejected: str) -> tuple[list[int], list[int], list[int]]:
        """Return the ids that DPOTrainer makes of texts (`_prepare_dataset` of TRL 1.16)."""
        eos = self._tokenizer.eos_token
        wholes = [
            self._tokenizer(prompt + (text if text.endswith(eos) else text + eos))["input_ids"]
            for text in (chosen, rejected)
        ]
        alone = self._tokenizer(prompt)["input_ids"]
        shared = min(_common_prefix(alone, whole) for whole in wholes)
        return alone[:shared], wholes[0][shared:], wholes[1][shared:]


def write_pairs(directory: Path, pairs: Iterable[tuple[Pair, dict[str, str]]]) -> None:
    """Write train.jsonl: the texts that DPOTrainer reads, and the ids that it makes of them."""
    write_jsonl(directory, ({**texts, **asdict(pair)} for pair, texts in pairs))


def read_pairs(directory: Path) -> Iterator[Pair]:
    """Yield what `write_pairs` wrote."""
    names = ("id", "sample", "position", "prompt_ids", "chosen_ids", "rejected_ids")
    for row in read_jsonl(directory):
        yield Pair(**{name: row[name] for name in names})


def _common_prefix(ids: list[int], others: list[int]) -> int:
    for length, (token, other) in enumerate(zip(ids, others, strict=False)):
        if token != other:
            return length
    return min(len(ids), len(others))
