"""Trains the family from scratch on one GPU: `python -m models.family.train --out FOLDER`.

All sizes train at once, each in a process of its own. What makes them learn (see `card.md`): passages grow from 40 to
1,000 tokens as answers come right (or as time passes), a part of the sequences repeat a random string, so that copying
forms, and matrices are trained with Muon. Words of the evaluation split never occur; in the end they get embeddings
drawn from the distribution of the others'.

The schedule follows the clock, so a slower machine trains less. Weights and an evaluation are written every minute and
at the end: stopped early, what it has is there.
"""

import argparse
import json
import math
import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from models.f1 import mean_interval, token_f1
from models.family import SIZES
from models.family.shapes import SHAPES, config_of
from models.family.task import (
    EVAL_WORDS,
    MAX_TOKENS,
    TRAIN_WORDS,
    Passage,
    Split,
    evaluation_passage,
    lexicon,
    make_passage,
    query_words,
)
from models.family.tokenizer import END, build_tokenizer, token_ids, vocabulary

SHORTEST, GROWTH, EVERY_STEPS, MASTERED = 40, 1.2, 50, 0.9  # longer passages when that share of answer tokens is right
GROWING = 0.25, 0.6  # of the time, in which passages grow even if not mastered
DECAY = 0.4  # of the time, at the end, in which the learning rate falls to 0
WARM_UP_STEPS = 300
DRILLS = 0.2  # share of sequences that repeat a random string
ELSEWHERE = 0.05  # weight of the loss on tokens that aren't answers
BATCH_TOKENS = 32_768
REUSE = 3  # steps on a batch, its invented words exchanged for others each time: making passages is what takes longest
ANSWER_TOKENS = 6
FIRST = vocabulary()[lexicon("train")[0]]  # of the invented words; those of the evaluation split have the last ids

Batch = tuple[torch.Tensor, torch.Tensor]


