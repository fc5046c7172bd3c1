"""A study asks each example in each case once, as if alone, and goes on where it was cut short."""

import json
import re
from dataclasses import asdict, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.experiments.characterize import Study, StudyError, items_of, profile_from, run_study
from kvcache.plans import joint_plan, quantized
from kvcache.selection import SELECTIONS
from models.datasets import Example, load_examples
from models.hf.cloud import CloudModel
from models.hf.decode import PlainDecoder, Start
from models.hf.edge import EdgeModel
from models.hf.loading import LoadedModel, ModelSpec, load_model
from models.hf.prompts import prompt_of, reference_tokens, text_of
from models.profiles import ModelProfile
from models.study.asking import LOGIT_BYTES, Asker, Item, _Asked, _batches, answer_nlls, prefilled_together
from models.study.cases import Case, cases_of
from models.study.generated import examples_of
from models.study.plans import find_joint_plan
from models.study.rows import Outcome, Store
from models.tasks import QA, TASKS
from reports.files import STUDY_RESULTS
from reports.runs import ReportError
from reports.study import pareto, read_study, study_page

torch.set_num_threads(1)
[FIRST, SECOND, THIRD] = load_examples("family", 3)
SHARED = [FIRST, replace(FIRST, question=SECOND.question), replace(FIRST, question="who is it?")]
CASES = cases_of(["q2c", "snapkv"], [0.5], ["int4"], ["prune", "delete"], cloud=True)


@cache
def model(size: str) -> LoadedModel:
    return load_model(ModelSpec(f"family/{size}", dtype="float32"))


@cache
def outcomes() -> list[Outcome]:
    asker = Asker(model("tiny"), model("small"), QA, 8)
    items = [Item(replace(e, name=f"q{n}"), 0, 0, tuple(CASES)) for n, e in enumerate(SHARED)]
    return asker.ask(items)


def test_a_shared_prefill_gives_the_same_scores_and_caches() -> None:
    chosen = [make() for make in SELECTIONS.values()]
    prompts = [prompt_of(model("tiny"), e.context, e.question) for e in SHARED]
    for prompt, found in zip(prompts, prefilled_together(model("tiny"), prompts, chosen), strict=True):
        alone = EdgeModel(model("tiny")).prefill(prompt, chosen)
        assert found.first_token == alone.first_token
        for name in SELECTIONS:
            torch.testing.assert_close(found.scores[name], alone.scores[name], atol=1e-6, rtol=1e-5)
        for one, other in zip(found.cache.layers, alone.cache.layers, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_every_case_is_answered_as_if_alone() -> None:
    tiny, found = model("tiny"), {(o.example, o.case): o for o in outcomes()}
    assert len(found) == len(SHARED) * len(CASES) == len(outcomes())
    for number, example in enumerate(SHARED):
        prompt = prompt_of(tiny, example.context, example.question)
        alone = EdgeModel(tiny).prefill(prompt, [SELECTIONS["q2c"]()])
        kept = SELECTIONS["q2c"]().select(alone.scores["q2c"], 0.5, prompt.query)
        reference = reference_tokens(tiny, prompt, example.answers[0])
        starts = {
            "full": Start(quantized(alone.handover(), "bf16"), alone.last_token, 8),
            "int4": Start(quantized(alone.handover(), "int4"), alone.last_token, 8),
            "q2c@0.5": Start(quantized(alone.handover(kept), "bf16"), alone.last_token, 8),
            "q2c@0.5/delete": CloudModel(tiny).prefill_deleted(prompt, kept, 8).start,
        }
        for case, start in starts.items():
            outcome = found[f"q{number}", case]
            [answer] = PlainDecoder(tiny).decode([start])
            assert outcome.answer == text_of(tiny, answer.tokens) and outcome.answer_tokens == len(answer.tokens)
            assert outcome.nll == pytest.approx(answer_nlls(tiny, [start], [reference])[0], abs=0.02)
            assert outcome.kept == (len(kept) if "q2c" in case else prompt.context)
        assert found[f"q{number}", "q2c@0.5"].kept_positions == kept.tolist()
        scout = found[f"q{number}", "scout:q2c@0.5"]
        assert scout.kept_positions == kept.tolist() and 0 <= scout.overlap <= 1 and scout.payload_bytes < 150
        share = scout.kept / scout.context_tokens
        assert scout.beyond_chance == pytest.approx((scout.overlap - share) / (1 - share))


def test_nll_is_the_loss_of_the_text() -> None:
    tiny = model("tiny")
    prompt = prompt_of(tiny, FIRST.context, FIRST.question)
    answer = reference_tokens(tiny, prompt, FIRST.answers[0])
    with torch.no_grad():
        logits = tiny.model(input_ids=torch.tensor([[*prompt.tokens, *answer]])).logits[0, -len(answer) - 1 : -1]
    expected = float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer)))
    start = Start(EdgeModel(tiny).prefill(prompt).handover(), prompt.last_token)
    pruned = Start(start.cache.keep(torch.arange(30)), prompt.last_token)
    nlls = answer_nlls(tiny, [start, pruned, start], [answer, answer, answer[:1]])
    assert nlls[0] == pytest.approx(expected, abs=1e-4)
    assert nlls[1] == pytest.approx(answer_nlls(tiny, [pruned], [answer])[0], abs=1e-4), "padding changes nothing"
    assert nlls[2] != pytest.approx(nlls[0], abs=1e-6) or len(answer) == 1


