"""What processor is wanted: `CpuConfig`, and the text of `--cpu` that it is read from.

    host                      all that this host's KVM offers
    x86-64-v2,+aes,-rdrand    a level of the x86-64 psABI, a feature more, a feature less
    ./t2.json,-avx2           a custom CPU template in Firecracker's format

The base comes first; a file's name has a `/` in it or ends in `.json`.  Features follow, by the names that Linux
gives them in /proc/cpuinfo, `+` to have and `-` to leave out.
"""

from __future__ import annotations

from kvmpy.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

HOST = "host"
LEVELS = ("x86-64-v1", "x86-64-v2", "x86-64-v3", "x86-64-v4")
MODELS = (HOST, *LEVELS)

MAX_TEXT_LENGTH = 8192
MAX_NAME_LENGTH = 32


class CpuConfig:
    """A processor, as asked for.

    `model` is one of `MODELS`; `template` is the path of a custom CPU template, or the JSON itself as bytes, and goes
    with the model `host` alone; `added` and `removed` are names of features.

    Raises a `ConfigError` at `cpu` for what makes no sense.  The template's file is not opened, and the features'
    names are not looked up: `kvmpy.x86.cpu` does both.
    """

    __slots__ = ("added", "model", "removed", "template")

    def __init__(
        self,
        model: str = HOST,
        *,
        template: str | bytes | None = None,
        added: Iterable[str] = (),
        removed: Iterable[str] = (),
    ) -> None:
        if model not in MODELS:
            raise ConfigError(
                "cpu", f"{model!r:.100} is none of {', '.join(MODELS)}, and no template: its name ends in .json"
            )
        if template is not None and model != HOST:
            raise ConfigError("cpu", f"a template changes the host's CPU, and is not to be had with {model}")
        if template is not None and (not template or "\0" in _text(template)):
            raise ConfigError("cpu", "the template is empty, or no file name")
        self.model = model
        self.template = template
        self.added = frozenset(map(_check_name, added))
        self.removed = frozenset(map(_check_name, removed))
        for name in sorted(self.added & self.removed):
            raise ConfigError("cpu", f"{name} is to be had and to be left out; say one of the two")

    @property
    def plain(self) -> bool:
        """Whether this is the host's processor as it is."""
        return self.model == HOST and not (self.template or self.added or self.removed)

    def __repr__(self) -> str:
        return f"CpuConfig({', '.join(f'{key}={getattr(self, key)!r:.200}' for key in self.__slots__)})"


def parse_cpu(text: str) -> CpuConfig:
    """The processor that `text` asks for (see the module); else a `ConfigError` at `cpu`."""
    if len(text) > MAX_TEXT_LENGTH:
        raise ConfigError("cpu", f"{len(text)} characters are too many")
    base, *changes = text.split(",")
    for change in changes:
        if change[:1] not in ("+", "-"):
            raise ConfigError("cpu", f"{change!r:.100} has neither + nor - before it; write as in host,+aes,-avx2")
    if "/" in base or base.endswith(".json"):
        model, template = HOST, base
    elif base:
        model, template = base, None
    else:
        raise ConfigError("cpu", "no CPU is named; begin with host, as in host,+aes,-avx2")
    return CpuConfig(
        model,
        template=template,
        added=(change[1:] for change in changes if change[0] == "+"),
        removed=(change[1:] for change in changes if change[0] == "-"),
    )


def _check_name(name: str) -> str:
    if not (0 < len(name) <= MAX_NAME_LENGTH and name.isascii() and name.replace("_", "a").isalnum()):
        raise ConfigError("cpu", f"{name!r:.100} is not the name of a CPU feature")
    return name


def _text(template: str | bytes) -> str:
    return template if isinstance(template, str) else ""
