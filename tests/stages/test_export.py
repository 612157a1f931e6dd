from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cruxtune.errors import DataError, StoreError
from cruxtune.exporters import CONSUMERS
from cruxtune.exporters.preferences import Pair, read_pairs
from cruxtune.exporters.settings import ExportSettings, InspectSettings
from cruxtune.masks import IGNORE_INDEX
from cruxtune.records import Annotation
from cruxtune.settings import build
from cruxtune.stage_settings import AnnotateSettings, RespondSettings
from cruxtune.store import read_manifest, read_rows


@pytest.fixture
def annotations(world: Any) -> Path:
    """Annotated responses in the world of the stages."""
    from cruxtune.stages.annotate import annotate
    from cruxtune.stages.respond import respond

    respond(world.settings(RespondSettings, output=world.root / "responses"))
    output: Path = world.root / "annotations"
    annotate(world.settings(AnnotateSettings, responses=world.root / "responses", output=output))
    return output


def exported(annotations: Path, to: str, output: Path, **leaves: Any) -> dict[str, Any]:
    """Export and return the manifest."""
    from cruxtune.stages.export import export

    return export(build(ExportSettings, {"to": to, "annotations": annotations, "output": output, **leaves}))


def wanted(annotations: Path) -> list[tuple[list[int], list[int]]]:
    """The ids and labels that training on critical tokens means, straight from the annotations."""
    found = []
    for annotation in map(Annotation.from_row, read_rows(annotations)):
        if any(annotation.critical):
            prompt, response = annotation.response.prompt_ids, annotation.response.response_ids
            labels = [token if mark else -100 for token, mark in zip(response, annotation.critical, strict=True)]
            found.append((prompt + response, [-100] * len(prompt) + labels))
    return found


def unpadded(batch: Any) -> list[tuple[list[int], list[int]]]:
    """The (ids, labels) of a batch without padding."""
    rows = []
    for ids, labels, real in zip(batch["input_ids"], batch["labels"], batch["attention_mask"].bool(), strict=True):
        assert set(labels[~real].tolist()) <= {IGNORE_INDEX}
        rows.append((ids[real].tolist(), labels[real].tolist()))
    return rows


def collated_by_trl(rows: Any, model: Any, tokenizer: Any, work: Path) -> list[tuple[list[int], list[int]]]:
    """What SFTTrainer makes of a dataset, with the settings that the export advises."""
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(
        str(work),
        max_length=None,
        packing=False,
        use_cpu=True,
        bf16=False,
        report_to="none",
        activation_checkpointing=False,
    )
    trainer = SFTTrainer(model, args=config, train_dataset=rows, processing_class=tokenizer)
    return unpadded(
        trainer.data_collator([trainer.train_dataset[index] for index in range(len(trainer.train_dataset))])
    )


@pytest.mark.parametrize("masks", [False, True])
def test_trl_trains_exactly_the_critical_tokens(
    annotations: Path, tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, masks: bool
) -> None:
    """Through SFTTrainer's own preparation and collator, token by token, the labels are the critical mask's."""
    from datasets import load_dataset

    manifest = exported(annotations, "trl", tmp_path / "out", assistant_masks=masks)
    rows = load_dataset(
        "json", data_files=str(tmp_path / "out" / "train.jsonl"), split="train", cache_dir=str(tmp_path / "c")
    )
    found = collated_by_trl(rows, tiny_model(), tiny_tokenizer(), tmp_path / "work")
    assert found == wanted(annotations)
    assert len(found) >= 4
    trained = sum(label != -100 for _, labels in found for label in labels)
    assert manifest["accounting"]["tokens_trained"] == trained > 0


def test_the_directory_opens_as_a_dataset(annotations: Path, tmp_path: Path) -> None:
    """The card tells `datasets` which file holds the rows."""
    from datasets import load_dataset

    for to in ("trl", "verl"):
        manifest = exported(annotations, to, tmp_path / to)
        rows = load_dataset(str(tmp_path / to), split="train", cache_dir=str(tmp_path / "cache"))
        assert len(rows) == manifest["accounting"]["rows"]


