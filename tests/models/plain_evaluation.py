"""An evaluation that shares no code with the project: transformers' `generate`, the chat template, SQuAD's F1 by hand.

    python tests/models/plain_evaluation.py MODEL_FOLDER SQUAD_FILE STUDY_FOLDER [COUNT]

It asks the questions that the study asked of the whole cache (`full`), by itself, and compares the two means of F1. It
exits with 1 if its own mean lies outside the study's 95 % interval.
"""

import collections
import json
import re
import string
import sys
from pathlib import Path

import torch
from pyarrow import parquet
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

MESSAGE = """Read the text. Answer the question with a few words copied from it, without a sentence around them.

Text:
{context}

Question: {question}"""
NEW_TOKENS = 32


def normalise(text: str) -> list[str]:
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def f1(answer: str, reference: str) -> float:
    said, wanted = normalise(answer), normalise(reference)
    if not said or not wanted:
        return float(said == wanted)
    same = sum((collections.Counter(said) & collections.Counter(wanted)).values())
    return 2 * same / (len(said) + len(wanted))


def questions(path: Path) -> dict[str, tuple[str, str, list[str]]]:
    data = json.loads(path.read_text(encoding="utf-8"))["data"]
    return {
        asked["id"]: (paragraph["context"], asked["question"], [answer["text"] for answer in asked["answers"]])
        for article in data
        for paragraph in article["paragraphs"]
        for asked in paragraph["qas"]
    }


def main(folder: str, squad: str, study: str, count: int = 10**9) -> int:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").to(device).eval()
    known = questions(Path(squad))
    rows = parquet.read_table(Path(study) / "results.parquet").to_pylist()
    ours = {row["example"]: row for row in rows if row["case"] == "full"}
    scores, same, mine = [], 0, []
    for name in list(ours)[:count]:
        context, question, answers = known[name]
        message = [{"role": "user", "content": MESSAGE.format(context=context, question=question)}]
        made = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        made = made.to(device)
        ends = [tokenizer.eos_token_id]
        output = model.generate(
            **made, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=ends, pad_token_id=ends[0]
        )
        text = tokenizer.decode(output[0, made["input_ids"].shape[1] :], skip_special_tokens=True)
        line = text.strip().split("\n")[0].strip()
        scores.append(max(f1(line, answer) for answer in answers))
        mine.append(ours[name]["f1"])
        same += line == ours[name]["answer"]
    independent, measured = 100 * sum(scores) / len(scores), 100 * sum(mine) / len(mine)
    drawn = torch.tensor(mine)[torch.randint(len(mine), (4000, len(mine)), generator=torch.Generator().manual_seed(0))]
    low, high = (100 * float(q) for q in drawn.mean(1).quantile(torch.tensor([0.025, 0.975])))
    said = f"{measured:.1f} [{low:.1f}, {high:.1f}] by the study"
    print(f"{len(scores)} questions: F1 {independent:.1f} by generate, {said}")
    print(f"{same} answers are the same text")
    return 0 if low <= independent <= high else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4], *map(int, sys.argv[4:])))
