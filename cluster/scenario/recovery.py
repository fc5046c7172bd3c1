"""What a run does about processes that die or stop answering."""

from pydantic import Field

from configs.settings import Settings

SILENT_S = 4.0
SILENT_MODELS_S = 20.0  # loading and compiling a model keeps a process from answering


class RecoverySettings(Settings):
    """The policy for hosts, workers, allocator and the link's helper; each turn begins with all of them anyway."""

    restarts: int = Field(
        default=3, ge=0, le=1000, description="how often each process is started again in a turn; 0: never"
    )
    silent_s: float | None = Field(
        default=None,
        ge=1,
        le=3600,
        description="a process that has not answered for so long is ended as if it had died; default 4, with models 20",
    )
    resend: bool = Field(
        default=True, description="whether requests whose connection is lost are sent again, until their deadline"
    )
    restart_s: float = Field(
        default=3.0, gt=0, le=3600, description="of simulated runs: how long it takes to start a process again"
    )

    def silent_after_s(self, with_models: bool) -> float:
        """The limit in s, for a run with or without real models."""
        return self.silent_s or (SILENT_MODELS_S if with_models else SILENT_S)
