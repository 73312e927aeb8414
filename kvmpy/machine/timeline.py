"""When a machine reached each stage of its life, in milliseconds since kvmpy was entered."""

from __future__ import annotations

from time import monotonic

STAGES = ("start", "vm_created", "loaded", "first_run", "first_console_byte", "end")


class Timeline:
    """The stages that were reached; `started` is the `time.monotonic()` that counts as 0."""

    __slots__ = ("_at", "started")

    def __init__(self, started: float | None = None) -> None:
        self.started = monotonic() if started is None else started
        self._at: dict[str, float] = {"start": self.started}

    def mark(self, stage: str, at: float | None = None) -> None:
        """Notes that `stage` is reached, now or at the `time.monotonic()` of `at`; only the first time counts."""
        self._at.setdefault(stage, monotonic() if at is None else at)

    def milliseconds(self) -> dict[str, float | None]:
        """Each of `STAGES` → milliseconds since the start, None for one that was not reached."""
        return {
            stage: None if (at := self._at.get(stage)) is None else round((at - self.started) * 1000, 3)
            for stage in STAGES
        }