def test_other_tokenizers_are_refused() -> None:
    with pytest.raises(ValueError, match="tokenizers of family/tiny and family/small differ: positions of one mean"):
        Asker(model("tiny"), replace(model("small"), tokenizer=None), QA, 8)


def study(samples: int = 3, **changes: object) -> Study:
    cases = cases_of(["q2c"], [0.5], ["int4"])
    return replace(Study(model("tiny"), None, QA, "family", samples, [], cases, 8), **changes)  # type: ignore[arg-type]


def test_a_study_is_kept_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []
    ask = Asker.ask

    def cut_short(self: Asker, items: list[Item]) -> list[Outcome]:
        if len(asked) >= 6:
            raise KeyboardInterrupt
        asked.extend((item.example.name, case.name) for item in items for case in item.cases)
        return ask(self, items)

    monkeypatch.setattr(Asker, "ask", cut_short)
    with pytest.raises(KeyboardInterrupt):
        run_study(study(), tmp_path / "s", lambda line: None)
    partial = read_study(tmp_path / "s")
    assert partial.facts.state == "partial" and "partial" in study_page(partial).warnings[0]
    assert set(asked) == Store(tmp_path / "s").done(), "what was asked is there"
    asked_before = list(asked)

    def note(self: Asker, items: list[Item]) -> list[Outcome]:
        asked.extend((item.example.name, case.name) for item in items for case in item.cases)
        return ask(self, items)

    monkeypatch.setattr(Asker, "ask", note)
    facts = run_study(study(), tmp_path / "s", lambda line: None)
    assert facts.state == "complete" and facts.outcomes == 9 == len(asked) == len(set(asked)), "nothing twice"
    assert asked[: len(asked_before)] == asked_before
    grown = study(samples=4, cases=cases_of(["q2c"], [0.5, 0.25], ["int4"]))
    more = run_study(grown, tmp_path / "s", lambda line: None)
    assert more.outcomes == 16 == len(asked) == len(set(asked))
    whole = tmp_path / "whole"
    run_study(study(), whole, lambda line: None)
    both = [Store(folder).table().to_pylist() for folder in (tmp_path / "s", whole)]
    first = {(row["example"], row["case"]): row for row in both[0]}
    assert all(first[row["example"], row["case"]]["answer"] == row["answer"] for row in both[1])
    with pytest.raises(StudyError, match="is a study with other seed"):
        run_study(study(seed=1), tmp_path / "s", lambda line: None)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/x").write_text("")
    with pytest.raises(StudyError, match="isn't empty, and no study"):
        run_study(study(), tmp_path / "other", lambda line: None)


