"""Loaders take the formats as published and say where a file is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from models import datasets
from models.datasets import DatasetError, Example, family_examples, load_examples

SQUAD: dict[str, Any] = {
    "version": "v2.0",
    "data": [
        {
            "title": "Normans",
            "paragraphs": [
                {
                    "context": "The Normans gave their name to Normandy, a region in France.",
                    "qas": [
                        {
                            "id": "1",
                            "question": "In what country is Normandy?",
                            "is_impossible": False,
                            "answers": [{"text": "France", "answer_start": 53}, {"text": "France", "answer_start": 53}],
                        },
                        {"id": "2", "question": "Who is Rollo?", "is_impossible": True, "answers": []},
                    ],
                }
            ],
        }
    ],
}
HOTPOT = [
    {
        "_id": "5a",
        "question": "Where was the author of Momo born?",
        "answer": "Garmisch",
        "supporting_facts": [["Momo", 0]],
        "context": [["Momo", ["Momo is by Michael Ende.", " It is a novel."]], ["Ende", ["He was born in Garmisch."]]],
    }
]
LINE = {"context": "Pason is at home.", "question": "Where is Pason?", "answers": ["home", "at home"]}


def written(path: Path, content: Any) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def test_squad(tmp_path: Path) -> None:
    context = SQUAD["data"][0]["paragraphs"][0]["context"]
    found = load_examples(written(tmp_path / "dev-v2.0.json", SQUAD))
    assert found == [Example(context, "In what country is Normandy?", ("France",))]


def test_hotpot(tmp_path: Path) -> None:
    (found,) = load_examples(written(tmp_path / "dev.json", HOTPOT))
    assert found.context == "Momo: Momo is by Michael Ende. It is a novel.\nEnde: He was born in Garmisch."
    assert found.answers == ("Garmisch",)


def test_lines_relative_and_sampled(tmp_path: Path) -> None:
    lines = [json.dumps(LINE | {"question": f"Where is Pason {i}?"}) for i in range(20)]
    written(tmp_path / "mine.jsonl", "\n".join([*lines[:7], "", *lines[7:]]))
    everything = load_examples("mine.jsonl", base_dir=tmp_path)
    assert len(everything) == 20 and everything[0].answers == ("home", "at home")
    some = load_examples("mine.jsonl", 5, seed=1, base_dir=tmp_path)
    assert some == load_examples("mine.jsonl", 5, seed=1, base_dir=tmp_path)
    assert some != load_examples("mine.jsonl", 5, seed=2, base_dir=tmp_path)
    assert len({example.question for example in some} & {example.question for example in everything}) == 5
    assert load_examples("mine.jsonl", 50, base_dir=tmp_path) == everything


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", json.dumps(LINE) + "\n{oops\n", r"a\.jsonl:2: Invalid JSON"),
        ("a.jsonl", json.dumps(LINE) + "\n\n" + json.dumps(LINE | {"answers": []}), r"a\.jsonl:3: answers: "),
        ("a.jsonl", '{"context": "c", "question": 3, "answers": ["x"]}', r"a\.jsonl:1: question: "),
        ("a.jsonl", "", "no question with an answer"),
        ("a.jsonl", json.dumps(LINE | {"context": "x" * 2**22}), r"a\.jsonl:1: a line of more than 4 MiB"),
        ("a.json", '{"data": [\n\n nonsense]}', r"a\.json:3: "),
        ("a.json", '"text"', "neither in SQuAD's nor in HotpotQA's format"),
        ("a.json", "[" * 100_000, "a.json"),
        (
            "a.json",
            {"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q"}]}]}]},
            r"data\.0\..*answers",
        ),
        ("a.json", [{"question": "q", "answer": "a", "context": [["title"]]}], r"0\.context\.0"),
        ("a.json", {"data": []}, "no question with an answer"),
    ],
)
def test_wrong_files_are_refused_with_the_place(tmp_path: Path, name: str, content: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as refused:
        load_examples(written(tmp_path / name, content))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("source", ["no.json", "no.jsonl"])
def test_missing_files(tmp_path: Path, source: str) -> None:
    with pytest.raises(DatasetError, match=f"{source} can't be read: No such file"):
        load_examples(source, base_dir=tmp_path)


def test_files_are_bounded_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "MAX_FILE_BYTES", 100)
    with pytest.raises(DatasetError, match="larger than"):
        load_examples(written(tmp_path / "a.json", SQUAD))
    monkeypatch.setattr(datasets, "MAX_EXAMPLES", 3)
    with pytest.raises(DatasetError, match="more than 3 examples"):
        load_examples(written(tmp_path / "a.jsonl", "\n".join([json.dumps(LINE)] * 4)))


def test_unknown_sources() -> None:
    with pytest.raises(DatasetError, match="no data set 'squad'; there are family"):
        load_examples("squad")
    with pytest.raises(DatasetError, match="1 to 200000 examples"):
        load_examples("family", 0)


def test_hub_rows_of_both_kinds() -> None:
    """The columns as `datasets` gives them; fetching itself needs the network and isn't tested here."""
    squad = {
        "id": "1",
        "context": "c",
        "question": "q",
        "answers": {"text": ["x", "y", "x"], "answer_start": [0, 1, 0]},
    }
    hotpot = {"question": "q", "answer": "a", "context": {"title": ["T", "U"], "sentences": [["s.", " t."], ["u."]]}}
    assert list(datasets._of_row(squad, "")) == [Example("c", "q", ("x", "y"))]
    [without] = datasets._of_row(squad | {"answers": {"text": [], "answer_start": []}}, "")
    assert without.answers == ()
    mmlu = {"question": "2 + 2?", "choices": ["3", "4"], "answer": 1, "subject": "arithmetic"}
    assert list(datasets._of_row(mmlu, "")) == [Example("2 + 2?", "A. 3\nB. 4", ("B",))]
    assert list(datasets._of_row(hotpot, "")) == [Example("T: s. t.\nU: u.", "q", ("a",))]
    with pytest.raises(DatasetError, match="row 3: neither SQuAD's columns"):
        list(datasets._of_row({"text": "c"}, "x/y, row 3"))


