"""TRL's SFTTrainer with a weight per token, and no work for tokens that nothing depends on.

The loss is Σ_t w_t ℓ_t ÷ Σ_t w_t over the global batch, with ℓ_t = −log p(y_t | y_<t) (nll) or p(y_t | y_<t) held fixed
times that (dft; Wu et al. 2025, arXiv 2508.05629). The denominator is the sum of weights over all devices and
accumulated batches, whatever it is: TRL's own is a number of tokens and at least 1.

Several processes take turns at the batches that one process would have, so that a step has the same rows; where rows
run out, blank ones without weights stand in.

Tokens behind a row's last weighted one leave the batch in the collator: attention is causal, so that nothing sees them.
Rows are stored, grouped by length and packed whole, so that every method has the same rows in the same batches.

The head is applied at weighted positions only. Where Triton runs, TRL's fused head does that; elsewhere it would
project every position, so the model's own `logits_to_keep` is used, which keeps soft-capping and scaling. There, too,
tokens that all rows of a batch begin with are computed once (`cruxtune.prefix`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.nn.functional import pad
from torch.utils.data import RandomSampler, Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.utils import is_triton_available
from trl import SFTTrainer

from cruxtune.engines.logits import at_least_float32
from cruxtune.examination import examined
from cruxtune.masks import IGNORE_INDEX
from cruxtune.prefix import can_share, computed_once, shared_length

_FUSED = ("cuda", "xpu")
"""Devices on which TRL's fused head projects labelled positions only."""
_CHUNK = 256
"""Rows of logits that are reduced together, which bounds what is held beside the logits themselves."""


