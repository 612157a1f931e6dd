from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cruxtune.errors import ConfigError, DataError
from cruxtune.masks import IGNORE_INDEX, training_row
from cruxtune.records import Annotation
from cruxtune.stage_settings import AnnotateSettings, RespondSettings, TrainSettings
from cruxtune.store import read_rows


@pytest.fixture
def annotations(world: Any) -> Path:
    """Annotated responses in the world of the stages."""
    from cruxtune.stages.annotate import annotate
    from cruxtune.stages.respond import respond

    respond(world.settings(RespondSettings, output=world.root / "responses"))
    output = world.root / "annotations"
    annotate(world.settings(AnnotateSettings, responses=world.root / "responses", output=output))
    return output


def trained(annotations: Path, output: Path, **leaves: Any) -> dict[str, Any]:
    """Train on the annotations with a few short steps in float64 unless told otherwise."""
    from cruxtune.settings import build
    from cruxtune.stages.train import train

    defaults = {"annotations": annotations, "output": output, "epochs": 2, "batch_size": 4, "learning_rate": 1e-3}
    return train(build(TrainSettings, {**defaults, **leaves}))


def loss_inputs(annotations: Path, output: Path, monkeypatch: pytest.MonkeyPatch, **leaves: Any) -> list[Any]:
    """Train, and return the (input ids, labels, attention mask) of every batch that reached the loss."""
    from cruxtune.weighted import WeightedTrainer

    seen: list[Any] = []
    original = WeightedTrainer.compute_loss

    def spy(self: Any, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        seen.append((inputs["input_ids"].tolist(), inputs["labels"].tolist(), inputs["attention_mask"].tolist()))
        return original(self, model, inputs, *args, **options)

    monkeypatch.setattr(WeightedTrainer, "compute_loss", spy)
    trained(annotations, output, **leaves)
    return seen


def rows_of(batches: list[Any]) -> list[tuple[list[int], list[int]]]:
    """The rows of all batches without their padding."""
    rows = []
    for ids, labels, mask in batches:
        for row_ids, row_labels, row_mask in zip(ids, labels, mask, strict=True):
            assert all(label == IGNORE_INDEX for label, real in zip(row_labels, row_mask, strict=True) if not real)
            length = sum(row_mask)
            rows.append((row_ids[:length], row_labels[:length]))
    return rows


@pytest.mark.parametrize("method", ["cft", "sft"])
def test_the_labels_that_reach_the_loss(
    method: str, annotations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exactly the chosen tokens carry labels, unshifted, and what no loss depends on is left out behind them."""
    found = rows_of(loss_inputs(annotations, tmp_path / "out", monkeypatch, method=method, epochs=1))
    wanted = []
    for annotation in map(Annotation.from_row, read_rows(annotations)):
        if any(annotation.critical):
            response = annotation.response
            mask = annotation.critical if method == "cft" else [True] * len(annotation.critical)
            row = training_row(response.prompt_ids, response.response_ids, mask)
            assert [label for label in row.labels if label != IGNORE_INDEX] == [
                token for token, kept in zip(response.response_ids, mask, strict=True) if kept
            ]
            end = max(place for place, label in enumerate(row.labels) if label != IGNORE_INDEX) + 1
            wanted.append((row.input_ids[:end], row.labels[:end]))
    assert len(wanted) >= 4
    assert sorted(found) == sorted(wanted)


def test_both_methods_see_the_same_rows_in_the_same_order(
    annotations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cft's rows are those of sft, batch by batch, without what follows the last critical token."""
    cft = loss_inputs(annotations, tmp_path / "cft", monkeypatch, method="cft")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    sft = loss_inputs(annotations, tmp_path / "sft", monkeypatch, method="sft")
    assert [len(batch[0]) for batch in cft] == [len(batch[0]) for batch in sft]
    rows = list(zip(rows_of(cft), rows_of(sft), strict=True))
    assert all(short == whole[: len(short)] for (short, _), (whole, _) in rows)
    assert any(len(short) < len(whole) for (short, _), (whole, _) in rows)


def test_the_end_of_a_response_is_trained_as_the_mask_says(
    annotations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The EOS policy: rows end as responses ended; sft trains the end-of-sequence token, cft where it is critical."""
    stopped = {
        tuple(annotation.response.response_ids): annotation.critical[-1]
        for annotation in map(Annotation.from_row, read_rows(annotations))
        if annotation.response.finish_reason == "stop" and any(annotation.critical)
    }
    assert stopped
    for method in ("sft", "cft"):
        batches = loss_inputs(annotations, tmp_path / method, monkeypatch, method=method, epochs=1)
        ended = set()
        for ids, labels in rows_of(batches):
            assert labels[-1] == ids[-1]
            ended |= {response for response in stopped if tuple(ids[-len(response) :]) == response}
        assert ended == {response for response, critical in stopped.items() if critical or method == "sft"}
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)


def test_sft_equals_plain_completion_only_training(annotations: Path, tmp_path: Path) -> None:
    """With every response token trained, the losses are those of TRL's completion-only training, step by step."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    world = tmp_path / "model"
    trained(annotations, tmp_path / "sft", method="sft")
    mine = [json.loads(line)["loss"] for line in (tmp_path / "sft" / "training_log.jsonl").read_text().splitlines()]
    rows = []
    for annotation in map(Annotation.from_row, read_rows(annotations)):
        if any(annotation.critical):
            prompt, response = annotation.response.prompt_ids, annotation.response.response_ids
            mask = [0] * len(prompt) + [1] * len(response)
            rows.append({"input_ids": prompt + response, "completion_mask": mask})
    config = SFTConfig(
        output_dir=str(tmp_path / "plain"),
        completion_only_loss=True,
        learning_rate=1e-3,
        num_train_epochs=2,
        per_device_train_batch_size=4,
        seed=0,
        data_seed=0,
        max_length=None,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    plain = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(world, dtype=torch.float64),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(world),
    )
    plain.train()
    theirs = [entry["loss"] for entry in plain.state.log_history if "loss" in entry]
    assert len(mine) == len(theirs) > 2
    # TRL computes its head in float32 tiles, and the trainer adds losses up in float32.
    assert mine == pytest.approx(theirs, rel=1e-6)
    assert len(set(mine)) == len(mine)


def test_accumulated_batches_equal_whole_ones(annotations: Path, tmp_path: Path) -> None:
    """A batch in smaller pieces gives the same loss: it is a mean over the labels of the whole batch."""
    for name, micro in (("whole", None), ("pieces", 1)):
        trained(annotations, tmp_path / name, method="cft", micro_batch_size=micro)
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "training_log.jsonl").read_text().splitlines()]
        for name in ("whole", "pieces")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_checkpoints_load_in_plain_transformers(annotations: Path, tmp_path: Path) -> None:
    """A full checkpoint is an ordinary model: changed weights, the same tokenizer, the same end-of-sequence ids."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    manifest = trained(annotations, tmp_path / "out", method="cft")
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float64)
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64)
    changed = [not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    assert all(changed)
    tokenizers = [AutoTokenizer.from_pretrained(tmp_path / name) for name in ("model", "out")]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    assert tokenizers[0].pad_token == tokenizers[1].pad_token
    assert sorted(after.generation_config.eos_token_id) == manifest["facts"]["eos_ids"]
    assert after.config.use_cache
    assert manifest["facts"]["tokens_per_epoch"] < manifest["facts"]["response_tokens_per_epoch"]
    assert not (tmp_path / "out" / "trainer").exists()


def test_adapters_load_in_peft(annotations: Path, tmp_path: Path) -> None:
    """A LoRA run saves an adapter on all linear layers that PEFT loads by itself, and that --model DIR accepts."""
    from peft import AutoPeftModelForCausalLM

    from cruxtune.models import load_model
    from cruxtune.settings import ModelSettings

    trained(annotations, tmp_path / "out", method="cft", lora=True, lora_rank=4)
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    targets = {
        name.rpartition(".lora_")[0].rpartition(".")[2] for name, _ in loaded.named_parameters() if "lora_" in name
    }
    assert targets == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert any(value.abs().sum() > 0 for name, value in loaded.named_parameters() if "lora_B" in name)
    model, _ = load_model(ModelSettings(model=str(tmp_path / "out"), dtype="float64"))
    assert type(model).__name__.startswith("Peft")


def test_rows_beyond_the_context_are_counted_and_dropped(
    annotations: Path, tmp_path: Path, tiny_checkpoint: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """A row longer than the context is left out with a warning that counts; where all are, that is an error."""
    lengths = sorted(
        len(annotation.response.prompt_ids) + len(annotation.response.response_ids)
        for annotation in map(Annotation.from_row, read_rows(annotations))
        if any(annotation.critical)
    )
    limit = lengths[-1] - 1
    kept = sum(length <= limit for length in lengths)
    assert 0 < kept < len(lengths)
    short = tiny_checkpoint(tmp_path / "short", context=limit)
    manifest = trained(annotations, tmp_path / "out", method="cft", model=str(short), dtype="float64")
    assert (manifest["facts"]["rows"], manifest["facts"]["rows_dropped"]) == (kept, len(lengths) - kept)
    assert f"{len(lengths) - kept} of {len(lengths)} rows are longer" in caplog.text
    tiny = tiny_checkpoint(tmp_path / "tiny", context=8)
    with pytest.raises(DataError, match="every one of"):
        trained(annotations, tmp_path / "none", method="cft", model=str(tiny), dtype="float64")


def test_annotations_without_critical_tokens_are_refused(annotations: Path, tmp_path: Path) -> None:
    """Where no response has a critical token there is nothing to train on, for either method."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for shard in (annotations / "data").glob("*.parquet"):
        table = pq.read_table(shard)
        masks = [[False] * len(mask) for mask in table["critical"].to_pylist()]
        index = table.schema.get_field_index("critical")
        pq.write_table(table.set_column(index, table.schema.field(index), pa.array(masks)), shard)
    for method in ("cft", "sft"):
        with pytest.raises(DataError, match="has a critical token"):
            trained(annotations, tmp_path / method, method=method)


def test_another_tokenizer_is_refused(annotations: Path, tmp_path: Path, tiny_model: Callable[..., Any]) -> None:
    """A model of another tokenizer cannot be trained on these ids."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    other = tmp_path / "other"
    tiny_model("llama").save_pretrained(other)
    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(259)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1").save_pretrained(other)
    with pytest.raises(ConfigError, match="another tokenizer"):
        trained(annotations, tmp_path / "out", method="cft", model=str(other), dtype="float64")


def test_a_loss_that_is_no_number_stops_the_run(annotations: Path, tmp_path: Path) -> None:
    """A run whose loss overflows ends with an error, not with a checkpoint of NaNs."""
    with pytest.raises(DataError, match=r"the loss is (nan|inf)"):
        trained(annotations, tmp_path / "out", method="sft", learning_rate=1e300, epochs=6)


def test_gold_trains_on_worked_solutions(world: Any, tmp_path: Path) -> None:
    """A cold start trains on solution and answer after the usual prompt, ended once; a missing solution is named."""
    from cruxtune.stages.train import train

    problems = tmp_path / "gold.jsonl"
    rows = [
        {"id": f"g{n}", "question": f"{n} + 1?", "answer": str(n + 1), "solution": f"One more is {n + 1}."}
        for n in range(8)
    ]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    leaves = {"method": "gold", "problems": str(problems), "kind": "math", "epochs": 1, "batch_size": 4}
    manifest = train(world.settings(TrainSettings, output=tmp_path / "out", **leaves))
    expected = sum(len(f"One more is {n + 1}.\n#### {n + 1}") + 2 for n in range(8))
    assert manifest["facts"]["tokens_per_epoch"] == expected
    problems.write_text(json.dumps({"id": "bare", "question": "2 + 2?", "answer": "4"}) + "\n")
    with pytest.raises(DataError, match=r"problem bare has no worked solution.*--field solution=COLUMN"):
        train(world.settings(TrainSettings, output=tmp_path / "out2", **leaves))


def test_unknown_tokens_are_trained_as_the_recipe_says(world: Any, annotations: Path, tmp_path: Path) -> None:
    """Tokens that annotation did not ask about carry no loss, or loss like critical ones, as --unknown says."""
    from cruxtune.stages.annotate import annotate

    some = world.root / "some"
    annotate(world.settings(AnnotateSettings, responses=world.root / "responses", output=some, positions=4))
    rows = [Annotation.from_row(row) for row in read_rows(some)]
    usable = [row for row in rows if any(row.critical)]
    assert usable
    known = sum(sum(mask is True for mask in row.critical) for row in usable)
    unknown = sum(sum(mask is None for mask in row.critical) for row in usable)
    for choice, expected in (("leave-out", known), ("train", known + unknown)):
        manifest = trained(some, tmp_path / choice, method="cft", epochs=1, unknown=choice)
        assert manifest["facts"]["tokens_per_epoch"] == expected


def renamed(world: Any, prefix: str) -> None:
    """Give the world's problems ids of a benchmark."""
    rows = [json.loads(line) for line in world.problems.read_text().splitlines()]
    rows = [{**row, "id": f"{prefix}/{n}"} for n, row in enumerate(rows)]
    world.problems.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("method", ["cft", "sft"])
def test_annotations_of_test_problems_are_never_trained_on(
    world: Any, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture, tmp_path: Path, method: str
) -> None:
    """They may be made, with a warning, and studied; training refuses them."""
    renamed(world, "gsm8k/test")
    annotations = request.getfixturevalue("annotations")
    assert "24 problems are of the test split of GSM8K" in caplog.text
    with pytest.raises(DataError, match=r"--annotations .* test split of GSM8K, first gsm8k/test/\d+"):
        trained(annotations, tmp_path / "out", method=method)


def test_test_problems_are_no_gold(world: Any, tmp_path: Path) -> None:
    """Worked solutions of a test split are refused before a model is loaded."""
    from cruxtune.settings import build
    from cruxtune.stages.train import train

    renamed(world, "math/test")
    leaves = {"method": "gold", "problems": str(world.problems), "model": str(world.model), "output": tmp_path / "out"}
    with pytest.raises(DataError, match="test split of MATH"):
        train(build(TrainSettings, leaves))
    assert not (tmp_path / "out").exists()


def test_responses_are_made_without_contaminated_problems(world: Any) -> None:
    """What occurs in a benchmark is left out, and the manifest has the numbers."""
    from cruxtune.stages.respond import respond

    (world.root / "files" / "svamp").mkdir(parents=True)
    rows = [{"question": f"what is {n} AND {n * 7} ?", "answer": "1"} for n in (3, 5, 99)]
    (world.root / "files" / "svamp" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = {"decontaminate": "svamp", "benchmarks_dir": world.root / "files"}
    manifest = respond(world.settings(RespondSettings, output=world.root / "responses", **more))
    assert manifest["contamination"] == {"problems": 24, "left_out": 2, "by_benchmark": {"svamp": 2}}
    assert {row["id"] for row in read_rows(world.root / "responses")} == {f"p{n}" for n in range(24)} - {"p3", "p5"}
