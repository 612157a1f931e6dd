"""The weighted loss: equal to its definition and to plain TRL, and the same however its batches are cut.

Trajectories are of a tiny model in float64. `data/trajectories.json` holds them as they were when written, and with
what; `CRUXTUNE_WRITE_TRAJECTORIES=1` writes them again.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cruxtune.masks import TrainingRow, training_row
from cruxtune.store import library_versions

COMMITTED = Path(__file__).with_name("data") / "trajectories.json"


def rows_of(seed: int, *, weights: Sequence[float] = (0.0, 0.0, 1.0, 0.25, 2.5), count: int = 16) -> list[TrainingRow]:
    """Random rows of different lengths, each with a prompt and some weighted tokens; the ends are often unweighted."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        prompt = [draw.randrange(256) for _ in range(draw.randrange(2, 9))]
        response = [draw.randrange(256) for _ in range(draw.randrange(4, 20))]
        chosen = [draw.choice(weights) for _ in response]
        chosen[draw.randrange(len(chosen))] = max(weights)
        rows.append(training_row(prompt, response, chosen))
    return rows


@pytest.fixture
def trained(tiny_model: Callable[..., Any], tiny_tokenizer: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A function that trains a tiny model on rows and returns (losses, gradient norms, the trainer)."""

    def train(rows: Sequence[TrainingRow], *, model: Any = None, **leaves: Any) -> tuple[list[float], list[float], Any]:
        return run(rows, model or tiny_model(), tiny_tokenizer("chatml"), tmp_path, **leaves)

    return train


def run(
    rows: Sequence[TrainingRow], model: Any, tokenizer: Any, directory: Path, **leaves: Any
) -> tuple[list[float], list[float], Any]:
    """Train through `build_trainer` as the stage does."""
    from cruxtune.settings import ModelSettings, build
    from cruxtune.stage_settings import TrainSettings
    from cruxtune.trainer import build_trainer

    defaults = {"method": "cft", "annotations": "a", "output": str(directory), "learning_rate": 1e-3, "epochs": 2}
    settings = build(TrainSettings, {**defaults, "batch_size": 8, **leaves})
    asked = ModelSettings(model="tiny", dtype="float64", device="cpu")
    trainer = build_trainer(model, tokenizer, rows, settings, asked, directory / "trainer")
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [entry["loss"] for entry in steps], [entry["grad_norm"] for entry in steps], trainer


def same(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    """Losses and gradient norms agree, step by step: to 1e-6, since the trainer adds losses up in float32."""
    assert len(one[0]) == len(other[0]) > 2
    assert one[0] == pytest.approx(other[0], rel=1e-6)
    assert one[1] == pytest.approx(other[1], rel=1e-6)
    assert len(set(one[0])) == len(one[0])


def definition(model: Any, rows: Sequence[TrainingRow], dft: bool = False) -> Any:
    """Σ w ℓ ÷ Σ w by one plain forward pass per row, with its graph."""
    import torch

    numerator, denominator = torch.zeros((), dtype=torch.float64), 0.0
    for row in rows:
        logprobs = model(torch.tensor([row.input_ids])).logits[0, :-1].log_softmax(-1)
        for place, (token, weight) in enumerate(zip(row.input_ids[1:], row.weights[1:], strict=True)):
            picked = logprobs[place, token]
            numerator = numerator - weight * picked * (picked.detach().exp() if dft else 1)
            denominator += weight
    return numerator / denominator


def plain_trl(rows: Sequence[TrainingRow], model: Any, tokenizer: Any, directory: Path, **options: Any) -> list[float]:
    """The losses of TRL's own trainer on the rows' labels."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(
        output_dir=str(directory / "plain"),
        learning_rate=1e-3,
        num_train_epochs=2,
        per_device_train_batch_size=8,
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
        **options,
    )
    dataset = Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in rows])
    trainer = SFTTrainer(model=model, args=config, train_dataset=dataset, processing_class=tokenizer)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("loss", ["nll", "dft"])