class WeightedTrainer(SFTTrainer):
    """SFTTrainer on rows of `input_ids`, `labels` and `weights` (and `seq_lengths` where rows are packed).

    `loss` is "nll" or "dft". Rows must not be truncated or packed by TRL, which would lose their weights. With several
    processes the last row of the dataset is the blank one.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, *args: Any, loss: str = "nll", **options: Any) -> None:
        super().__init__(*args, **options)
        self._loss = loss
        self._shares: bool | None = None
        self.tokens_trained = 0
        """Tokens with loss in all steps so far, over all devices; a checkpoint's callbacks carry it."""
        self.tokens_computed = 0
        """Tokens put through the model in all steps so far, padding included, over all devices; carried likewise."""
        self.examination: Any = None
        """What `evaluate` asks of the model; see `cruxtune.examination`."""
        # TRL takes no collator of others where it works without padding.
        self.data_collator: Any = WeightCollator(self.data_collator)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """Return Σ w ℓ ÷ Σ w; the denominator is `num_items_in_batch`, or that of this batch alone."""
        labels, weights = inputs["labels"], inputs["weights"][:, 1:]
        inputs = {name: value for name, value in inputs.items() if name not in ("labels", "weights")}
        inputs["use_cache"] = False
        if self.aux_loss_enabled:
            inputs["output_router_logits"] = True
        kept, length = weights > 0, 0
        if labels.device.type in _FUSED and is_triton_available():
            outputs = model(**inputs, labels=labels, fused_lm_head=True)
            logprobs, entropies, hits = (part[kept] for part in (outputs.log_probs, outputs.entropy, outputs.is_top1))
        else:
            # A batch without any weight keeps one position, so that its loss of 0 has a gradient on every device.
            kept[0, 0] |= ~kept.any()
            keep = pad(kept, (0, 1))
            # Weights are cast once for both passes.
            with self.accelerator.autocast():
                if length := self._shared_length(model, inputs, keep):
                    rest = computed_once(model, inputs, length)
                    outputs = model(**rest, logits_to_keep=keep[:, length:])
                else:
                    outputs = model(**inputs, logits_to_keep=keep)
            logprobs, entropies, hits = TokenLogprobs.apply(outputs.logits, labels[:, 1:][kept].clamp(min=0))
        losses = -logprobs
        if self._loss == "dft":
            losses = losses * logprobs.detach().exp()
        numerator = (weights[kept].to(losses.dtype) * losses).sum()
        total = weights.sum() if num_items_in_batch is None else num_items_in_batch
        # Only where no token of the whole batch has a weight is there nothing to divide.
        loss = numerator / torch.where(total > 0, total, 1).to(losses.dtype)
        if num_items_in_batch is not None:
            # Gradients are averaged over devices, and the sum of weights is over all of them.
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        if self.aux_loss_enabled:
            steps = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / steps
        self._measure(kept, entropies, hits, inputs, saved=length * (len(labels) - 1))
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Examine the model as it is, log what was found, and return it."""
        return examined(self)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        # DeepSpeed has every number of the model's precision; weights stay those that were summed up.
        return {**super()._prepare_inputs(inputs), "weights": inputs["weights"].to(self.args.device)}

    def _shared_length(self, model: Any, inputs: Mapping[str, Any], keep: torch.Tensor) -> int:
        """Return how many tokens at the start of all rows are computed once."""
        if self._shares is None:
            # Several passes before one backward pass are not for wrappers that gather weights or gradients.
            alone = not (self.args.world_size > 1 or self.is_fsdp_enabled or self.is_deepspeed_enabled)
            noisy = bool(self.args.neftune_noise_alpha)
            self._shares = alone and not noisy and not self.aux_loss_enabled and can_share(model)
        return shared_length(inputs, keep) if self._shares and "attention_mask" in inputs else 0

    def _measure(
        self, kept: torch.Tensor, entropies: torch.Tensor, hits: torch.Tensor, inputs: Any, *, saved: int
    ) -> None:
        """Collect what SFTTrainer logs: entropy and accuracy at trained tokens, tokens seen; count tokens computed."""
        mode = "train" if self.model.training else "eval"
        seen = inputs["attention_mask"].sum() if "attention_mask" in inputs else inputs["input_ids"].numel()
        put = inputs["input_ids"].numel() - saved
        local = torch.tensor([kept.sum(), entropies.sum(), hits.sum(), seen, put], device=kept.device)
        count, entropy, correct, tokens, computed = self.accelerator.gather(local[None]).sum(dim=0).tolist()
        self._metrics[mode]["entropy"].append(entropy / max(count, 1))
        self._metrics[mode]["mean_token_accuracy"].append(correct / max(count, 1))
        if mode == "train":
            self._total_train_tokens += int(tokens) // self._tp_size
            self.tokens_computed += int(computed) // self._tp_size
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor | None:
        """Return the sum of weights over the accumulated batches of all devices."""
        if not batch_samples:
            return None
        weights = [batch["weights"][:, 1:] for batch in batch_samples]
        total = sum(part.sum() for part in weights).to(device)
        tokens = sum((part > 0).sum() for part in weights).to(device)
        if self.args.world_size > 1:
            total, tokens = self.accelerator.gather(total).sum(), self.accelerator.gather(tokens).sum()
        self.tokens_trained += int(tokens)
        return total / (self.get_tp_size() * self.get_cp_size() * self.get_sp_size())

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "weights" not in self._signature_columns:
            self._signature_columns.append("weights")

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset, args = train_dataset if train_dataset is not None else self.train_dataset, self.args
        processes, rows = args.world_size, len(dataset)
        if processes > 1:
            rows -= 1
            dataset = dataset.select(range(rows))
        sampler = super()._get_train_sampler(dataset)
        if isinstance(sampler, LengthGroupedSampler):
            sampler = _SeededLengths(sampler, args.data_seed, processes)
        if processes == 1:
            return sampler
        if isinstance(sampler, RandomSampler):
            # As Accelerate would make of it, if it saw it.
            sampler = SeedableRandomSampler(dataset, data_seed=args.data_seed)
        return _Filled(sampler, args.train_batch_size * processes, blank=rows)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The first process goes on to write the state, which says that the checkpoint is whole.
        self.accelerator.wait_for_everyone()


class WeightCollator:
    """TRL's collator for rows with weights: tokens behind the last weighted one are left out before it pads."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return TRL's batch with `weights` of the shape of its `labels`."""
        rows = [trimmed(row) for row in rows]
        batch: dict[str, Any] = self._inner(rows)
        parts = [torch.tensor(row["weights"]) for row in rows]
        if self._inner.padding_free:
            parts = [torch.cat(parts)]
        weights = torch.zeros(batch["labels"].shape)
        for place, part in enumerate(parts):
            weights[place, : len(part)] = part
        # The first token of a sequence is predicted from nothing, or from another row's last one.
        weights[batch["labels"] == IGNORE_INDEX] = 0
        weights[:, 0] = 0
        return {**batch, "weights": weights}


def trimmed(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row without the tokens behind the last weighted one of each of its sequences.

    A sequence without weights leaves two tokens: the least that has something to predict.

    >>> row = {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, 2, -100, -100, 5], "weights": [0, 1, 0, 0, 0.5]}
    >>> trimmed({**row, "seq_lengths": [3, 2]})["input_ids"]
    [1, 2, 4, 5]
    """
    lengths = row.get("seq_lengths", [len(row["input_ids"])])
    kept: list[int] = []
    shorter = []
    start = 0
    for length in lengths:
        weighted = [place for place in range(length) if row["weights"][start + place]]
        shorter.append(max([*weighted, min(length, 2) - 1]) + 1)
        kept.extend(range(start, start + shorter[-1]))
        start += length
    short = {name: [row[name][place] for place in kept] for name in ("input_ids", "labels", "weights")}
    return short | ({"seq_lengths": shorter} if "seq_lengths" in row else {})


