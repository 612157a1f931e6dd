"""Which responses are annotated, and in whose tokens."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cruxtune.errors import ConfigError, DataError
from cruxtune.models import Policy, fingerprint, load_tokenizer
from cruxtune.prompts import Renderer
from cruxtune.records import Response
from cruxtune.settings import ModelSettings, recorded
from cruxtune.stage_settings import RespondSettings
from cruxtune.store import finished_manifest, read_rows

_log = logging.getLogger("cruxtune")

_SAME = ("architecture", "commit", "parameters", "dtype", "eos_ids", "context_length", "tokenizer")
"""Facts on which a greedy response depends, beside the model's files, its prompt and the decoding settings."""


@dataclass(frozen=True)
class Annotatable:
    """The responses to annotate, as tokens of the model that annotates.

    `past` are the settings that they were made with, `manifest` is theirs. `left_out` counts correct responses by why
    they are not annotated. `retokenised` says that the model has another tokenizer than the one that responded.
    """

    responses: list[Response]
    manifest: Mapping[str, Any]
    past: RespondSettings
    model: ModelSettings
    left_out: Mapping[str, int]
    retokenised: bool

    def check(self, policy: Policy) -> Policy:
        """Return the policy if it is the one that the responses were prepared for.

        Raises:
            ConfigError: its tokenizer is another one by now.
        """
        if not self.retokenised and policy.facts["tokenizer"] != self.manifest["facts"]["tokenizer"]:
            raise ConfigError(
                f"the tokenizer of {self.model.model} is no longer the one that made --responses: its ids mean other "
                "text; run `cruxtune respond` again"
            )
        return policy

    def keep(self, policy: Policy) -> list[bool]:
        """Return for each response whether keeping its tokens has to be rolled out.

        It has to unless the response is the policy's own greedy one: same model, precision and decoding.
        """
        made = self.manifest["facts"]
        same = fingerprint(self.model) == self.manifest["identity"]["model"]
        same = same and all(policy.facts.get(name) == made.get(name) for name in _SAME)
        return [not (same and response.origin == "greedy") for response in self.responses]


def annotatable(
    path: Path, model: ModelSettings | None, limit: int | None, *, policy: Policy | None = None
) -> Annotatable:
    """Return the first `limit` of the distinct correct responses, for a model (by default the one that responded).

    Token limit, verifier and prompt are those of the responses. Of the same response to a problem twice the first is
    taken. For a model of another tokenizer the prompt is rendered anew and the text tokenised again, with an
    end-of-sequence token where the response ended by itself; a text that does not survive that is left out, and so is a
    response longer than the token limit.

    Raises:
        DataError: there is none.
        StoreError: the responses are unfinished.
    """
    manifest = finished_manifest(path, "respond", "--responses")
    past = recorded(RespondSettings, manifest["settings"], path)
    settings = model or past.model
    distinct, left_out = _correct(path)
    distinct = distinct[:limit]
    renderer = policy.renderer if policy else _other_renderer(settings, past, manifest)
    retokenised = renderer is not None and renderer.facts()["tokenizer"] != manifest["facts"]["tokenizer"]
    if renderer is not None and retokenised:
        again = [_retokenised(response, renderer) for response in distinct]
        left_out["text"] += again.count(None)
        distinct = [response for response in again if response is not None]
    most = past.decoding.max_new_tokens
    responses = [response for response in distinct if len(response.response_ids) <= most]
    left_out["long"] += len(distinct) - len(responses)
    if left_out["text"] or left_out["long"]:
        _log.warning(
            "left out %d responses whose text the tokenizer of %s changes, and %d of more than %d tokens",
            left_out["text"],
            settings.model,
            left_out["long"],
            most,
        )
    if not responses:
        raise DataError(
            f"--responses {path}: none of {sum(left_out.values())} correct responses can be annotated by "
            f"{settings.model}: its tokenizer changes the text of {left_out['text']}, and {left_out['long']} have more "
            f"than {most} tokens; use another --model, or respond with more --max-new-tokens"
        )
    return Annotatable(responses, manifest, past, settings, left_out, retokenised)


def _other_renderer(model: ModelSettings, past: RespondSettings, manifest: Mapping[str, Any]) -> Renderer | None:
    """Return the renderer of a model that is not the one that responded."""
    if fingerprint(model) == manifest["identity"]["model"]:
        return None
    return Renderer(load_tokenizer(model), past.prompt)


def _correct(path: Path) -> tuple[list[Response], Counter[str]]:
    rows = [Response.from_row(row) for row in read_rows(path)]
    correct = [response for response in rows if response.verdict.correct]
    if not correct:
        raise DataError(
            f"--responses {path}: 0 of {len(rows)} responses are correct, so there is nothing to annotate; "
            "use easier problems, a stronger model, or a cold start first (cruxtune train --method gold)"
        )
    distinct: dict[tuple[str, tuple[int, ...]], Response] = {}
    for response in correct:
        distinct.setdefault((response.problem.id, tuple(response.response_ids)), response)
    return list(distinct.values()), Counter(repeated=len(correct) - len(distinct))


def _retokenised(response: Response, renderer: Renderer) -> Response | None:
    """Return the response in the tokens of a renderer, None where its text would be another."""
    ids = renderer.text_ids(response.text, ended=response.finish_reason == "stop")
    if not ids or renderer.decode(ids) != response.text:
        return None
    return replace(response, prompt_ids=renderer.render(response.problem), response_ids=ids)