def test_family_by_name() -> None:
    assert load_examples("family", 3, seed=4) == family_examples("eval", 3, seed=4)
    assert load_examples("family/train", 3) == family_examples("train", 3)
    assert family_examples("eval", 5)[:3] == family_examples("eval", 3)
    assert len(load_examples("family")) == datasets.DEFAULT_COUNT


def test_unanswerable_questions_are_only_for_who_asks(tmp_path: Path) -> None:
    questions = [
        {"id": "a", "question": "who?", "answers": [{"text": "Ada", "answer_start": 0}]},
        {"id": "b", "question": "where?", "answers": [], "is_impossible": True},
    ]
    squad = {"data": [{"title": "t", "paragraphs": [{"context": "Ada.", "qas": questions}]}]}
    (tmp_path / "s.json").write_text(json.dumps(squad))
    assert [e.name for e in load_examples(str(tmp_path / "s.json"))] == ["a"]
    found = load_examples(str(tmp_path / "s.json"), unanswerable=True)
    assert [(e.name, e.answers) for e in found] == [("a", ("Ada",)), ("b", ())]


def test_choices_in_lines(tmp_path: Path) -> None:
    lines = [
        {"question": "2 + 2?", "choices": ["3", "4"], "answer": "B"},
        {"question": "Which?", "choices": ["x", "y"], "answer": 0, "context": "It is x."},
    ]
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    first, second = load_examples(str(path))
    assert (first.context, first.question, first.answers) == ("2 + 2?", "A. 3\nB. 4", ("B",))
    assert (second.context, second.question, second.answers) == ("It is x.", "Which?\nA. x\nB. y", ("A",))
    path.write_text(json.dumps(lines[0] | {"answer": 7}))
    with pytest.raises(DatasetError, match=r"c\.jsonl:1: answer 7 is none of 2 choices"):
        load_examples(str(path))


@pytest.mark.parametrize("count", [1, 3, 10, 12])
def test_a_count_is_that_many(tmp_path: Path, count: int) -> None:
    from cluster.experiments.calibrate import examples_and_others

    path = tmp_path / "e.jsonl"
    line = '{"context": "Ada %d.", "question": "who?", "answers": ["Ada"]}'
    path.write_text("\n".join(line % n for n in range(12)))
    measured, others = examples_and_others(str(path), count)
    assert len(measured) == count and others
