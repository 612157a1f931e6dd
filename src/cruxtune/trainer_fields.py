"""Fields of TRL's SFTConfig that users may not set, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_LABELS = "the labels are ours: which tokens are trained is what --method decides"
_BATCHES = "methods would no longer see the same rows in the same batches"
_MEASURED = "use --validation, --probe, --evaluate-every and --keep"
_LOGGED = "the log has every step, from which the curves are"
_LAUNCHED = "it is the launcher's: use `accelerate launch` with a file of recipes/accelerate"
_OURS = "the model and tokenizer are ours to load"

REFUSED_TRAINER_FIELDS = {
    "accelerator_config": _BATCHES,
    "assistant_only_loss": _LABELS,
    "auto_find_batch_size": _BATCHES,
    "average_tokens_across_devices": "off, the mean over several devices would be wrong",
    "chat_template_path": "prompts are rendered with --template, the same in every stage",
    "completion_only_loss": _LABELS,
    "data_seed": "use --seed",
    "dataloader_drop_last": "it drops rows",
    "dataset_kwargs": "rows are token ids, ready as they are",
    "dataset_num_proc": "rows are token ids, ready as they are",
    "dataset_text_field": "rows are token ids, ready as they are",
    "deepspeed": _LAUNCHED,
    "eos_token": _OURS,
    "eval_delay": _MEASURED,
    "eval_on_start": _MEASURED,
    "eval_packing": _BATCHES,
    "eval_steps": _MEASURED,
    "eval_strategy": _MEASURED,
    "fsdp": _LAUNCHED,
    "fsdp_config": _LAUNCHED,
    "gradient_accumulation_steps": "use --batch-size and --micro-batch-size",
    "greater_is_better": _MEASURED,
    "ignore_data_skip": "a resumed run would see other rows",
    "label_smoothing_factor": "it replaces the loss, and costs a second full set of logits",
    "learning_rate": "use --learning-rate",
    "length_column_name": "rows are grouped by their own length, whatever part of them is trained",
    "liger_kernel_config": "its loss ignores the labels that we give",
    "load_best_model_at_end": _MEASURED,
    "logging_nan_inf_filter": "it would log a loss that is not a number as 0",
    "logging_steps": _LOGGED,
    "logging_strategy": _LOGGED,
    "loss_type": "use --loss",
    "max_length": "truncation drops critical tokens silently; rows beyond the context are counted and left out",
    "metric_for_best_model": _MEASURED,
    "model_init_kwargs": _OURS,
    "num_train_epochs": "use --epochs",
    "output_dir": "use --output",
    "packing": "use --packing",
    "packing_strategy": "--packing keeps rows whole",
    "pad_token": _OURS,
    "padding_free": "use --padding-free",
    "parallelism_config": "it cuts rows into pieces, and weights and trimming are those of whole rows",
    "per_device_train_batch_size": "use --batch-size and --micro-batch-size",
    "push_to_hub": "use --push-to-hub",
    "remove_unused_columns": "rows hold ids and labels only",
    "resume_from_checkpoint": "run the same command again: it resumes by itself",
    "save_only_model": "an interrupted run could not resume",
    "seed": "use --seed",
    "shuffle_dataset": _BATCHES,
    "truncation_mode": "rows are never truncated",
    "trust_remote_code": _OURS,
    "use_cpu": "use --device",
    "use_liger_kernel": "its loss ignores the labels that we give",
}
"""SFTConfig fields that a recipe may not set in `trainer`: they change or drop labels, or have a flag of their own."""


def check_fields(given: Iterable[str], refused: Mapping[str, str]) -> None:
    """Refuse a trainer field by name, with the reason.

    Raises:
        ValueError: one of the fields is refused.
    """
    for name, reason in refused.items():
        if name in given:
            raise ValueError(f"--trainer {name} is refused: {reason}")


def check_micro_batch(batch_size: int, micro_batch_size: int | None) -> None:
    """Refuse a micro-batch that does not divide the batch.

    Raises:
        ValueError: it does not.
    """
    if micro_batch_size and batch_size % micro_batch_size:
        raise ValueError(
            f"--micro-batch-size {micro_batch_size} does not divide --batch-size {batch_size}: "
            "the steps would not have the batch size that you asked for"
        )
