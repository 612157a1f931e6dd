"""Every format against its documented contract, and each reader against its writer."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cruxtune.errors import ConfigError, DataError
from cruxtune.exporters import CONSUMERS
from cruxtune.masks import TrainingRow, training_row
from cruxtune.stages.export import write_rows

ROW = training_row([5, 6], [7, 8, 9], [0, 1, 1])
HALF = training_row([5, 6], [7, 8, 9], [0, 0.5, 1])


def first_line(directory: Path) -> dict[str, object]:
    """The first row of train.jsonl."""
    line: dict[str, object] = json.loads((directory / "train.jsonl").read_text().splitlines()[0])
    return line


weights = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=12).filter(any)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.lists(st.integers(0, 999), min_size=1, max_size=6), weights), min_size=1, max_size=5))
@pytest.mark.parametrize("name", [name for name in CONSUMERS if name != "llamafactory"])
def test_what_is_written_is_read_back(tmp_path: Path, name: str, sizes: list[tuple[list[int], list[float]]]) -> None:
    """Tokens and weights survive each format; where it has no room for fractions, whole weights do."""
    consumer = CONSUMERS[name]
    rows = []
    for prompt, chosen in sizes:
        kept = chosen if consumer.fractional else [float(weight > 0) for weight in chosen]
        rows.append(training_row(prompt, range(len(kept)), kept))
    counts = write_rows(name, tmp_path, rows)
    assert list(consumer.read(tmp_path)) == rows
    assert counts["tokens_trained"] == sum(row.trained for row in rows) > 0
    assert counts["rows"] == len(rows)
    assert counts["longest_row"] == max(len(row.input_ids) for row in rows)


@pytest.mark.parametrize("name", ["trl", "axolotl", "unsloth"])
def test_labels_are_unshifted_beside_an_attention_mask(tmp_path: Path, name: str) -> None:
    """TRL, Axolotl and Unsloth get all three columns and no other: −100 where there is no loss."""
    write_rows(name, tmp_path, [ROW])
    assert first_line(tmp_path) == {
        "input_ids": [5, 6, 7, 8, 9],
        "attention_mask": [1, 1, 1, 1, 1],
        "labels": [-100, -100, -100, 8, 9],
    }


def test_older_versions_of_trl_get_masks(tmp_path: Path) -> None:
    """assistant_masks is 1 where labels are."""
    write_rows("trl", tmp_path, [ROW], assistant_masks=True)
    assert first_line(tmp_path)["assistant_masks"] == [0, 0, 0, 1, 1]


def test_llamafactory_gets_a_saved_dataset(tmp_path: Path) -> None:
    """`tokenized_path` is a directory of `save_to_disk` with the three columns, which a second export replaces."""
    from datasets import load_from_disk

    for rows in ([ROW, ROW], [ROW]):
        write_rows("llamafactory", tmp_path, rows)
        saved = load_from_disk(tmp_path / "dataset")
        assert saved.column_names == ["input_ids", "attention_mask", "labels"]
        assert list(saved["labels"]) == [row.labels for row in rows]
        assert list(CONSUMERS["llamafactory"].read(tmp_path)) == rows
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset"]


def test_torchtune_masks_are_true_where_there_is_no_loss(tmp_path: Path) -> None:
    """The other polarity than everyone else's."""
    write_rows("torchtune", tmp_path, [ROW])
    assert first_line(tmp_path) == {"tokens": [5, 6, 7, 8, 9], "mask": [True, True, True, False, False]}


def test_verl_rows_become_items_of_its_dataset(tmp_path: Path) -> None:
    """The class that is shipped gives tensors, float weights among them, and refuses what would lose them."""
    import importlib.util

    write_rows("verl", tmp_path, [ROW, HALF])
    assert pq.read_schema(tmp_path / "train.parquet").names == ["input_ids", "loss_mask"]
    spec = importlib.util.spec_from_file_location("cruxtune_verl", tmp_path / "cruxtune_verl.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = {"pad_mode": "no_padding", "max_length": 5}
    items = module.CruxtuneDataset(str(tmp_path / "train.parquet"), None, config)
    assert len(items) == 2
    assert {name: tensor.tolist() for name, tensor in items[1].items()} == {
        "input_ids": [5, 6, 7, 8, 9],
        "position_ids": [0, 1, 2, 3, 4],
        "loss_mask": [0, 0, 0, 0.5, 1],
    }
    assert len(module.CruxtuneDataset([str(tmp_path / "train.parquet")], None, config, max_samples=1)) == 1
    for wrong in ({"pad_mode": "right"}, {"max_length": 4}):
        with pytest.raises(ValueError, match="data\\."):
            module.CruxtuneDataset(str(tmp_path / "train.parquet"), None, {**config, **wrong})


def test_tinker_rows_are_tokens_and_weights(tmp_path: Path) -> None:
    """Aligned and unshifted."""
    write_rows("tinker", tmp_path, [HALF])
    assert first_line(tmp_path) == {"tokens": [5, 6, 7, 8, 9], "weights": [0, 0, 0, 0.5, 1]}


def test_swift_rows_are_one_message_of_ids(tmp_path: Path) -> None:
    """Token ids as content, with a scale for each."""
    write_rows("ms-swift", tmp_path, [HALF])
    assert first_line(tmp_path) == {
        "messages": [
            {"role": "assistant", "content": {"token_ids": [5, 6, 7, 8, 9], "loss_scale": [0, 0, 0, 0.5, 1]}},
        ]
    }


@pytest.mark.parametrize("name", [name for name, consumer in CONSUMERS.items() if not consumer.fractional])
def test_fractions_are_refused_where_there_is_no_room_for_them(tmp_path: Path, name: str) -> None:
    """The error names the row, the weight and who takes fractions; nothing is left behind."""
    with pytest.raises(ConfigError, match=rf"--to {name} .* row 1 has one of 0\.5.*verl, ms-swift, tinker"):
        write_rows(name, tmp_path, [ROW, HALF])
    assert list(tmp_path.iterdir()) == []


def test_rows_without_loss_are_left_out(tmp_path: Path) -> None:
    """Consumers treat such rows in different ways, none of them good; without any other there is nothing to export."""
    empty = TrainingRow([1, 2], [0.0, 0.0])
    with pytest.raises(DataError, match="none of 1 rows has a token to train on"):
        write_rows("trl", tmp_path, [empty])
    assert list(tmp_path.iterdir()) == []
    counts = write_rows("trl", tmp_path, [empty, ROW, empty])
    assert (counts["rows"], counts["rows_left_out"]) == (1, 2)
    assert list(CONSUMERS["trl"].read(tmp_path)) == [ROW]
