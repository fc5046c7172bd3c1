"""Prompts are what transformers itself would make of them, and answers end where they should."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, PreTrainedTokenizerFast

from models.datasets import Example, family_examples
from models.hf.architecture import ModelError
from models.hf.cloud import CloudModel
from models.hf.decode import Answers, Start
from models.hf.edge import EdgeModel
from models.hf.loading import LoadedModel, ModelSpec, build_random, load_model
from models.hf.measure import fitting
from models.hf.prefill import prefill
from models.hf.prompts import Prompt, prompt_of, reference_tokens, text_of
from models.settings import TaskName
from models.tasks import QA, TASKS, task_of

torch.set_num_threads(1)
CHAT = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
CONTEXT = "Ada Lovelace was born in London. Charles Babbage (1791–1871) knew her well.\nIn Paris it rained."
QUESTION = "Where was Ada Lovelace born?"


def tokenizer(template: str | None, bos: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as published models have it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<s>", "<|start|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    made.train_from_iterator([CONTEXT, QUESTION, QA.chat, "\n\n", ".\n\n"] * 3, trainer)
    if bos:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    found = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="<s>")
    found.add_special_tokens({"additional_special_tokens": special[1:]})
    found.chat_template = template
    return found


@cache
def model(template: str | None, bos: bool = False) -> LoadedModel:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model("qwen2", **sizes, num_key_value_heads=1, vocab_size=420)
    return build_random(ModelSpec("tiny", "random", "float32", seed=3), config, tokenizer(template, bos))


def test_a_chat_prompt_is_tokenized_as_transformers_does() -> None:
    loaded = model(CHAT)
    assert loaded.tokenizer is not None
    prompt = prompt_of(loaded, CONTEXT, QUESTION)
    message = {"role": "user", "content": QA.chat.format(context=CONTEXT, question=QUESTION)}
    expected = loaded.tokenizer.apply_chat_template([message], add_generation_prompt=True, return_dict=True)
    assert list(prompt.tokens) == expected["input_ids"]
    inside = loaded.tokenizer.decode(prompt.tokens[prompt.head : prompt.head + prompt.context])
    assert inside in CONTEXT and len(inside) >= len(CONTEXT) - 2, "all of it but what a token joins to the rest"
    assert prompt.head + prompt.context + prompt.query == len(prompt.tokens)


def test_plain_prompts_begin_as_the_models_texts_do() -> None:
    with_bos, without = prompt_of(model(None, True), CONTEXT, QUESTION), prompt_of(model(None), CONTEXT, QUESTION)
    assert with_bos.tokens == (0, *without.tokens) and (with_bos.head, without.head) == (1, 0)
    assert without.text == f"{CONTEXT}\nQuestion: {QUESTION}\nAnswer:"


@pytest.mark.parametrize("template", [CHAT, None])
def test_the_full_answer_is_that_of_generate(template: str | None) -> None:
    """Template, tokens, positions and ends: all must be right for the tokens to be the same."""
    loaded = model(template)
    prompt = prompt_of(loaded, CONTEXT, QUESTION)
    ids = torch.tensor([prompt.tokens])
    made = loaded.model.generate(  # type: ignore[operator]
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=[0, 2]
    )
    expected = [t for t in made[0, len(prompt.tokens) :].tolist() if t not in (0, 2)]
    edge, cloud = EdgeModel(loaded), CloudModel(loaded)
    found = edge.prefill(prompt)
    handed = cloud.decode_cache(found.handover(), found.last_token, 12).start
    asked = cloud.prefill_prune(prompt, None, 12).start
    assert [list(a.tokens) for a in (edge.answer(found, 12), *cloud.answers([handed, asked])[0])] == [expected] * 3


def test_where_an_answer_stands() -> None:
    loaded = model(CHAT)
    assert loaded.tokenizer is not None
    prompt = prompt_of(loaded, CONTEXT, QUESTION)
    for answer, times in (("London", 1), ("1791–1871", 1), ("Ada Lovelace", 1), ("ai", 1), ("Rome", 0), ("", 0)):
        places = prompt.places_of(answer, CONTEXT)
        assert len(places) == times, answer
        for place in places:
            tokens = prompt.tokens[prompt.head + place.start : prompt.head + place.stop]
            assert answer in loaded.tokenizer.decode(tokens)
    assert [loaded.tokenizer.decode(reference_tokens(loaded, prompt, "London"))] == ["London"]
    plain = prompt_of(model(None), CONTEXT, QUESTION)
    assert model(None).tokenizer.decode(reference_tokens(model(None), plain, "London")) == " London"  # type: ignore[union-attr]


def test_ends_are_all_that_anything_names() -> None:
    loaded = model(CHAT)
    assert loaded.stop_tokens == {0, 2}, "<s> is the tokenizer's, <|end|> is the template's"
    assert loaded.tokenizer is not None
    texts = {loaded.tokenizer.decode([token]) for token in loaded.line_ends}
    assert "\n" in texts and all("\n" in text for text in texts)
    config = loaded.model.config
    config.eos_token_id = [7, 8]
    assert build_random(loaded.spec, config, loaded.tokenizer).stop_tokens >= {0, 2, 7, 8}
    config.eos_token_id = None


def test_a_lines_end_ends_short_answers_unless_they_begin_with_it() -> None:
    loaded = model(CHAT)
    line = next(iter(loaded.line_ends))
    cache_, _ = prefill(loaded, [5, 6, 7])
    starts = [Start(cache_, 9, 9, one_line=True), Start(cache_, 9, 9), Start(cache_, 9, 9, one_line=True, begun=True)]
    answers = Answers(starts, loaded)
    for token in (line, 50, line, 51):
        answers.take([token] * 3)
    first, second, third = answers.answers()
    assert (first.tokens, first.stopped) == ((line, 50), True)
    assert (second.tokens, second.stopped) == ((line, 50, line, 51), False)
    assert (third.tokens, third.stopped) == ((), True)
    assert loaded.tokenizer is not None
    tokens = loaded.tokenizer("\nParis\nRome")["input_ids"]
    assert text_of(loaded, tokens) == "Paris"
    assert text_of(loaded, tokens, replace(QA, one_line=False)) == "Paris\nRome"


def test_head_and_query_are_always_kept() -> None:
    prompt = Prompt.of([10, 11, 12, 13], [20, 21, 22], head=[1, 2])
    assert prompt.positions().tolist() == list(range(8))
    assert prompt.positions(torch.tensor([1, 3])).tolist() == [0, 1, 3, 5, 6, 7]
    assert Prompt.of([5, 6, 7], []).positions(torch.tensor([0, 2])).tolist() == [0], "the last token is fed"
    with pytest.raises(ValueError, match="outside the context of 4"):
        prompt.positions(torch.tensor([4]))


def test_scores_are_the_contexts_whatever_is_before_it() -> None:
    from kvcache.selection import SELECTIONS

    loaded = model(None)
    chosen = [SELECTIONS[name]() for name in ("q2c", "snapkv", "h2o")]
    tokens = list(range(10, 90))
    whole = EdgeModel(loaded).prefill(Prompt.of(tokens[:70], tokens[70:]), chosen)
    headed = EdgeModel(loaded).prefill(Prompt.of(tokens[6:70], tokens[70:], tokens[:6]), chosen)
    for name, scores in headed.scores.items():
        torch.testing.assert_close(scores, whole.scores[name][6:])
    kept = torch.tensor([0, 3, 40])
    assert headed.handover(kept).positions.tolist() == [*range(6), 6, 9, 46, *range(70, 79)]


def test_deleting_equals_a_text_without_the_tokens() -> None:
    loaded, head, context, query = model(None), [3, 4], list(range(20, 60)), list(range(70, 80))
    kept = torch.tensor([1, 5, 6, 30, 39])
    start = CloudModel(loaded).prefill_deleted(Prompt.of(context, query, head), kept, 4).start
    shorter, _ = prefill(loaded, [*head, *(context[p] for p in kept.tolist()), *query[:-1]])
    assert (start.cache.length, start.token) == (2 + 5 + 9, query[-1])
    for (keys, values), (expected_keys, expected_values) in zip(start.cache.layers, shorter.layers, strict=True):
        torch.testing.assert_close(keys, expected_keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(values, expected_values, atol=1e-4, rtol=1e-4)


@pytest.fixture
def told() -> Iterator[list[str]]:
    yield []


def test_an_overlong_example_is_named_and_left_out(told: list[str]) -> None:
    tiny = load_model(ModelSpec("family/tiny", dtype="float32"))
    good = family_examples("eval", 2, max_tokens=80)
    long = Example("the " * 3000, "who?", ("",), "q17")
    assert fitting([good[0], long, good[1]], QA, 16, tiny, progress=told.append) == good
    assert told == ["left out: example 2 (q17): 3,022 tokens with its answer; family/tiny takes 1 to 2,048"]


def test_templates_that_fail_are_told() -> None:
    with pytest.raises(ModelError, match="chat template fails: no way"):
        prompt_of(model("{{ raise_exception('no way') }}"), CONTEXT, QUESTION)
    with pytest.raises(ModelError, match="doesn't show a user's message"):
        prompt_of(model("hello"), CONTEXT, QUESTION)


def test_scenarios_know_every_task() -> None:
    from typing import get_args

    assert get_args(TaskName) == tuple(TASKS)
    with pytest.raises(ValueError, match=r"no task 'poetry'; there are qa, "):
        task_of("poetry")


@pytest.mark.parametrize(
    ("task", "answer", "references", "f1", "exact"),
    [
        ("qa", "The Denver Broncos!", ["Denver Broncos"], 1, 1),
        ("qa", "in Denver", ["Denver Broncos", "Denver"], 2 / 3, 0),
        ("squad_v2", "Unanswerable.", [], 1, 1),
        ("squad_v2", "Denver", [], 0, 0),
        ("choice", "The answer is B.", ["B"], 1, 1),
        ("choice", "C", ["B"], 0, 0),
        ("multi_key", "71, 95", ["71", "95", "13"], 2 / 3, 0),
        ("summary", "the cat sat", ["the cat was sat"], 2 * 3 / 7, 0),
    ],
)
def test_scores(task: str, answer: str, references: list[str], f1: float, exact: float) -> None:
    assert TASKS[task].score(answer, references) == (pytest.approx(f1), exact)
