"""Checks of a scenario before a live run starts anything: its size, its real models, the server that it asks."""

from cluster.live.placement import PlacementError
from cluster.scenario.schema import Scenario
from netem.helper.protocol import MAX_AGENTS, MAX_WORKERS
from netem.wire import MAX_SHAPED_MBPS


class ModelsUnavailable(ValueError):
    """A live run's models are missing or incompatible; the message names the scenario's key and the remedy."""


def check_size(scenario: Scenario) -> None:
    """Check that a live link can carry the scenario, which may be larger than that in simulations.

    Raises:
        PlacementError: with a one-line message that names the scenario's key.
    """
    for key, size, most in (
        ("agents.groups: agents", len(scenario.agent_profiles), MAX_AGENTS),
        ("cloud.workers: workers", scenario.cloud.workers, MAX_WORKERS),
        ("uplink.channel or events: Mbit/s", scenario.peak_mbps, MAX_SHAPED_MBPS),
    ):
        if size > most:
            raise PlacementError(f"{key}: {size:g}; a live link has room for {most:g}. Use --engine simulated")


def check_backend(scenario: Scenario) -> None:
    """Check that the server which answers for the workers answers at all, if there is one.

    Raises:
        PlacementError: with a one-line message that names the server.
    """
    if scenario.cloud.backend is not None:
        from cloud.openai import ServerError, try_out_now

        try:
            try_out_now(scenario.cloud.backend)
        except ServerError as error:
            raise PlacementError(f"cloud.backend: {error}") from None


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
