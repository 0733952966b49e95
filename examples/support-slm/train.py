"""Train one version of the support model and write the folder that `model push` takes.

Deterministic for one release of Python, torch and the processor: work is counted in steps,
never in seconds.
"""

import argparse
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from corpus import encode, read_corpus, train_tokenizer
from export import write_version
from network import LanguageModel, Shape
from torch import Tensor
from torch.nn import functional

SEED = 1
BATCH = 8
WARM_UP_STEPS = 50
REPORT_EVERY = 200


@dataclass(frozen=True, slots=True)
class Stage:
    """`steps` of training at `loops` passes per layer; the rate falls from `peak` to 5 % of it."""

    steps: int
    loops: int = 1
    peak: float = 3e-3

    def rate(self, step: int) -> float:
        """Learning rate: linear warm-up, then half a cosine."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.peak * min(1.0, (step + 1) / WARM_UP_STEPS) * (0.05 + 0.95 * cosine)


RECIPES: dict[str, tuple[Stage, ...]] = {
    "1.0.0": (Stage(steps=600),),
    "1.1.0": (Stage(steps=2400),),
    "1.2.0": (Stage(steps=2400), Stage(steps=1200, loops=2, peak=2e-3)),
}
"""What each version is: trained briefly; trained well; trained well, then every layer twice."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of the two halves of the corpus, each one long stream (N,)."""

    train: Tensor
    held_out: Tensor


def train(stages: tuple[Stage, ...], tokens: Tokens, checkpoints: Path) -> LanguageModel:
    """Run the stages in order; one that left a checkpoint here before is not run again."""
    torch.manual_seed(SEED)
    shape = Shape()
    model = LanguageModel(shape)
    for number, stage in enumerate(stages):
        before = model.state_dict()
        model = LanguageModel(replace(shape, loops=stage.loops))
        model.load_state_dict(before)
        checkpoint = checkpoints / f"{_name(stages[: number + 1])}.pt"
        if checkpoint.exists():
            model.load_state_dict(torch.load(checkpoint, weights_only=True))
            continue
        run_stage(model, stage, tokens, seed=SEED + number)
        checkpoints.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), checkpoint)
    return model.eval()


def _name(stages: tuple[Stage, ...]) -> str:
    return "-then-".join(f"{s.steps}-steps-{s.loops}-loops-{s.peak:g}" for s in stages)


def run_stage(model: LanguageModel, stage: Stage, tokens: Tokens, seed: int) -> None:
    """Train in place on random windows of the training stream."""
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=stage.peak, betas=(0.9, 0.95), weight_decay=0.05
    )
    started = time.process_time()
    model.train()
    for step in range(stage.steps):
        for group in optimizer.param_groups:
            group["lr"] = stage.rate(step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = next_token_loss(model, _windows(tokens.train, model.shape.context, draw))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == stage.steps:
            spent = time.process_time() - started
            held = math.exp(held_out_loss(model, tokens.held_out, most=16))
            print(
                f"step {step + 1} loss {loss.item():.3f} held-out perplexity {held:.1f}"
                f" ({spent:.0f} s of processor time)",
                flush=True,
            )


def _windows(stream: Tensor, length: int, draw: torch.Generator) -> Tensor:
    """A batch of random windows (BATCH, length + 1)."""
    starts = torch.randint(0, len(stream) - length, (BATCH,), generator=draw)
    return torch.stack([stream[start : start + length + 1] for start in starts.tolist()])


def next_token_loss(model: LanguageModel, windows: Tensor) -> Tensor:
    """Mean cross-entropy in nats of windows (B, S + 1), in float32."""
    logits, _ = model(windows[:, :-1])
    return functional.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: LanguageModel, stream: Tensor, most: int) -> float:
    """Mean cross-entropy in nats over the first `most` whole windows of the stream."""
    length = model.shape.context
    count = min(most, (len(stream) - 1) // length)
    starts = range(0, count * length, length)
    windows = torch.stack([stream[start : start + length + 1] for start in starts])
    model.eval()
    losses = [next_token_loss(model, batch).item() * len(batch) for batch in windows.split(BATCH)]
    model.train()
    return sum(losses) / count


def main() -> None:
    """Read the text, train, write."""
    arguments = parse_arguments()
    torch.set_num_threads(1)  # with more, sums would depend on how the work is split
    corpus = read_corpus()
    tokenizer = train_tokenizer(corpus.train)
    tokens = Tokens(
        train=torch.tensor(encode(tokenizer, corpus.train)),
        held_out=torch.tensor(encode(tokenizer, corpus.held_out)),
    )
    print(f"{len(tokens.train)} tokens to learn from, {len(tokens.held_out)} held out", flush=True)
    stages = RECIPES[arguments.version]
    model = train(stages, tokens, arguments.checkpoints)
    if arguments.out:
        write_version(arguments.out, model, tokenizer, corpus, sum(s.steps for s in stages))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--version", choices=sorted(RECIPES), required=True)
    parser.add_argument("--out", type=Path, help="folder to write the version to")
    parser.add_argument(
        "--checkpoints",
        type=Path,
        default=Path("build/support-slm"),
        help="folder that keeps finished stages, so that a second run need not repeat them",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
