"""Rows of `cruxtune export --to verl` as the dataset class of verl's SFT trainer.

data.custom_cls.path=cruxtune_verl.py data.custom_cls.name=CruxtuneDataset data.pad_mode=no_padding
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch


class CruxtuneDataset(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Items of input_ids, position_ids and loss_mask, aligned and unshifted: verl shifts the mask.

    Raises:
        ValueError: padding, with which verl casts weights to booleans, or a row longer than data.max_length.
    """

    def __init__(
        self,
        parquet_files: str | Sequence[str],
        tokenizer: Any,
        config: Mapping[str, Any],
        processor: Any = None,
        max_samples: int = -1,
    ) -> None:
        if config["pad_mode"] != "no_padding":
            raise ValueError(f"data.pad_mode is {config['pad_mode']}; use no_padding, which keeps weights as they are")
        files = [parquet_files] if isinstance(parquet_files, str) else list(parquet_files)
        table = pa.concat_tables([pq.read_table(file) for file in files])
        self._table = table.slice(0, max_samples) if max_samples > 0 else table
        longest = max(len(ids) for ids in self._table["input_ids"])
        if longest > config["max_length"]:
            raise ValueError(
                f"data.max_length is {config['max_length']}, the longest row has {longest} tokens; raise it"
            )

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.tensor(self._table["input_ids"][index].as_py())
        weights = torch.tensor(self._table["loss_mask"][index].as_py(), dtype=torch.float32)
        return {"input_ids": ids, "position_ids": torch.arange(len(ids)), "loss_mask": weights}