class Batches(IterableDataset[Batch]):
    """Endless fresh batches: ids [rows, n] int64 and the weight of each token's loss [rows, n] float32."""

    def __init__(self, seed: int, longest: "Synchronized[float]", batch_tokens: int = BATCH_TOKENS) -> None:
        self._seed, self._longest, self._batch_tokens = seed, longest, batch_tokens
        self._ids = vocabulary()

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        rng = np.random.default_rng([0, self._seed, worker.id if worker else 0])
        while True:
            yield self.batch(rng, int(np.exp(rng.uniform(np.log(SHORTEST), np.log(self._longest.value)))))

    def batch(self, rng: np.random.Generator, tokens: int) -> Batch:
        """Sequences on passages of `tokens` tokens each, padded to a common length, a multiple of 32."""
        questions = min(16, 3 + tokens // 40)
        length = 32 * math.ceil((tokens + 19 * questions) / 32)
        rows = max(1, self._batch_tokens // length)
        ids, weights = np.zeros((rows, length), np.int64), np.zeros((rows, length), np.float32)
        for row in range(rows):
            make = self._drill if rng.random() < DRILLS else self._sequence
            tokens_of_row, weights_of_row = make(rng, tokens, questions)
            ids[row, : len(tokens_of_row)] = tokens_of_row[:length]
            weights[row, : len(weights_of_row)] = weights_of_row[:length]
        return torch.from_numpy(ids), torch.from_numpy(weights)

    def _sequence(self, rng: np.random.Generator, tokens: int, questions: int) -> tuple[list[int], list[float]]:
        passage = make_passage(rng, "train", tokens, questions)
        ids = [number for sentence in passage.sentences for number in token_ids(sentence, self._ids)]
        weights = [ELSEWHERE] * len(ids)
        for question in passage.questions:
            asked, answer = token_ids(query_words(question), self._ids), token_ids(question.answer, self._ids)
            ids += [*asked, *answer, self._ids[END]]
            weights += [ELSEWHERE] * len(asked) + [1.0] * (len(answer) + 1)
        return ids, weights

    def _drill(self, rng: np.random.Generator, tokens: int, questions: int) -> tuple[list[int], list[float]]:
        string = rng.integers(FIRST, FIRST + TRAIN_WORDS, int(rng.integers(4, tokens // 2))).tolist()
        repeats = tokens // len(string)
        return string * repeats, [0.0] * len(string) + [2 * ELSEWHERE] * (len(string) * (repeats - 1))


def renamed(ids: torch.Tensor) -> torch.Tensor:
    """The same sequences with the invented words of the training split exchanged for each other, in every row anew."""
    table = torch.arange(FIRST + TRAIN_WORDS, device=ids.device).repeat(len(ids), 1)
    table[:, FIRST:] = FIRST + torch.rand(len(ids), TRAIN_WORDS, device=ids.device).argsort(1)
    return table.gather(1, ids)


def longest_by_clock(done: float) -> float:
    """Tokens of the longest passages at that part of the time, whatever has been learned."""
    return float(SHORTEST * (MAX_TOKENS / SHORTEST) ** np.interp(done, GROWING, (0.0, 1.0)))


def optimizers_of(model: Qwen2ForCausalLM, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers (with AdamW's update size), AdamW for embeddings, norms and biases."""
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(inner, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.98)),
    ]


def loss_of(model: Qwen2ForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted mean cross-entropy, and the share of answer tokens predicted right."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[:, :-1]).flatten(0, 1)
    wanted, weight = ids[:, 1:].flatten(), weights[:, 1:].flatten()
    loss = (functional.cross_entropy(logits.float(), wanted, reduction="none") * weight).sum() / weight.sum()
    answers = weight == 1
    right = ((logits.argmax(-1) == wanted) & answers).sum() / answers.sum().clamp(min=1)
    return loss, right


@torch.inference_mode()
def answer(model: Any, tokenizer: PreTrainedTokenizerFast, prompts: list[str], batch: int = 64) -> list[str]:
    """Greedy answers of a causal language model to prompts, in their order."""
    tokenizer.padding_side = "left"
    answers = [""] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(by_length), batch):
        chosen = by_length[start : start + batch]
        given = tokenizer([prompts[i] for i in chosen], return_tensors="pt", padding=True).to(model.device)
        given.pop("token_type_ids", None)
        out = model.generate(**given, max_new_tokens=ANSWER_TOKENS, do_sample=False)
        texts = tokenizer.batch_decode(out[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(chosen, texts, strict=True):
            answers[i] = text
    return answers


def evaluate(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int, split: Split = "eval", seed: int = 0
) -> dict[str, Any]:
    """Mean F1 of greedy answers on `count` passages: all (with a 95 % interval), by hops and by context length."""
    passages = [evaluation_passage(split, seed, number) for number in range(count)]
    answers = answer(model, tokenizer, [prompt_of(passage) for passage in passages])
    scores = np.array([token_f1(a, [p.questions[0].answer_text]) for a, p in zip(answers, passages, strict=True)])
    hops = np.array([len(passage.questions[0].needs) for passage in passages])
    tokens = np.array([sum(map(len, passage.sentences)) for passage in passages])
    groups = {
        "one hop": hops == 1,
        "two hops": hops == 2,
        "to 250 tokens": tokens <= 250,
        "to 500 tokens": (tokens > 250) & (tokens <= 500),
        "to 1000 tokens": tokens > 500,
    }
    found: dict[str, Any] = {"examples": count, "f1": round(float(scores.mean()), 4)}
    found["interval"] = [round(bound, 4) for bound in mean_interval(scores.tolist(), np.random.default_rng(0))]
    return found | {name: round(float(scores[chosen].mean()), 4) for name, chosen in groups.items() if chosen.any()}


def prompt_of(passage: Passage) -> str:
    """Context and question of a passage with one question, as models are asked."""
    return f"{passage.text}\nQuestion: {passage.questions[0].text}\nAnswer:"


@torch.no_grad()
def embed_held_out(embeddings: torch.Tensor) -> None:
    """Draw embeddings for the words held out from training, from the normal distribution fitted to the others'.

    If trained on repeated strings only, they would learn features that distinguish them from the others.

    Args:
        embeddings: [vocabulary, hidden], changed in place.
    """
    seen = embeddings[FIRST : FIRST + TRAIN_WORDS].double().cpu().numpy()
    unseen = np.random.default_rng(0).multivariate_normal(seen.mean(0), np.cov(seen.T), EVAL_WORDS)
    embeddings[FIRST + TRAIN_WORDS :] = torch.from_numpy(unseen)


def save(model: Qwen2ForCausalLM, size: str, folder: Path) -> Any:
    """Write what `from_pretrained` needs, in bf16, and return the model as written."""
    rounded: Any = Qwen2ForCausalLM(config_of(size))  # transformers' `to` and `generate` are typed for mixins
    rounded.to(model.device, torch.bfloat16).eval()
    rounded.load_state_dict(model.state_dict())
    embed_held_out(rounded.get_input_embeddings().weight)
    rounded.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return rounded


def train(size: str, out: Path, minutes: float, device: str, seed: int = 0, batch_tokens: int = BATCH_TOKENS) -> None:
    """Train one size; its folder `out/size` also gets `log.jsonl` and `evaluation.json`."""
    folder = out / size
    folder.mkdir(parents=True, exist_ok=True)
    longest: Synchronized[float] = multiprocessing.Value("d", SHORTEST * GROWTH)
    workers = max(1, multiprocessing.cpu_count() // len(SIZES) - 1)  # one core for the training itself
    batches = iter(DataLoader(Batches(seed, longest, batch_tokens), None, num_workers=workers, prefetch_factor=3))

    torch.manual_seed(seed)
    torch.set_float32_matmul_precision("high")
    model: Any = Qwen2ForCausalLM(config_of(size))
    model.to(device, torch.float32)
    tokenizer = build_tokenizer()
    if device == "cuda":
        for layer in model.model.layers:
            layer.compile(dynamic=True)
    peak, seconds = SHAPES[size].learning_rate, 60 * minutes
    optimizers = optimizers_of(model, peak)
    lately = torch.zeros((), device=device)  # share of answer tokens right, exponential mean
    began, step, saved_s, logged_s = time.monotonic(), 0, 0.0, 0.0
    with (folder / "log.jsonl").open("w", encoding="utf-8") as log:

        def write(**line: Any) -> None:
            log.write(json.dumps({"step": step, "s": round(time.monotonic() - began, 1), **line}) + "\n")
            log.flush()

        while (elapsed_s := time.monotonic() - began) < seconds:
            done = elapsed_s / seconds
            if step % REUSE == 0:
                ids, weights = (part.to(device) for part in next(batches))
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                loss, right = loss_of(model, renamed(ids), weights)
            model.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = peak * min(1.0, (step + 1) / WARM_UP_STEPS, (1 - done) / DECAY)
                optimizer.step()
            lately.lerp_(right, 0.05)
            step += 1
            if step % EVERY_STEPS == 0:
                mastered = longest.value * (GROWTH if lately.item() >= MASTERED else 1.0)
                longest.value = min(float(MAX_TOKENS), max(mastered, longest_by_clock(done)))
            if step == 1:
                began = time.monotonic()  # compile time doesn't count for the schedule
                continue
            if elapsed_s - logged_s > 5:
                logged_s = elapsed_s
                write(loss=round(loss.item(), 4), right=round(lately.item(), 4), longest=round(longest.value))
            if elapsed_s - saved_s > 60:
                saved_s = elapsed_s
                write(evaluation=evaluate(save(model, size, folder), tokenizer, 192))
        final = save(model, size, folder)
        found = {split: evaluate(final, tokenizer, 1000, split) for split in ("eval", "train")}
        write(evaluation=found["eval"])
    found["training"] = {"steps": step, "minutes": round(seconds / 60, 2), "batch_tokens": batch_tokens}
    (folder / "evaluation.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.family.train", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for a folder of each size")
    parser.add_argument("--minutes", type=float, default=7.6, help="of training (default: %(default)s)")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-tokens", type=int, default=BATCH_TOKENS)
    chosen = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    running = [
        context.Process(
            target=train, args=(size, chosen.out, chosen.minutes, chosen.device, 0, chosen.batch_tokens), name=size
        )
        for size in chosen.sizes
    ]
    for process in running:
        process.start()
    for process in running:
        process.join()
    failed = [process.name for process in running if process.exitcode]
    if failed:
        raise SystemExit(f"training of {', '.join(failed)} failed")


if __name__ == "__main__":
    main()