@pytest.mark.parametrize("name", CONSUMERS)
def test_readers_recover_the_critical_tokens(name: str, annotations: Path, tmp_path: Path) -> None:
    """Each format holds the rows that training sees; the settings to copy are in the card and in the manifest."""
    manifest = exported(annotations, name, tmp_path / "out")
    rows = [(row.input_ids, row.labels) for row in CONSUMERS[name].read(tmp_path / "out")]
    assert rows == wanted(annotations)
    advice = manifest["advice"]
    assert advice["settings"] in (tmp_path / "out" / "README.md").read_text()
    assert all(advice["warnings"])
    assert advice["warnings"]
    assert manifest["facts"].keys() == {"tokenizer", "chat_template", "eos_ids"}


def test_a_finished_export_is_kept_and_another_refused(annotations: Path, tmp_path: Path) -> None:
    """The same command does nothing twice; other settings need --overwrite."""
    exported(annotations, "trl", tmp_path / "out")
    file = tmp_path / "out" / "train.jsonl"
    before = file.stat().st_mtime_ns
    exported(annotations, "trl", tmp_path / "out")
    assert file.stat().st_mtime_ns == before
    with pytest.raises(StoreError, match="to ="):
        exported(annotations, "verl", tmp_path / "out")
    exported(annotations, "verl", tmp_path / "out", overwrite=True)
    assert not file.exists()