def test_loss_and_gradients_are_those_of_the_definition(
    loss: str, trained: Callable[..., Any], tiny_model: Callable[..., Any]
) -> None:
    """Of fractional weights, to 1e-6 relative in float64, every parameter."""
    import torch

    rows = rows_of(1, count=6)
    _, _, trainer = trained(rows, loss=loss, epochs=1, batch_size=6, learning_rate=1e-12)
    expected = definition(reference := tiny_model(), rows, dft=loss == "dft")
    expected.backward()
    model = tiny_model()
    batch = trainer.data_collator([trainer.train_dataset[place] for place in range(6)])
    found = trainer.compute_loss(model, batch)
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    for (name, one), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert one.grad is not None, name
        assert torch.allclose(one.grad, other.grad, rtol=1e-6, atol=1e-6 * other.grad.abs().max().item()), name


def test_weights_of_zero_and_one_equal_masking(
    trained: Callable[..., Any], tiny_model: Callable[..., Any], tiny_tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    """The trajectory is that of plain TRL with the labels, whose tiles compute in float32."""
    rows = rows_of(2, weights=(0.0, 0.0, 1.0))
    ours, _, _ = trained(rows)
    theirs = plain_trl(rows, tiny_model(), tiny_tokenizer("chatml"), tmp_path)
    assert len(ours) == len(theirs) > 2
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_dft_of_zero_and_one_equals_trls(
    trained: Callable[..., Any], tiny_model: Callable[..., Any], tiny_tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    """With weights 0 and 1 the loss is TRL's dft."""
    rows = rows_of(3, weights=(0.0, 1.0))
    ours, _, _ = trained(rows, loss="dft")
    theirs = plain_trl(rows, tiny_model(), tiny_tokenizer("chatml"), tmp_path, loss_type="dft")
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_accumulated_batches_equal_whole_ones(trained: Callable[..., Any]) -> None:
    """Eight rows at once, four by two, and one by one give one trajectory."""
    rows = rows_of(4)
    whole = trained(rows)
    for micro in (4, 1):
        same(whole, trained(rows, micro_batch_size=micro))


def test_padding_free_batches_equal_padded_ones(trained: Callable[..., Any]) -> None:
    """Rows one behind the other do not see each other, and no loss crosses their border."""
    rows = rows_of(5)
    same(trained(rows), trained(rows, padding_free=True))
    same(trained(rows), trained(rows, padding_free=True, micro_batch_size=2))


def test_packed_rows_equal_padded_ones(trained: Callable[..., Any]) -> None:
    """One batch of all rows has the loss of one batch of all packs, whatever the order."""
    rows = rows_of(6)
    whole = trained(rows, batch_size=16, epochs=4)
    packs = trained(rows, packing=64, batch_size=16, epochs=4)
    assert len(packs[2].train_dataset) < len(rows)
    same(whole, packs)


def test_packs_are_the_same_for_every_method(trained: Callable[..., Any]) -> None:
    """Rows are packed whole, so that what is trained of them decides nothing about batches."""
    rows = rows_of(7)
    others = [training_row([], row.input_ids, [0.0] * (len(row.input_ids) - 1) + [1.0]) for row in rows]
    packs = [trained(some, packing=64, epochs=1)[2].train_dataset for some in (rows, others)]
    assert packs[0]["input_ids"] == packs[1]["input_ids"]
    assert packs[0]["weights"] != packs[1]["weights"]


def test_a_row_given_twice_equals_one_of_twice_the_weight(trained: Callable[..., Any]) -> None:
    """Σ w ℓ ÷ Σ w does not tell them apart."""
    rows = rows_of(8, count=4)
    doubled = [TrainingRow(row.input_ids, [2 * weight for weight in row.weights]) for row in rows[:2]]
    one = trained([*rows, *rows[:2]], batch_size=6, epochs=3)
    other = trained([*doubled, *rows[2:]], batch_size=4, epochs=3)
    same(one, other)


def test_the_scale_of_all_weights_does_not_matter(trained: Callable[..., Any]) -> None:
    """Sums of weights far below 1 are divided by as they are."""
    rows = rows_of(9)
    tiny = [TrainingRow(row.input_ids, [weight / 4096 for weight in row.weights]) for row in rows]
    same(trained(rows), trained(tiny))


def test_batches_without_any_weight_change_nothing(trained: Callable[..., Any]) -> None:
    """A batch of rows that carry no loss has loss 0 and gradient 0, not NaN."""
    rows = [TrainingRow(row.input_ids, [0.0] * len(row.weights)) for row in rows_of(10)]
    losses, norms, _ = trained(rows)
    assert losses == [0.0] * len(losses)
    assert norms == [0.0] * len(norms)


def test_tokens_behind_the_last_weighted_one_leave_the_batch(trained: Callable[..., Any]) -> None:
    """The batch is as wide as its longest trained part, the dataset keeps whole rows, and the loss is unchanged."""
    rows = rows_of(11)
    cut = []
    for row in rows:
        end = max(place for place, weight in enumerate(row.weights) if weight) + 1
        cut.append(TrainingRow(row.input_ids[:end], row.weights[:end]))
    assert any(len(short.input_ids) < len(row.input_ids) for short, row in zip(cut, rows, strict=True))
    whole = trained(rows)
    same(whole, trained(cut))
    trainer = whole[2]
    assert [len(ids) for ids in trainer.train_dataset["input_ids"]] == [len(row.input_ids) for row in rows]
    batch = trainer.data_collator([trainer.train_dataset[place] for place in range(8)])
    assert batch["input_ids"].shape[1] == max(len(row.input_ids) for row in cut[:8])


def test_length_groups_are_the_same_for_every_method(trained: Callable[..., Any]) -> None:
    """Grouping goes by the whole row, and its order by seed and epoch alone."""
    rows = rows_of(12, count=40)
    others = [training_row([], row.input_ids, [0.0, 1.0] + [0.0] * (len(row.input_ids) - 2)) for row in rows]
    orders = []
    for some in (rows, others):
        trainer = trained(some, trainer={"train_sampling_strategy": "group_by_length"}, epochs=1, batch_size=2)[2]
        sampler = trainer._get_train_sampler()
        epochs = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            epochs.append(list(sampler))
        orders.append(epochs)
    assert orders[0] == orders[1]
    assert orders[0][0] != orders[0][1]
    spreads = []
    for order in (orders[0][0], range(40)):
        lengths = [len(rows[place].input_ids) for place in order]
        spreads.append(sum(abs(lengths[start] - lengths[start + 1]) for start in range(0, 40, 2)))
    assert spreads[0] < spreads[1] / 2


def test_soft_capping_and_scaling_of_logits_are_kept(trained: Callable[..., Any]) -> None:
    """Where a model changes logits behind its head (Gemma 2 caps, Granite and Cohere scale) the loss is the model's."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 264, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.8, "pad_token_id": 0}
    changes: dict[str, dict[str, Any]] = {
        "gemma2": {"head_dim": 8, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
        "granite": {"logits_scaling": 4.0},
        "cohere": {"logit_scale": 0.3},
    }
    rows = rows_of(13, count=4)
    for name, options in changes.items():
        torch.manual_seed(0)
        config = AutoConfig.for_model(name, **sizes, **options)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").double().eval()
        expected = definition(model, rows).item()
        losses, _, _ = trained(rows, model=model, batch_size=4, epochs=1)
        assert losses[0] == pytest.approx(expected, rel=1e-6), name


def test_lora_trains_with_weights(trained: Callable[..., Any]) -> None:
    """An adapter's first loss is that of the model, and accumulation changes nothing."""
    rows = rows_of(14)
    whole, pieces = (trained(rows, lora=True, lora_rank=4, micro_batch_size=micro) for micro in (8, 2))
    assert whole[0][0] == pytest.approx(trained(rows)[0][0], rel=1e-6)
    same(whole, pieces)


def test_weights_keep_their_precision(trained: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where numbers of a batch take the model's precision, as with DeepSpeed in bfloat16, weights do not."""
    import torch
    from transformers import Trainer

    rows = rows_of(17, weights=(0.0, 1 / 3, 0.7))
    _, _, trainer = trained(rows, epochs=1)
    batch = trainer.data_collator([trainer.train_dataset[place] for place in range(8)])
    rounded = {name: value.bfloat16() if value.is_floating_point() else value for name, value in batch.items()}
    monkeypatch.setattr(Trainer, "_prepare_inputs", lambda *_: rounded)
    assert torch.equal(trainer._prepare_inputs(batch)["weights"], batch["weights"])
    assert not torch.equal(rounded["weights"].float(), batch["weights"])


def test_prompt_tuning_adapters_are_refused(trained: Callable[..., Any], tiny_model: Callable[..., Any]) -> None:
    """Their virtual tokens would shift every weight."""
    from peft import PromptTuningConfig, get_peft_model

    from cruxtune.errors import ConfigError

    model = get_peft_model(tiny_model(), PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    with pytest.raises(ConfigError, match=r"--model tiny has a PROMPT_TUNING adapter"):
        trained(rows_of(15), model=model)


def test_packs_shorter_than_a_row_are_refused(trained: Callable[..., Any]) -> None:
    """TRL would cut rows; the message names the least that works."""
    from cruxtune.errors import ConfigError

    rows = rows_of(16)
    longest = max(len(row.input_ids) for row in rows)
    with pytest.raises(ConfigError, match=f"--packing {longest - 1} is less than .*use at least {longest}"):
        trained(rows, packing=longest - 1)


def trajectories(train: Callable[..., Any]) -> dict[str, dict[str, list[float]]]:
    """Losses and gradient norms of the runs whose trajectories are committed."""
    variants: dict[str, dict[str, Any]] = {
        "nll": {},
        "dft": {"loss": "dft"},
        "accumulated": {"micro_batch_size": 1},
        "padding_free": {"padding_free": True},
        "lora": {"lora": True, "lora_rank": 4},
    }
    found = {}
    for name, leaves in variants.items():
        losses, norms, _ = train(rows_of(0), epochs=3, **leaves)
        found[name] = {"loss": losses, "grad_norm": norms}
    return found


def test_trajectories_are_those_committed(trained: Callable[..., Any]) -> None:
    """Today's runs repeat what was written down, to 1e-6, and variants that must agree do."""
    found = trajectories(trained)
    if os.environ.get("CRUXTUNE_WRITE_TRAJECTORIES"):
        content = {"versions": library_versions(), "trajectories": found}
        COMMITTED.write_text(json.dumps(content, indent=1) + "\n")
    committed = json.loads(COMMITTED.read_text())["trajectories"]
    assert found.keys() == committed.keys()
    for name, run_ in found.items():
        for kind, values in run_.items():
            assert values == pytest.approx(committed[name][kind], rel=1e-6), (name, kind)
    for name in ("accumulated", "padding_free"):
        assert committed[name]["loss"] == pytest.approx(committed["nll"]["loss"], rel=1e-6)


def test_trimming_keeps_what_carries_loss() -> None:
    """Of packed rows each loses its own tail; one without weights keeps two tokens; the longest is never longer."""
    from cruxtune.weighted import trimmed

    row = {"input_ids": list(range(9)), "weights": [0, 1, 0, 0, 0, 0, 0, 0, 0.5], "seq_lengths": [3, 4, 2]}
    short = trimmed({**row, "labels": row["input_ids"]})
    assert short["input_ids"] == [0, 1, 3, 4, 7, 8]
    assert short["weights"] == [0, 1, 0, 0, 0, 0.5]
    assert short["seq_lengths"] == [2, 2, 2]