def test_a_study_that_was_killed_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    ask = Asker.ask

    def killed(*_: object) -> None:
        raise SystemExit

    def two_and_no_more(self: Asker, items: list[Item]) -> list[Outcome]:
        if len(asked) == 2:
            killed()
        asked.extend(item.example.name for item in items)
        return ask(self, items)

    with monkeypatch.context() as patch:
        patch.setattr(Asker, "ask", two_and_no_more)
        patch.setattr(Store, "finish", killed)  # who is killed tidies nothing up
        with pytest.raises(SystemExit):
            run_study(study(), tmp_path, lambda line: None)
    told: list[str] = []
    assert run_study(study(), tmp_path, told.append).outcomes == 9
    assert any("6 are there" in line for line in told), told


def test_a_report_has_every_case_and_says_what_n_can_tell(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add(outcomes())
    store.finish(tmp_path / STUDY_RESULTS)
    Study(model("tiny"), model("small"), QA, "family", 3, [], CASES, 8).facts(["example 9: too long"]).write(
        tmp_path / "study.json"
    )
    found = read_study(tmp_path)
    assert {f.case for f in found.figures[0]} == {case.name for case in CASES}
    full = found.find("full", 0)
    assert full is not None and full.count == 3 and full.f1.difference != full.f1.difference
    page = study_page(found)
    assert "example 9: too long" in page.warnings[-1]
    cells = [cell for section in page.sections for table in section.tables for row in table.rows for cell in row]
    assert "scout:q2c@0.5" in cells and any("N=3" in note for note in page.sections[0].notes)
    front = pareto([f for f in found.figures[0] if f.side == "edge"], "nll", higher=False)
    assert all(a.nll.mean > b.nll.mean and a.payload_bytes <= b.payload_bytes for a, b in pairwise(front))
    with pytest.raises(ReportError, match=r"is no study: there is no study\.json"):
        read_study(tmp_path / "nothing")


def test_questions_on_one_context_come_together() -> None:
    questions = [Example(c, f"q{n}?", ("x",), f"{c}{n}") for n in range(3) for c in ("aa", "bb", "cc")]
    from cluster.experiments.characterize import _by_context

    found = _by_context(questions, seed=1)
    assert [e.context for e in found] == [c for c in dict.fromkeys(e.context for e in found) for _ in range(3)]
    assert sorted(e.name for e in found) == sorted(e.name for e in questions)


@pytest.mark.parametrize(("task", "hidden", "asked"), [("needle", 1, 1), ("multi_key", 8, 2)])
@pytest.mark.parametrize("tokens", [300, 1000])
def test_needles_are_hidden_in_contexts_of_the_length(task: str, hidden: int, asked: int, tokens: int) -> None:
    def words(text: str) -> int:
        return len(re.findall(r"\w+|[^\w\s]", text))

    found = examples_of(task, 6, tokens, words, seed=3)
    assert found == examples_of(task, 6, tokens, words, seed=3) != examples_of(task, 6, tokens, words, seed=4)
    assert len({e.name for e in found}) == 6
    for example in found:
        assert words(example.context) == pytest.approx(tokens, rel=0.1)
        assert example.context.count("special number") == hidden
        assert len(example.answers) == asked and all(answer in example.context for answer in example.answers)
        assert TASKS[task].score(", ".join(example.answers), example.answers)[0] == pytest.approx(1, abs=0.4)
    with pytest.raises(ValueError, match=r"too short for \d hidden sentences"):
        examples_of(task, 1, 10, words)


def test_generated_examples_are_studied_by_length() -> None:
    wanted = study(task=TASKS["needle"], lengths=[200, 400], samples=2)
    items, others = items_of(wanted, lambda line: None)
    assert [item.length for item in items] == [200, 200, 400, 400] and others


def test_contexts_of_a_length_keep_their_numbers_when_lengths_are_added() -> None:
    wanted = study(task=TASKS["needle"], lengths=[400], samples=2)
    before, _ = items_of(wanted, lambda line: None)
    after, _ = items_of(replace(wanted, lengths=[200, 400], samples=3), lambda line: None)
    numbers = {item.example.name: (item.length, item.context) for item in after}
    assert [numbers[item.example.name] for item in before] == [(item.length, item.context) for item in before]
    assert len(set(numbers.values())) == 6


def given(path: Path, *examples: dict[str, object]) -> str:
    both = {"context": FIRST.context, "question": FIRST.question, "answers": list(FIRST.answers)}
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(json.dumps(both | example) for example in examples))
    return str(path)