def test_an_export_that_stopped_half_way_is_written_again(annotations: Path, tmp_path: Path) -> None:
    """Without its last line the manifest is not complete, and rows are written from the start."""
    whole = exported(annotations, "trl", tmp_path / "out")
    content = (tmp_path / "out" / "train.jsonl").read_bytes()
    manifest = read_manifest(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").write_text(json.dumps({**manifest, "complete": False}))
    (tmp_path / "out" / "train.jsonl").write_bytes(content[: len(content) // 2])
    assert exported(annotations, "trl", tmp_path / "out")["accounting"] == whole["accounting"]
    assert (tmp_path / "out" / "train.jsonl").read_bytes() == content


def test_long_rows_are_warned_of(annotations: Path, tmp_path: Path) -> None:
    """A row longer than TRL's default is said to be cut unless max_length is set."""
    from cruxtune.exporters.advice import Facts, swift, trl, verl

    assert any("cuts rows at 1024 tokens" in warning for warning in trl(tmp_path, Facts(1, 1025, False))[1])
    assert not any("cuts rows" in warning for warning in trl(tmp_path, Facts(1, 1024, False))[1])
    assert "--is_binary_loss_scale false" in swift(tmp_path, Facts(1, 9, True))[0]
    assert any("Megatron" in warning for warning in verl(tmp_path, Facts(1, 9, True))[1])


# Preference pairs


END = 258
"""The id of <|end|>."""


def bytes_and_end(text: str) -> list[int]:
    """The ids of a finished response."""
    return [*text.encode(), END]


@pytest.fixture
def sums(tmp_path: Path, tiny_checkpoint: Any, tiny_tokenizer: Any) -> Path:
    """Annotations of readable responses, made by hand: "It is N.", critical at the digit, rollouts kept.

    The first problem's best alternative was cut off, the second's both were, and the third's text has other ids.
    """
    from cruxtune.prompts import tokenizer_hash
    from cruxtune.records import ANNOTATION_SCHEMA, ROLLOUT_SCHEMA, Problem, Response, Rollout, Verdict
    from cruxtune.store import DatasetWriter

    model = tiny_checkpoint(tmp_path / "model", template="chatml")
    right, wrong = Verdict(True, "", "boxed"), Verdict(False, None, "no-answer")
    data, rollouts = [], []
    for number in range(6):
        ids, position = bytes_and_end(f"It is {number}."), len("It is ")
        bad = [bytes_and_end(f"It is {chr(ord('a') + rank)}.") for rank in range(2)]
        if number == 2:
            bad = [[*ids[:position], 0xC3, END], [*ids[:position], 0xC4, END]]
        reasons = ["stop", "stop"] if number > 1 else ["loop", "stop"] if number == 0 else ["loop", "length"]
        problem = Problem(f"p{number}", f"{number}?", str(number))
        response = Response(problem, list(f"Question: {number}?".encode()), ids, f"It is {number}.", "stop", right)
        width = range(len(ids))
        marks = [place == position for place in width]
        alternatives = [[other[position] for other in bad] if mark else [0, 1] for mark in marks]
        annotation = Annotation(
            response,
            alternatives,
            [[-1.0, -2.0] for _ in width],
            [[False, False] if mark else [True, None] for mark in marks],
            [-0.1 for _ in width],
            [0.5 for _ in width],
            list(marks),
        )
        data.append(annotation.to_row())
        for rank in range(2):
            rollout = Rollout(problem.id, position, rank, bad[rank], reasons[rank], wrong)
            rollouts.append(rollout.to_row())
    output = tmp_path / "sums"
    tables = {"data": ANNOTATION_SCHEMA, "rollouts": ROLLOUT_SCHEMA}
    with DatasetWriter(output, "annotate", {}, groups=1, tables=tables) as writer:
        writer.describe({"tokenizer": tokenizer_hash(tiny_tokenizer()), "chat_template": None, "eos_ids": [END]})
        writer.write(0, {"data": data, "rollouts": rollouts}, {})
        writer.close(settings={"model": {"model": str(model)}})
    return output


def test_pairs_part_at_critical_positions_and_dpo_trains_on_them(sums: Path, tmp_path: Path) -> None:
    """Chosen is the response from there, rejected a failing rollout; DPOTrainer sees these ids and takes a step."""
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    counts = exported(sums, "dpo", tmp_path / "out")["accounting"]
    pairs = list(read_pairs(tmp_path / "out"))
    expected = [
        Pair(
            f"p{number}",
            0,
            len("It is "),
            list(f"Question: {number}?It is ".encode()),
            bytes_and_end(f"{number}."),
            bytes_and_end("b." if number == 0 else "a."),
        )
        for number in (0, 3, 4, 5)
    ]
    assert pairs == expected
    assert (counts["rows"], counts["cut_off"], counts["other_ids"]) == (4, 1, 1)

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    config = DPOConfig(
        str(tmp_path / "work"),
        max_length=None,
        max_steps=1,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        learning_rate=1e-3,
        per_device_train_batch_size=4,
        save_strategy="no",
        logging_steps=1,
        activation_checkpointing=False,
    )
    file = str(tmp_path / "out" / "train.jsonl")
    rows = load_dataset("json", data_files=file, split="train", cache_dir=str(tmp_path / "cache"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    trainer = DPOTrainer(model, args=config, train_dataset=rows, processing_class=tokenizer)
    assert [ids_of(row) for row in trainer.train_dataset] == [ids_of(vars(pair)) for pair in pairs]
    before = [parameter.detach().clone() for parameter in model.parameters()]
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == [pytest.approx(0.6931, abs=1e-3)]
    assert any(not torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))


def ids_of(row: Any) -> tuple[list[int], list[int], list[int]]:
    """The three lists of ids of a pair."""
    return row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]


def test_pairs_of_two_responses_are_not_mixed(sums: Path, tiny_tokenizer: Any) -> None:
    """A rollout belongs to the response of its problem and sample; one that keeps the token is nobody's alternative."""
    from dataclasses import replace

    from cruxtune.exporters.preferences import Pairing

    first = next(one for one in map(Annotation.from_row, read_rows(sums)) if one.response.problem.id == "p3")
    second = replace(first, response=replace(first.response, sample=1))
    position = len("It is ")

    def rollout(sample: int, rank: int, text: str) -> dict[str, Any]:
        row = {"id": "p3", "sample": sample, "position": position, "rank": rank, "ids": bytes_and_end(text)}
        return {**row, "finish_reason": "stop", "correct": False}

    rows = [rollout(1, 0, "It is x."), rollout(0, 1, "It is y."), rollout(0, -1, "It is 3!")]
    pairing = Pairing(tiny_tokenizer(), rows)
    for sample, annotation, ending in ((0, first, "y."), (1, second, "x.")):
        ((pair, _),) = pairing.pairs(annotation)
        assert (pair.id, pair.sample, pair.position) == ("p3", sample, position)
        assert pair.rejected_ids == bytes_and_end(ending)


def test_pairs_whose_text_has_other_ids_are_left_out(tiny_tokenizer: Any) -> None:
    """Half a character re-encodes as another, and a beginning of sequence is not doubled."""
    from cruxtune.exporters.preferences import Pairing

    tokenizer = tiny_tokenizer()
    pairing = Pairing(tokenizer, [])

    def texts(prompt: Sequence[int], chosen: Sequence[int], rejected: Sequence[int]) -> Any:
        return pairing._texts(Pair("p", 0, 0, list(prompt), list(chosen), list(rejected)))

    eos = tokenizer.eos_token_id
    assert texts(b"1 + 1 = ", [*b"2", eos], [*b"3", eos]) == {
        "prompt": "1 + 1 = ",
        "chosen": "2<|end|>",
        "rejected": "3<|end|>",
    }
    assert texts(b"caf", [*"é".encode(), eos], [*b"e", eos]) is not None
    assert texts([*b"caf", 0xC3], [0xA9, eos], [0xA8, eos]) is None
    assert texts(b"1 + 1 = ", [*b"2", eos], b"3") is None


def test_no_pair_at_all_is_an_error(sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says why, and leaves nothing that looks like an export."""
    from cruxtune.exporters.preferences import Pairing

    monkeypatch.setattr(Pairing, "_texts", lambda self, pair: None)
    with pytest.raises(DataError, match="no critical position gives a pair"):
        exported(sums, "dpo", tmp_path / "out")
    assert not (tmp_path / "out" / "train.jsonl").exists()


# Rows as text


def shown(**leaves: Any) -> list[Any]:
    """What inspect returns."""
    from cruxtune.stages.inspect import inspect

    return inspect(build(InspectSettings, leaves))


def test_inspected_rows_are_what_training_sees(annotations: Path, tmp_path: Path, tiny_tokenizer: Any) -> None:
    """The text is the row's, in the collator without what follows the last trained token, and padding is counted."""
    rows = shown(annotations=annotations, limit=4)
    tokenizer = tiny_tokenizer()
    expected = wanted(annotations)[:4]
    lengths = [max(place for place, label in enumerate(labels) if label != -100) + 1 for _, labels in expected]
    for row, (ids, labels), length in zip(rows, expected, lengths, strict=True):
        for pieces, count in ((row.before, len(ids)), (row.after, length)):
            assert "".join(piece for piece, _ in pieces) == tokenizer.decode(ids[:count])
            assert [weight > 0 for _, weight in pieces] == [label != -100 for label in labels[:count]]
        assert row.padding == max(lengths) - length
    assert any(row.padding for row in rows)
    exported(annotations, "torchtune", tmp_path / "out")
    assert shown(exported=tmp_path / "out", limit=4) == rows


def test_pairs_are_not_inspected(sums: Path, tmp_path: Path) -> None:
    """They have no mask to show."""
    exported(sums, "dpo", tmp_path / "out")
    with pytest.raises(DataError, match="preference pairs"):
        shown(exported=tmp_path / "out")


def test_inspect_prints_brackets_where_there_is_no_terminal(
    annotations: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A head line for each view with its counts, then the text with brackets around trained tokens."""
    from cruxtune.printing import show_inspect

    rows = shown(annotations=annotations, limit=1)
    show_inspect(rows)
    printed = capsys.readouterr().out
    trained = sum(weight > 0 for _, weight in rows[0].before)
    heads = [line for line in printed.splitlines() if line.startswith("# row 0 ")]
    assert heads == [
        f"# row 0 {when} the collator: {len(pieces)} tokens, {trained} with loss"
        for when, pieces in (("before", rows[0].before), ("after", rows[0].after))
    ]
    assert printed.count("[") >= 2 * trained > 0
