"""Modes on real models: answers are those of the model that the mode names, and bytes are counted exactly."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from kvcache.modes import LOCAL, SCOUT, parse_mode
from kvcache.plans import quantized
from kvcache.wire import payload_bytes
from models.datasets import Example, family_examples
from models.f1 import token_f1
from models.hf.edge import EdgeModel
from models.hf.loading import LoadedModel, ModelSpec, load_model
from models.hf.measure import ModeResult, RequestResult, _answer_nll, find_plan, measure
from models.hf.prompts import prompt_of, random_examples, text_of

torch.set_num_threads(1)
EXAMPLES = family_examples("eval", 4, max_tokens=150)
MODES = [
    "full",
    "int8",
    "mixed_int4",
    "q2c@1.0",
    "snapkv@0.5+int4",
    "q2c@0.25+delta",
    "prompt",
    "scout@1.0",
    "scout@0.5",
    "local",
]
PLAN = ("int4", "bf16", "int8")


@cache
def model(size: str) -> LoadedModel:
    return load_model(ModelSpec(f"family/{size}", dtype="float32"))


def alone(size: str, example: Example) -> str:
    loaded = model(size)
    edge = EdgeModel(loaded)
    found = edge.prefill(prompt_of(loaded, example.context, example.question))
    return text_of(loaded, edge.answer(found, 8).tokens)


@cache
def measured() -> list[RequestResult]:
    return measure(EXAMPLES, model("tiny"), model("small"), [parse_mode(m) for m in MODES], 8, PLAN)


def test_each_mode_is_answered_by_its_model() -> None:
    assert len(measured()) == len(EXAMPLES)
    for example, result in zip(EXAMPLES, measured(), strict=True):
        assert list(map(str, result.modes)) == MODES
        answers = {str(mode): found.answer for mode, found in result.modes.items()}
        assert answers["local"] == answers["full"] == answers["q2c@1.0"] == alone("tiny", example)
        assert answers["prompt"] == answers["scout@1.0"] == alone("small", example)
        for found in result.modes.values():
            assert found.f1 == token_f1(found.answer, example.answers)


def test_bytes_are_those_on_the_wire() -> None:
    geometry = model("tiny").geometry
    for example, result in zip(EXAMPLES, measured(), strict=True):
        prompt = prompt_of(model("tiny"), example.context, example.question)
        tokens, length = prompt.context, len(prompt.tokens) - 1
        sent = {str(mode): found.payload_bytes for mode, found in result.modes.items()}
        for mode, plan in (("full", "bf16"), ("int8", "int8"), ("mixed_int4", PLAN)):
            assert sent[mode] == 4 + payload_bytes(geometry, plan, torch.arange(length), length)
        assert result.context == tokens and result.kv_bytes == sent["full"] == sent["q2c@1.0"]
        assert sent["prompt"] == 20 + len(example.context) + len(example.question)
        assert (
            sent["local"] == 0 < sent["scout@1.0"] <= sent["scout@0.5"] < 150 < sent["snapkv@0.5+int4"] < sent["int8"]
        )


def test_stages_take_their_time() -> None:
    for result in measured():
        assert result.edge_prefill_ms > 0
        for mode, found in result.modes.items():
            assert found.decode_ms > 0
            assert (found.cloud_prefill_ms > 0.01) == (not mode.is_local)


def test_what_cannot_be_measured_is_refused() -> None:
    tiny = model("tiny")
    with pytest.raises(ValueError, match="mixed_int4 needs a plan"):
        measure(EXAMPLES, tiny, tiny, [parse_mode("mixed_int4")])
    other = replace(tiny, tokenizer=None)
    with pytest.raises(ValueError, match=r"tokenizers .* differ"):
        measure(EXAMPLES, tiny, other, [parse_mode("scout")])
    with pytest.raises(ValueError, match="takes 1 to 2,048"):
        measure([Example("the " * 3000, "who?", ("",))], tiny, tiny, [parse_mode("full")])
    with pytest.raises(ValueError, match="no examples"):
        find_plan(tiny, [])


def test_random_weights_need_no_words() -> None:
    toy = load_model(ModelSpec("toy", "random", "float32"))
    examples = random_examples(2, 40, 8, vocabulary=toy.vocabulary)
    modes = [parse_mode(mode) for mode in ("int8", "scout", "local")]
    for result in measure(examples, toy, toy, modes, 4):
        assert result.context == 40
        assert isinstance(result.modes[SCOUT], ModeResult) and len(result.modes[LOCAL].answer.split()) <= 4


def test_plans_follow_the_threshold() -> None:
    tiny = model("tiny")
    examples = family_examples("train", 4, max_tokens=120)
    assert find_plan(tiny, examples, threshold=100.0) == ("int4",) * 3
    assert find_plan(tiny, examples, threshold=-100.0) == ("bf16",) * 3
    assert set(find_plan(tiny, examples)) <= {"int4", "int8", "bf16"}


def test_the_negative_log_likelihood_is_the_loss_of_the_whole_sequence() -> None:
    tiny = model("tiny")
    prompt = prompt_of(tiny, EXAMPLES[0].context, EXAMPLES[0].question)
    found = EdgeModel(tiny).prefill(prompt)
    answer = prompt.tokens[:3]
    with torch.no_grad():
        logits = tiny.model(input_ids=torch.tensor([[*prompt.tokens, *answer]])).logits[0, -4:-1]
        expected = float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer)))
        whole = found.handover()
        assert _answer_nll(tiny, whole, (found.last_token, *answer)) == pytest.approx(expected, rel=1e-4)
        hurt = quantized(whole, "int4")
        assert _answer_nll(tiny, hurt, (found.last_token, *answer)) != pytest.approx(expected, rel=1e-4)
