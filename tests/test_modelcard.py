"""The model card: readable by the Hub's library, true to the manifest, and silent about the licence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from cruxtune.modelcard import lineage, write_card
from cruxtune.settings import ModelSettings, build
from cruxtune.stage_settings import TrainSettings


def manifest(**changes: Any) -> dict[str, Any]:
    """A manifest as `train` leaves it."""
    leaves = {"method": "cft", "annotations": "a", "output": "o", "seed": 7, "learning_rate": 2e-5}
    return {
        "stage": "train",
        "format": 1,
        "base_model": "org/model",
        "facts": {
            "method": "cft",
            "rows": 1200,
            "rows_dropped": 3,
            "tokens_per_epoch": 50,
            "response_tokens_per_epoch": 400,
            "validation_problems": 40,
        },
        "identity": {"annotations": "sha256:abc", "validation": "def"},
        "settings": build(TrainSettings, {**leaves, **changes}).model_dump(mode="json"),
        "accounting": {"steps": 9, "tokens_trained": 1150},
        "loss": {"first": 1.5, "last": 0.25},
        "validation": {
            "accuracy": 0.75,
            "loss": 0.5,
            "step": 6,
            "accuracy_at_start": 0.5,
            "validations": 4,
            "stopped_early": True,
        },
    }


def test_the_card_says_what_was_done(tmp_path: Path) -> None:
    """Method, base, data with fingerprints and shares, settings, numbers and use; no licence in the header."""
    write_card(tmp_path, manifest(trainer={"weight_decay": 0.1}), ModelSettings(model="org/model"), "annotations")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == "org/model"
    assert card.data.library_name == "transformers"
    assert card.data.license is None
    assert {"cruxtune", "cft"} <= set(card.data.tags)
    for part in (
        "org/model, fine-tuned",
        "method `cft`",
        "`sha256:abc`",
        "1,200, 3 too long",
        "50 of 400 response tokens (12.5 %)",
        "40 problems",
        "| learning rate | 2e-05 |",
        "| seed | 7 |",
        "| trainer: weight_decay | 0.1 |",
        "1.5000 in the first step, 0.2500 in the last",
        "75.0 % at step 6, 50.0 % before training",
        "| stopped early | after step 9 |",
        'AutoModelForCausalLM.from_pretrained("',
        "name one as `license:`",
    ):
        assert part in card.text, part


@pytest.mark.parametrize("own_base", [False, True])
def test_the_card_of_an_adapter_loads_it_with_peft(tmp_path: Path, own_base: bool) -> None:
    """An adapter is loaded by PEFT, on the base beside it where there is one."""
    (tmp_path / "adapter_config.json").write_text("{}")
    if own_base:
        (tmp_path / "base").mkdir()
    values = manifest(lora=True, lora_rank=8, push_to_hub="me/mine")
    del values["validation"]
    write_card(tmp_path, values, ModelSettings(model="org/model"), "annotations")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "peft"
    assert "rank 8, alpha 32" in card.text
    assert "Validation chose" not in card.text
    own, other = 'PeftModel.from_pretrained(base, "me/mine")', 'AutoPeftModelForCausalLM.from_pretrained("me/mine")'
    assert (own if own_base else other) in card.text


def test_the_base_is_followed_through_cold_starts(tmp_path: Path) -> None:
    """A model trained from one of ours names both; a plain directory names no model of the Hub."""
    ours = tmp_path / "start"
    ours.mkdir()
    (ours / "manifest.json").write_text(json.dumps(manifest()))
    assert lineage(ModelSettings(model=str(ours))) == (["start", "org/model"], "org/model")
    (tmp_path / "plain").mkdir()
    assert lineage(ModelSettings(model=str(tmp_path / "plain"))) == (["plain"], None)
    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert lineage(ModelSettings(model="embedded")) == ([name], name)


def test_the_tables_of_the_card_are_tables(tmp_path: Path) -> None:
    """No blank line stands between the rows of a table, which would end it."""
    write_card(tmp_path, manifest(), ModelSettings(model="org/model"), "annotations")
    text = (tmp_path / "README.md").read_text()
    assert "| --- | --- |\n| annotations | `annotations` |\n| fingerprint |" in text
    assert "|\n\n|" not in text
    assert "|\n\n## Settings\n" in text