def test_examples_whose_names_repeat_are_all_kept(tmp_path: Path) -> None:
    named = [{"id": "a"}, {"id": "a"}, {"id": "3"}, {}, {"id": "a"}]
    wanted = study(source=given(tmp_path / "e.jsonl", *named), samples=5)
    items, _ = items_of(wanted, lambda line: None)
    assert [item.example.name for item in items] == ["a", "a#1", "3", "3#3", "a#4"]
    few, _ = items_of(replace(wanted, samples=2), lambda line: None)
    assert [item.example.name for item in few] == ["a", "a#1"]


def test_a_file_of_the_same_name_is_another_study(tmp_path: Path) -> None:
    first, second = (given(tmp_path / n / "dev.jsonl", {"question": q}) for n, q in (("a", "who?"), ("b", "where?")))
    cases = cases_of([], [], [])
    run_study(study(source=first, samples=1, cases=cases), tmp_path / "s", lambda line: None)
    with pytest.raises(StudyError, match="is a study with other examples_sha256"):
        run_study(study(source=second, samples=1, cases=cases), tmp_path / "s", lambda line: None)


def test_references_that_a_model_can_not_be_asked_for_are_left_out(tmp_path: Path) -> None:
    long, unknown = {"answers": ["the " * 3000]}, {"answers": [""], "id": "none"}
    wanted = study(source=given(tmp_path / "e.jsonl", {}, long, unknown), samples=3)
    told: list[str] = []
    items, _ = items_of(wanted, told.append)
    assert [item.example.name for item in items] == ["0"]
    assert re.fullmatch(r"left out: example 2: 3,\d\d\d tokens with its answer; family/tiny takes .*", told[0])
    assert told[1:] == ["left out: example 3 (none): an answer without tokens: ''"]


def test_what_is_computed_together_counts_logits() -> None:
    prompt = prompt_of(model("tiny"), FIRST.context, FIRST.question)
    start = Start(EdgeModel(model("tiny")).prefill(prompt).handover(), prompt.last_token, 8)
    item = Item(FIRST, 0, 0, ())
    asked = [_Asked(item, Case(), prompt, start, (1,) * n, None, 0) for n in (2, 1, 40, 1, 1)]
    caches = 5 * start.cache.geometry.nbytes(start.cache.kept + 40)
    assert [len(batch) for batch in _batches(asked, caches, 0)] == [5]
    assert [len(batch) for batch in _batches(asked, caches, 1_000_000)] == [1] * 5
    room = caches + 2 * 40 * 10_000 * LOGIT_BYTES
    found = list(_batches(asked, room, 10_000))
    assert sum(map(len, found)) == 5
    for batch in found:
        assert len(batch) * max(len(one.reference) for one in batch) * 10_000 * LOGIT_BYTES <= room


def test_an_outcome_that_was_kept_twice_counts_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add(outcomes()[:2])
    store.add([replace(outcomes()[1], answer="again"), *outcomes()[2:]])
    assert store.table().to_pylist() == [asdict(outcome) for outcome in outcomes()]


