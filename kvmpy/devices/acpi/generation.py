"""The VM generation ID: a number in guest memory that changes when a machine goes on from a copy of its past.

A guest that sees it change makes new what must be unique: it seeds its random numbers anew, for one.
"""

from __future__ import annotations

import os

from kvmpy.devices.state import State, integers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import ClassVar

    from kvmpy.devices.state import Fields
    from kvmpy.memory import GuestMemory

IDENTIFIER_SIZE = 16


class GenerationState(State):
    """The 16 bytes of the `identifier`."""

    __slots__ = ("identifier",)

    FIELDS: ClassVar[Fields] = {"identifier": integers(IDENTIFIER_SIZE, IDENTIFIER_SIZE, 0xFF)}

    def __init__(self, *, identifier: Iterable[int]) -> None:
        self.identifier = list(identifier)


class VmGenerationId:
    """The identifier, written at once to `address` (a multiple of 8, in RAM that the guest is told is reserved).

    `notify` tells the guest that it has changed; `random(n)` gives n bytes.
    """

    __slots__ = ("_address", "_memory", "_notify", "_random", "identifier")

    def __init__(
        self,
        memory: GuestMemory,
        address: int,
        notify: Callable[[], object],
        *,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._memory = memory
        self._address = address
        self._notify = notify
        self._random = random
        self._write(random(IDENTIFIER_SIZE))

    def renew(self) -> None:
        """Makes a new identifier, and says so: after each restore, before the vCPUs run."""
        self._write(self._random(IDENTIFIER_SIZE))
        self._notify()

    def save(self) -> GenerationState:
        """The identifier."""
        return GenerationState(identifier=self.identifier)

    def restore(self, state: GenerationState) -> None:
        """Takes over `state`: the machine as it was.  For one that goes on, `renew` comes next."""
        self._write(bytes(state.identifier))

    def _write(self, identifier: bytes) -> None:
        self.identifier = identifier
        self._memory.write(self._address, identifier)
