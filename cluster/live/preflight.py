"""Checks of a scenario's real models before a live run starts them."""

from cluster.scenario.schema import Scenario


class ModelsUnavailable(ValueError):
    """A live run's models are missing or incompatible; the message names the scenario's key and the remedy."""


def check_models(scenario: Scenario) -> None:
    """Check configurations, tokenizers and examples without loading weights. Takes seconds if there are models.

    Raises:
        ModelsUnavailable: with a one-line message.
    """
    if not scenario.real_models:
        return
    try:
        from models.datasets import DatasetError
        from models.hf.architecture import ModelError
        from models.hf.pair import check
    except ImportError as error:
        raise ModelsUnavailable(
            f"agents.groups: real models need {error.name}: pip install 'scout-emulator[models]', or leave `model` out"
        ) from None
    for model, settings in scenario.real_models.items():
        profile = scenario.models[model]
        try:
            check(settings, profile, scenario.modes_of(profile), scenario.base_dir)
        except (ModelError, DatasetError, ValueError) as error:
            raise ModelsUnavailable(f"agents.groups, the model of profile {profile.name}: {error}") from None
