"""Train a tiny language model on a mixture that a service streams, and resume where it was stopped.

    mixwright serve --port 8000 &
    python examples/train_from_service.py --url http://127.0.0.1:8000 --mixture demo-uniform --steps 50

Bytes are the tokens, and the model is a byte embedding, a GRU and a projection: what is shown is the data. The
checkpoint holds model, optimizer and the place in the mixture; started again, the script goes on at exactly the
next row, with any number of workers. Tags are context, no targets: the loss counts where ``loss_mask`` says so.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from mixwright.torch_dataset import MixtureDataset

BEGIN, END, PADDING = 256, 257, 258
LENGTH = 256


class ByteModel(nn.Module):
    """Next-byte logits (batch, length, 259) of tokens (batch, length)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(PADDING + 1, width)
        self.read = nn.GRU(width, width, batch_first=True)
        self.predict = nn.Linear(width, PADDING + 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.predict(self.read(self.embed(tokens))[0])


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Tokens and targets (batch, LENGTH): cut or padded; targets are -100 where there is no loss."""
    tokens = torch.full((len(rows), LENGTH + 1), PADDING)
    targets = torch.full((len(rows), LENGTH + 1), -100)
    for place, row in enumerate(rows):
        ids, mask = row["input_ids"][: LENGTH + 1], row["loss_mask"][: LENGTH + 1]
        tokens[place, : len(ids)] = ids
        targets[place, : len(ids)] = torch.where(mask, ids, -100)
    return {
        "tokens": tokens[:, :-1],
        "targets": targets[:, 1:],
        "positions": [row["position"] for row in rows],
    }


def train(arguments: argparse.Namespace) -> list[int]:
    """Train up to ``--steps`` steps in all; returns the positions of the rows of this run."""
    torch.manual_seed(0)
    model = ByteModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    dataset = MixtureDataset(
        arguments.url,
        arguments.mixture,
        block_rows=arguments.batch_size,
        tokenizer="bytes",
        bos=BEGIN,
        eos=END,
    )
    done, path = 0, Path(arguments.checkpoint)
    if path.exists():
        saved = torch.load(path)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        dataset.load_state_dict(saved["data"])
        done = saved["step"]
    loader = DataLoader(
        dataset, batch_size=arguments.batch_size, num_workers=arguments.workers, collate_fn=collate
    )
    seen: list[int] = []
    steps = range(done + 1, arguments.steps + 1)
    for step, batch in zip(steps, loader, strict=False):
        logits = model(batch["tokens"])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen += batch["positions"]
        if step % arguments.save_every == 0 or step == arguments.steps:
            # By its count of rows: with workers, it is they who know the place.
            data = dataset.state_after(len(seen))
            save(
                path,
                {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "data": data, "step": step},
            )
            print(f"step {step}: loss {loss.item():.3f}, next position {data['offset'] + data['rows']}")
    return seen


def save(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write the checkpoint; a reader, and a run that is killed here, finds the old one or the new one."""
    part = path.with_suffix(".part")
    torch.save(checkpoint, part)
    part.rename(path)


def main(words: list[str] | None = None) -> list[int]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default=None, help="of the service; default: $MIXWRIGHT_URL or port 8000 here")
    parser.add_argument("--mixture", default="demo-uniform")
    parser.add_argument("--steps", type=int, default=50, help="in all, those before a restart included")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=10)
    parser.add_argument("--checkpoint", default="train-from-service.pt")
    return train(parser.parse_args(words))


if __name__ == "__main__":
    main()
