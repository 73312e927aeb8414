"""Which features a processor is to have: the levels of the x86-64 psABI, and `+feature`, `-feature`.

A level is a mask over the host's CPU: instructions that not every processor of the level has are left out, what an
operating system needs of the host stays.  So a guest sees the same on each host that has the level.
"""

from __future__ import annotations

from kvmpy.config.cpu import HOST, LEVELS
from kvmpy.errors import ConfigError
from kvmpy.x86.cpu.features import places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kvmpy.config.cpu import CpuConfig
    from kvmpy.kvm import CpuidEntry
    from kvmpy.x86.cpu.features import Place

# x86-64 psABI, table 3.1: what each level has that the one before lacks.
_LEVEL_FEATURES = (
    "fpu cx8 cmov mmx fxsr sse sse2 syscall lm",
    "cx16 lahf_lm popcnt pni ssse3 sse4_1 sse4_2",
    "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave",
    "avx512f avx512bw avx512cd avx512dq avx512vl",
)

# Instructions for programs that belong to no level.
_OTHER_INSTRUCTIONS = """
    3dnow 3dnowext 3dnowprefetch adx aes amx_bf16 amx_complex amx_fp16 amx_int8 amx_tile avx10 avx512_4fmaps
    avx512_4vnniw avx512_bf16 avx512_bitalg avx512_fp16 avx512_vbmi2 avx512_vnni avx512_vp2intersect
    avx512_vpopcntdq avx512er avx512ifma avx512pf avx512vbmi avx_ifma avx_ne_convert avx_vnni avx_vnni_int16
    avx_vnni_int8 cldemote clflushopt clwb clzero cmpccxadd enqcmd erms fma4 fsrc fsrm fsrs fzrm gfni hle lwp
    misalignsse mmxext monitor movdir64b movdiri mpx mwaitx pclmulqdq pku prefetchi prefetchiti rdpid rdpru rdrand
    rdseed rtm serialize sha512 sha_ni sm3 sm4 sse4a tbm vaes vpclmulqdq waitpkg xgetbv1 xop xsavec xsaveopt xsaves
    xfd"""

# What cannot be without what: a feature, and those that build on it.
_DEPENDENTS = {
    "fxsr": "sse",
    "sse": "sse2",
    "sse2": "pni aes pclmulqdq sha_ni gfni",
    "pni": "ssse3 sse4a",
    "ssse3": "sse4_1",
    "sse4_1": "sse4_2",
    "xsave": "xsaveopt xsavec xgetbv1 avx pku mpx amx_tile",
    "xsavec": "xsaves",
    "xgetbv1": "xfd",
    "avx": "avx2 fma f16c xop fma4 vaes vpclmulqdq",
    "avx2": "avx512f avx_vnni avx_ifma avx_vnni_int8 avx_vnni_int16 avx_ne_convert sha512 sm3 sm4",
    "avx512f": """
        avx512dq avx512ifma avx512pf avx512er avx512cd avx512bw avx512_4vnniw avx512_4fmaps avx512_vnni
        avx512_vpopcntdq avx512_vp2intersect avx512vl avx10""",
    "avx512bw": "avx512vbmi avx512_vbmi2 avx512_bitalg avx512_fp16",
    "avx512vl": "avx512_bf16",
    "amx_tile": "amx_bf16 amx_int8 amx_fp16 amx_complex",
    "kvm_asyncpf": "kvm_asyncpf_int kvm_asyncpf_vmexit",
}

# Leaf 0xd, sub-leaf 0, EAX: the parts of the extended state that a feature brings (Intel SDM volume 1, 13.1).
XSTATE = 0xD
_STATE_OF = {"mpx": 0x18, "avx": 0x4, "avx512f": 0xE0, "pku": 0x200, "amx_tile": 0x60000}


class Selection:
    """The names of features to have (`on`) and to leave out (`off`); no name is in both."""

    __slots__ = ("off", "on")

    def __init__(self, on: set[str], off: set[str]) -> None:
        self.on = on
        self.off = off


def select(config: CpuConfig) -> Selection:
    """What `config` asks for, with all that it needs; a `ConfigError` at `cpu` for unknown or contrary names."""
    for name in sorted(config.added | config.removed):
        places(name)
    added = _closure(config.added, _NEEDS)
    removed = _closure(config.removed, _DEPENDS)
    for name in sorted(config.added & removed):
        base = min(_closure({name}, _NEEDS) & config.removed)
        raise ConfigError("cpu", f"{name} is to be had, and needs {base}, which is to be left out")
    on: set[str] = set()
    off: set[str] = set()
    if config.model != HOST:
        rank = LEVELS.index(config.model) + 1
        on.update(" ".join(_LEVEL_FEATURES[:rank]).split())
        off.update(" ".join((*_LEVEL_FEATURES[rank:], _OTHER_INSTRUCTIONS)).split())
    return Selection((on - removed) | added, (off - added) | removed)


def available(names: Iterable[str], supported: Iterable[CpuidEntry]) -> dict[str, list[Place]]:
    """Where `supported` has the bits of `names`; a name that it lacks has no places."""
    table = {(entry.function, entry.index): entry for entry in supported}
    return {
        name: [
            (leaf, subleaf, register, bit)
            for leaf, subleaf, register, bit in places(name)
            if getattr(table.get((leaf, subleaf)), register, 0) >> bit & 1
        ]
        for name in names
    }


def apply(
    selection: Selection,
    entries: list[CpuidEntry],
    found: dict[str, list[Place]],
    emulated: Callable[[], Iterable[CpuidEntry]],
) -> list[CpuidEntry]:
    """`entries`, changed in place, with the features of `selection`; some entries may be left out.

    `found` says what KVM has of `selection.on` (`available`); for the rest `emulated` is asked.  What neither has
    stays off, and shows when CPUID is read back.
    """
    table = {(entry.function, entry.index): entry for entry in entries}
    lacking = [name for name, where in found.items() if not where]
    if lacking:
        found = found | available(lacking, emulated())
    for name in selection.off:
        for place in places(name):
            _write(table, place, False)
    for where in found.values():
        for place in where:
            _write(table, place, True)
    return _trim_xstate(entries, selection.off)


def _write(table: dict[tuple[int, int], CpuidEntry], place: Place, on: bool) -> None:
    leaf, subleaf, register, bit = place
    entry = table.get((leaf, subleaf))
    if entry is not None:
        value = getattr(entry, register)
        setattr(entry, register, value | 1 << bit if on else value & ~(1 << bit))


def _trim_xstate(entries: list[CpuidEntry], off: set[str]) -> list[CpuidEntry]:
    """Takes the extended state of features that are off from leaf 0xd, or all of it."""
    gone = sum(mask for name, mask in _STATE_OF.items() if name in off)
    result = []
    for entry in entries:
        if entry.function == XSTATE:
            if "xsave" in off:
                entry.eax = entry.ebx = entry.ecx = entry.edx = 0
            elif entry.index == 0:
                entry.eax &= ~gone
            if entry.index >= 2 and ("xsave" in off or gone >> entry.index & 1):
                continue
        result.append(entry)
    return result


def _closure(names: Iterable[str], steps: dict[str, set[str]]) -> set[str]:
    """`names` and all that is reached from them."""
    reached: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting.extend(steps.get(name, ()))
    return reached


_DEPENDS = {name: set(text.split()) for name, text in _DEPENDENTS.items()}
_NEEDS: dict[str, set[str]] = {}
for _base, _names in _DEPENDS.items():
    for _name in _names:
        _NEEDS.setdefault(_name, set()).add(_base)
