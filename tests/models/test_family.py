"""The task asks for what is in the context and needs it; the models that ship have learned it."""

import json
import multiprocessing
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM

from models.datasets import family_examples
from models.f1 import token_f1
from models.family import CLOUD, EDGE, SIZES, family_path
from models.family.shapes import POSITIONS, config_of
from models.family.task import (
    MAX_TOKENS,
    SPLITS,
    Passage,
    Split,
    evaluation_passage,
    example_rng,
    lexicon,
    make_passage,
    query_words,
)
from models.family.tokenizer import build_tokenizer, load_tokenizer, token_ids, vocabulary
from models.family.train import Batches, answer, embed_held_out, loss_of, prompt_of, renamed

MAX_BYTES = 25_000_000
passages = st.builds(
    lambda split, number, tokens: make_passage(example_rng(split, 7, number), split, tokens, 12),
    st.sampled_from(sorted(SPLITS)),
    st.integers(0, 10_000),
    st.integers(40, MAX_TOKENS),
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def facts_of(passage: Passage) -> tuple[dict[tuple[str, ...], str], dict[tuple[str, str], str]]:
    """What a reader takes from the text alone: (person, verb, thing) -> place, (relation, person) -> person."""
    owned, related = {}, {}
    for sentence in passage.text.split(". "):
        if found := re.match(r"The (\w+) of (\w+) is (\w+)", sentence):
            related[found[1], found[2]] = found[3]
        elif found := re.match(r"(\w+) (\w+)s the (\w+ \w+) \w+ the (\w+ \w+)", sentence):
            owned[found[1], found[2], found[3]] = found[4]
    return owned, related


@settings(max_examples=60, deadline=None)
@given(passages)
def test_answers_are_in_the_facts_they_need(passage: Passage) -> None:
    assert passage.questions
    assert len({question.text for question in passage.questions}) == len(passage.questions), "asked once each"
    for question in passage.questions:
        needed = [" ".join(passage.sentences[i]) for i in question.needs]
        assert f" {question.answer_text} " in f" {needed[-1]} "
        assert len(set(question.needs)) in (1, 2)


@settings(max_examples=60, deadline=None)
@given(passages)
def test_two_hops_need_both_facts(passage: Passage) -> None:
    """Followed by hand, both facts give the answer; without the first, the text fits other answers too."""
    owned, related = facts_of(passage)
    for question in passage.questions:
        if found := re.match(r"Where does the (\w+) of (\w+) (\w+) the (\w+ \w+)\?", question.text):
            middle = related[found[1], found[2]]
            assert owned[middle, found[3], found[4]] == question.answer_text
            rivals = {place for key, place in owned.items() if key[1:] == (found[3], found[4])}
            assert len(rivals) >= 2, "the thing alone must not give the place"
        elif found := re.match(r"Who is the (\w+) of the (\w+) of (\w+)\?", question.text):
            middle = related[found[2], found[3]]
            assert related[found[1], middle] == question.answer_text
        else:
            assert len(question.needs) == 1
            continue
        assert len(question.needs) == 2
        assert middle not in question.words, "the person in the middle is for the reader to find"


def test_half_the_questions_take_two_hops_and_guessing_pays_little() -> None:
    several = [evaluation_passage("eval", 1, number) for number in range(400)]
    assert 0.42 < np.mean([len(passage.questions[0].needs) == 2 for passage in several]) < 0.58
    rng, guessed = np.random.default_rng(0), []
    for passage in several:
        (question,) = passage.questions
        pattern = {"Where": r"the (\w+ \w+)(?:\.| on)", "When": r"on (\w+)\.", "Who": r"is (\w+)\."}
        candidates = re.findall(pattern[question.text.split()[0]], passage.text)
        assert question.answer_text in candidates
        guessed.append(token_f1(str(rng.choice(candidates)), [question.answer_text]))
    assert np.mean(guessed) < 0.25


@pytest.mark.parametrize("tokens", [40, 64, 250, 1000])
def test_lengths_and_tokens(tokens: int) -> None:
    """Passages are as long as asked, up to one short fact, and the tokenizer sees them as training does."""
    tokenizer, ids = build_tokenizer(), vocabulary()
    for split in SPLITS:
        passage = make_passage(example_rng(split, 2, tokens), split, tokens, 4)
        in_training = [number for sentence in passage.sentences for number in token_ids(sentence, ids)]
        assert tokens - 12 <= len(in_training) <= tokens
        for question in passage.questions:
            prompt = prompt_of(Passage(passage.sentences, (question,)))
            assert tokenizer(prompt)["input_ids"] == in_training + token_ids(query_words(question), ids)


@pytest.mark.parametrize("tokens", [39, MAX_TOKENS + 1])
def test_lengths_out_of_range(tokens: int) -> None:
    with pytest.raises(ValueError, match="40 to 1000 tokens"):
        make_passage(np.random.default_rng(0), "eval", tokens, 1)


def test_splits_share_no_word_and_no_passage() -> None:
    assert not set(lexicon("train")) & set(lexicon("eval"))
    examples = {split: family_examples(split, 40) for split in SPLITS}
    words = {split: set(" ".join(e.context for e in examples[split]).lower().split()) for split in SPLITS}
    assert words["train"] & set(lexicon("train")) and not words["train"] & set(lexicon("eval"))
    assert words["eval"] & set(lexicon("eval")) and not words["eval"] & set(lexicon("train"))


@pytest.mark.parametrize("split", sorted(SPLITS))
def test_one_seed_one_set(split: Split) -> None:
    assert family_examples(split, 10, seed=3) == family_examples(split, 10, seed=3)
    assert not set(family_examples(split, 10, seed=3)) & set(family_examples(split, 10, seed=4))
    assert len(set(family_examples(split, 50))) == 50


def test_training_never_sees_held_out_words() -> None:
    batches, rng = Batches(0, multiprocessing.Value("d", 60.0), 8192), np.random.default_rng(0)
    held_out = {vocabulary()[word] for word in lexicon("eval")}
    for tokens in (40, 300, MAX_TOKENS):
        ids, weights = batches.batch(rng, tokens)
        assert ids.shape == weights.shape and ids.shape[1] <= POSITIONS
        assert (weights == 1).any() and not held_out & set(ids.unique().tolist())
        assert not held_out & set(renamed(ids).unique().tolist())


def test_renaming_keeps_what_is_the_same_and_what_is_not() -> None:
    ids, _ = Batches(0, multiprocessing.Value("d", 60.0), 4096).batch(np.random.default_rng(0), 100)
    other = renamed(ids)
    grammar = ids < vocabulary()[lexicon("train")[0]]
    assert torch.equal(other[grammar], ids[grammar])
    assert (other[~grammar] != ids[~grammar]).float().mean() > 0.99
    for before, after in zip(ids, other, strict=True):
        assert torch.equal(before[:, None] == before, after[:, None] == after)


def test_embeddings_of_held_out_words_are_like_the_others() -> None:
    embeddings = torch.randn(len(vocabulary()), 16) * torch.linspace(0.5, 2, 16) + 3
    before = embeddings.clone()
    embed_held_out(embeddings)
    first = vocabulary()[lexicon("eval")[0]]
    assert torch.equal(embeddings[:first], before[:first])
    unseen, seen = embeddings[first:], embeddings[vocabulary()[lexicon("train")[0]] : first]
    assert torch.allclose(unseen.mean(0), seen.mean(0), atol=0.5)
    assert torch.allclose(unseen.std(0), seen.std(0), rtol=0.2)


def test_a_toy_learns() -> None:
    """The training step lowers the loss: a network of one layer on a few short batches."""
    torch.manual_seed(0)
    config = config_of(EDGE)
    config.num_hidden_layers = 1
    model = Qwen2ForCausalLM(config)
    batches = Batches(0, multiprocessing.Value("d", 60.0), 2048)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    rng, losses = np.random.default_rng(0), []
    for _ in range(30):
        loss, _ = loss_of(model, *batches.batch(rng, 40))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 1


@pytest.mark.parametrize("size", SIZES)
def test_shipped_sizes_load(size: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(family_path(size))
    tokenizer = load_tokenizer(size)
    assert model.config.model_type == "qwen2" and model.dtype == torch.bfloat16
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    found, of_saving = model.config.to_dict(), {"architectures", "transformers_version", "_name_or_path"}
    assert {key: found[key] for key in found.keys() - of_saving} == {
        key: value for key, value in config_of(size).to_dict().items() if key not in of_saving
    }
    assert tokenizer.get_vocab() == vocabulary() and tokenizer.eos_token_id == model.config.eos_token_id
    with safe_open(family_path(size) / "model.safetensors", "pt") as weights:
        assert {str(weights.get_slice(name).get_dtype()) for name in weights.keys()} == {"BF16"}  # noqa: SIM118


def test_files_are_small() -> None:
    folder = family_path(EDGE).parent
    assert (
        sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        <= MAX_BYTES
    )


def test_unknown_size() -> None:
    with pytest.raises(ValueError, match="no size 'huge'; there are tiny, small, base"):
        family_path("huge")


def test_cloud_answers_and_edge_answers_less() -> None:
    """Contexts of words that training never saw."""
    examples = family_examples("eval", 60, seed=11, min_tokens=150, max_tokens=400)
    prompts = [f"{e.context}\nQuestion: {e.question}\nAnswer:" for e in examples]
    f1 = {}
    for size in (EDGE, CLOUD):
        model = AutoModelForCausalLM.from_pretrained(family_path(size), dtype=torch.float32)
        answers = answer(model, load_tokenizer(size), prompts, batch=10)
        f1[size] = np.mean([token_f1(a, e.answers) for a, e in zip(answers, examples, strict=True)])
    assert f1[CLOUD] >= 0.85
    assert 0.4 <= f1[EDGE] <= f1[CLOUD] - 0.1


def test_card_says_what_was_measured() -> None:
    """The card's table is the evaluations' numbers."""
    card = (family_path(EDGE).parent / "card.md").read_text(encoding="utf-8")
    for size in SIZES:
        found = json.loads((family_path(size) / "evaluation.json").read_text(encoding="utf-8"))["eval"]
        assert found["examples"] >= 500
        assert re.search(rf"\| `{size}` .*\| {found['f1']:.3f} ", card)
