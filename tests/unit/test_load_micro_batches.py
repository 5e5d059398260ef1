"""load/micro_batches.py: what engines are given and what comes back."""

import torch
from tokenizers import Encoding, Tokenizer, models, pre_tokenizers

from micro_batches import MicroBatch, outputs_of, sorted_batches


def _encodings(texts: list[str]) -> list[Encoding]:
    tokenizer = Tokenizer(models.WordLevel({str(number): number for number in range(1, 9)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer.encode_batch(texts)


def test_outputs_come_in_the_order_given() -> None:
    """Sorting by length for the engine does not show in what is returned."""
    texts = ["1 2 3 4", "5", "6 7 8", "2 4"]

    def engine(batch: MicroBatch) -> torch.Tensor:
        return (batch["input_ids"] * batch["attention_mask"]).sum(1, keepdim=True).float()

    assert outputs_of(engine, _encodings(texts), 3)[:, 0].tolist() == [10, 5, 21, 6]


def test_rows_of_a_micro_batch_have_near_lengths() -> None:
    """The shortest ride together, and padding is masked."""
    batches = [batch for _, batch in sorted_batches(_encodings(["1 2 3 4", "5", "6 7 8", "2"]), 2)]
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(2, 1), (2, 4)]
    assert batches[1]["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