def test_cases_are_named_as_modes_are() -> None:
    joint = [("h2o", 0.25, "int4")]
    names = [case.name for case in cases_of(["q2c"], [0.5], ["int8"], ["prune", "delete"], True, joint)]
    assert names == [
        "full", "int8", "q2c@0.5", "q2c@0.5/delete", "h2o@0.25+int4", "prompt", "scout:q2c@0.5", "own:q2c@0.5",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no selection 'q3c'; there are q2c, "):
        cases_of(["q3c"], [0.5], [])
    with pytest.raises(ValueError, match=r"a retention of 1\.5"):
        cases_of(["q2c"], [1.5], [])


def test_a_joint_plan_protects_a_fragile_layer_and_sees_harm_that_adds_up() -> None:
    harm = {"int4": 1.0, "int4_kivi": 2.0, "int4_hadamard": 3.0, "k8v4": 0.1, "int8": 0.05, "bf16": 0.0}
    worth = [0.002, 0.002, 1.0, 0.002]
    calls = []

    def cost(plan: tuple[str, ...]) -> float:
        calls.append(plan)
        return 5 + sum(w * harm[name] for w, name in zip(worth, plan, strict=True))

    assert joint_plan(4, cost, 0.2) == ("int4", "int4", "k8v4", "int4"), "the fragile one, by its keys"
    assert joint_plan(4, cost, 2.0) == ("int4",) * 4
    assert joint_plan(4, cost, -1.0) == ("bf16",) * 4
    even = [0.009] * 4  # each is harmless alone (by 0.01), together they aren't

    def together(plan: tuple[str, ...]) -> float:
        return sum(w * harm[name] for w, name in zip(even, plan, strict=True))

    plan = joint_plan(4, together, 0.02)
    assert together(plan) <= 0.02 and "int4" in plan, "no more than is needed"


def test_a_plan_is_verified_on_other_examples() -> None:
    found = find_joint_plan(model("tiny"), load_examples("family/train", 6), QA, 8, threshold=0.02)
    assert len(found.plan) == 3 and found.rise <= 0.02
    with pytest.raises(ValueError, match="at least two examples"):
        find_joint_plan(model("tiny"), [FIRST], QA, 8)


def test_a_study_becomes_a_profile(tmp_path: Path) -> None:
    cases = cases_of(["q2c_pooled"], [0.5], ["int8"], ["prune", "delete"], cloud=True)
    wanted = study(samples=2, cloud=model("small"), cases=cases)
    run_study(wanted, tmp_path / "s", lambda line: None)
    results = read_study(tmp_path / "s")
    items, _ = items_of(wanted, lambda line: None)
    profile = profile_from(wanted, results, [item.example for item in items], lambda line: None)
    assert set(profile["modes"]) == {"local", "full", "int8", "q2c_pooled@0.5", "prompt", "scout@0.5"}
    known = ModelProfile.model_validate({"name": "s", **profile})
    scout = results.find("scout:q2c_pooled@0.5", 0)
    assert scout is not None and known.quality_basis == "100 x F1 on 2 examples of family (qa)"
    assert profile["modes"]["scout@0.5"]["quality"] == round(scout.f1.mean, 1)


def test_the_command_shows_prompts_studies_and_judges(tmp_path: Path) -> None:
    told = ["--model", "family/tiny", "--samples", "2", "--selections", "q2c", "--quantizers", "int8"]
    shown = CliRunner().invoke(app, ["characterize", *told, "--show", "1"])
    assert shown.exit_code == 0 and "Question: " in shown.output and " tokens" in shown.output
    out = tmp_path / "s"
    done = CliRunner().invoke(app, ["characterize", *told, "--out", str(out), "--retentions", "0.5"])
    assert done.exit_code == 0 and (out / "report.html").exists() and (out / "results.parquet").exists(), done.output
    judged = CliRunner().invoke(app, ["claims", str(out), "--out", str(tmp_path / "claims.md")])
    assert judged.exit_code == 0 and "int8 loses nothing" in (tmp_path / "claims.md").read_text()
    for wrong, message in (
        (["--selections", "q3c"], "no selection 'q3c'; there are q2c"),
        (["--ways", "cut"], "no way 'cut'; there are prune, prefill_kept, delete"),
        (["--task", "poetry"], "no task 'poetry'"),
        (["--retentions", "half"], "--retentions half: numbers by comma"),
        (["--task", "needle", "--examples", "x.json"], "are made here"),
    ):
        failed = CliRunner().invoke(app, ["characterize", "--model", "family/tiny", *wrong])
        assert failed.exit_code == 2 and message in " ".join(failed.output.split()), failed.output
    assert CliRunner().invoke(app, ["claims", str(tmp_path)]).exit_code == 2
