"""A process's place among several: its rank, and the address where the ranks meet."""

import os
from dataclasses import dataclass

from trimtab.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Rank of this process, and the address of the store where the ranks meet."""

    rank: int
    """Rank of this process, from 0."""
    size: int
    """Number of ranks."""
    local_rank: int
    """Number of this process among those on this machine, from 0; selects the accelerator."""
    local_size: int
    """Processes on this machine."""
    host: str
    """Host of the store."""
    port: int
    """Port of the store."""
    serves: bool
    """True: this process runs the store; False: another process does."""
    attempt: str
    """Number of this attempt under the launcher; keys of other attempts are not read."""

    @classmethod
    def from_environment(cls) -> "Place | None":
        """The place that torchrun or ``trimtab run`` set in the environment; None: this is the only process.

        Raises:
            ConfigError: some of the variables are missing or are no numbers.
        """
        if os.environ.get("RANK", "0") == "0" and os.environ.get("WORLD_SIZE", "1") == "1":
            return None
        values: dict[str, int] = {}
        given = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")}
        optional = {name: text for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE") if (text := os.environ.get(name))}
        for name, text in (given | optional).items():
            if text is None or not text.isdecimal():
                raise ConfigError(
                    f"the environment variable {name} is {text!r}, expected a number; start the ranks with `trimtab "
                    "run` or with torchrun, which set it"
                )
            values[name] = int(text)
        rank, size = values["RANK"], values["WORLD_SIZE"]
        if rank >= size:
            raise ConfigError(f"RANK is {rank} and WORLD_SIZE {size}; ranks count from 0 to WORLD_SIZE - 1")
        elsewhere = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return cls(
            rank=rank,
            size=size,
            local_rank=values.get("LOCAL_RANK", rank),
            local_size=values.get("LOCAL_WORLD_SIZE", size),
            host=os.environ.get("MASTER_ADDR", "127.0.0.1"),
            port=values["MASTER_PORT"],
            serves=rank == 0 and not elsewhere,
            attempt=os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"),
        )
