"""Writers and readers of results agree: every document survives being written and read, and damage is explained."""

import json
import typing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from cluster.run_folder import folder as run_folder
from cluster.scenario.schema import Scenario
from cluster.simulated.engine import run_simulated
from reports import files, schema
from reports.schema import Document, DocumentUnreadable, RunFacts, Summary

TINY = Scenario.load(Path(__file__).parents[1] / "cluster" / "data" / "tiny.yaml")
DOCUMENTS = [schema.Machine, RunFacts, Summary, schema.ComparisonRuns, schema.Comparison, schema.Fidelity]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = run_folder.create(tmp_path_factory.mktemp("runs") / "run", TINY)
    run_simulated(TINY, folder)
    return folder


@pytest.mark.parametrize(("name", "document"), [(files.RUN, RunFacts), (files.SUMMARY, Summary)])
def test_a_run_s_documents_have_the_models_keys_and_no_others(run_dir: Path, name: str, document: type) -> None:
    text = (run_dir / name).read_text()
    read = document.read(run_dir / name)
    assert json.loads(text) == read.model_dump(mode="json"), "nothing is lost on the way"
    assert list(json.loads(text)) == list(document.model_fields)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.__name__)
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_is_written_is_read(tmp_path: Path, document: type[Document], data: st.DataObject) -> None:
    written = data.draw(instances(document))
    written.write(tmp_path / "document.json")
    assert document.read(tmp_path / "document.json") == written


def instances(model: type[BaseModel]) -> st.SearchStrategy:
    """Any instance of a model, its parts included."""
    hints = typing.get_type_hints(model)
    return st.builds(model, **{name: values(hints[name]) for name in model.model_fields})


def values(hint: object) -> st.SearchStrategy:
    """Values of a field's type; numbers are finite, as JSON has no others."""
    arguments = typing.get_args(hint)
    if hint is float:
        return st.floats(allow_nan=False, allow_infinity=False)
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return instances(hint)
    if typing.get_origin(hint) is list:
        return st.lists(values(arguments[0]), max_size=2)
    if typing.get_origin(hint) is dict:
        texts = st.text(st.characters(codec="utf-8"), max_size=5)
        return st.dictionaries(texts, values(arguments[1]), max_size=2)
    if type(None) in arguments:
        return st.none() | values(arguments[0])
    if hint is typing.Any:
        return st.integers() | st.booleans() | st.lists(st.integers(), max_size=2)
    if typing.get_origin(hint) is typing.Literal:
        return st.sampled_from(arguments)
    if hint is str:
        return st.text(st.characters(codec="utf-8"), max_size=5)
    if isinstance(hint, type) and hasattr(hint, "__dataclass_fields__"):
        return st.builds(hint, **{name: values(each) for name, each in typing.get_type_hints(hint).items()})
    return st.from_type(hint)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:50], "not JSON"),
        (lambda text: text.replace('"issued"', '"isued"', 1), r"issued: Field required"),
        (lambda text: text.replace('"partial": false', '"partial": "maybe"'), r"partial: .*boolean"),
        (lambda text: text.replace('"met": ', '"met": 0.5, "was": ', 1), r"allocators\.equal\.met: .*integer"),
    ],
)
def test_damage_is_explained_by_its_place(run_dir: Path, tmp_path: Path, change: typing.Any, message: str) -> None:
    path = tmp_path / files.SUMMARY
    path.write_text(change((run_dir / files.SUMMARY).read_text()))
    with pytest.raises(DocumentUnreadable, match=message):
        Summary.read(path)


def test_numbers_that_json_does_not_have_are_never_written(run_dir: Path) -> None:
    summary = Summary.read(run_dir / files.SUMMARY)
    with pytest.raises(ValueError, match="finite"):
        summary.ready_s = float("nan")
