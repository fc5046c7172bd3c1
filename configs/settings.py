"""The base of everything that a user sets in a document: scenarios, their parts, profiles."""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator


class Settings(BaseModel):
    """Unknown keys are errors, and so are NaN, infinity, and `yes` or `true` where a number is meant."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, data: Any) -> Any:
        """Pydantic takes `true` for 1; what stands in its place here is taken for nothing, at its own location."""
        if not isinstance(data, dict):
            return data
        fields = cls.model_fields
        return {
            key: _without_truth(value) if key in fields and not _takes_truth(fields[key].annotation) else value
            for key, value in data.items()
        }


class _Truth:
    def __init__(self, value: bool) -> None:
        self._shown = "true (in YAML also yes, on)" if value else "false (in YAML also no, off)"

    def __repr__(self) -> str:
        return self._shown


def _without_truth(value: Any) -> Any:
    if isinstance(value, bool):
        return _Truth(value)
    return [*map(_without_truth, value)] if isinstance(value, list) else value


def _takes_truth(annotation: Any) -> bool:
    return annotation is bool or any(map(_takes_truth, get_args(annotation)))