class _SeededLengths(LengthGroupedSampler):
    """Groups of like length, drawn from the seed and the epoch: not from what was drawn elsewhere before.

    Groups are of the rows that all processes together have in a step.
    """

    def __init__(self, sampler: LengthGroupedSampler, seed: int, processes: int) -> None:
        super().__init__(sampler.batch_size * processes, lengths=sampler.lengths)
        self._seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.generator = torch.Generator().manual_seed(self._seed + epoch)


class _Filled(Sampler[int]):
    """The places of another sampler, and then the blank row until `size` divides their number.

    Accelerate gives every process as many batches, and would repeat rows for that.
    """

    def __init__(self, inner: Any, size: int, blank: int) -> None:
        self._inner = inner
        self._missing = [blank] * (-len(inner) % size)

    def __iter__(self) -> Iterator[int]:
        yield from self._inner
        yield from self._missing

    def __len__(self) -> int:
        return len(self._inner) + len(self._missing)

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self._inner, "set_epoch"):
            self._inner.set_epoch(epoch)


class TokenLogprobs(torch.autograd.Function):
    """Log-probability of each row's token from logits (rows, vocabulary), with a gradient that holds nothing more.

    Also returns the entropy (nats) and whether the token is the most probable one, both without gradients. Statistics
    are float32 at least; the gradient is that of cross-entropy: one-hot − softmax.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, tokens: torch.Tensor) -> Any:
        """Return (log-probabilities, entropies, hits), each of shape (rows,)."""
        parts = []
        for chunk, here in zip(logits.split(_CHUNK), tokens.split(_CHUNK), strict=True):
            values = at_least_float32(chunk)
            top = values.max(dim=-1)
            shifted = values - top.values[:, None]
            shares = shifted.exp()
            total = shares.sum(dim=-1)
            norm = total.log()
            picked = shifted.gather(1, here[:, None])[:, 0] - norm
            entropy = norm - (shares * shifted).sum(dim=-1) / total
            parts.append((picked, entropy, top.indices == here, top.values + norm))
        logprobs, entropies, hits, norms = (torch.cat(column) for column in zip(*parts, strict=True))
        ctx.save_for_backward(logits, tokens, norms)
        ctx.mark_non_differentiable(entropies, hits)
        return logprobs, entropies, hits

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, *_: Any) -> Any:
        """Return the gradient with respect to the logits, in their precision."""
        logits, tokens, norms = ctx.saved_tensors
        result = torch.empty_like(logits)
        for start in range(0, len(logits), _CHUNK):
            part = slice(start, start + _CHUNK)
            shares = (at_least_float32(logits[part]) - norms[part, None]).exp_().mul_(-gradient[part, None])
            shares.scatter_add_(1, tokens[part, None], gradient[part, None])
            result[part] = shares
        return result, None
