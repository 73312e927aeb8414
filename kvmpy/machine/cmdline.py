"""The Linux kernel's command line: what a machine of ours needs, what this host needs, and what the user adds."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvmpy.machine.profile import HostProfile

# The serial console; a reset by the keyboard controller, which ends the machine; and the same after a panic.
PLATFORM = "console=ttyS0 reboot=k panic=-1"

# Where ring 0 is emulated: a CPU without the features that the emulator lacks instructions for (or that kernels use in
# code that is worse off for it), no work against attacks that need native code in ring 0 or on page rights, no
# self-tests, and a clock so slow that serving its tick does not eat up the time.
SLOW_KERNEL = (
    "quiet mitigations=off vsyscall=none rodata=off cryptomgr.notests nosoftlockup "
    "clearcpuid=smap,smep,popcnt,cx16,rdrand,rdseed,invpcid,pcid,clflushopt,clwb,erms,fsrm,xsave,"
    "ssse3,aes,pclmulqdq,sse4_1,sse4_2 "
    "no-kvmclock tsc_early_khz=80000000 tsc=reliable lpj=1000000"
)


def command_line(profile: HostProfile, append: str, devices: Sequence[str] = ()) -> str:
    """The whole command line, with words that tell of `devices`.

    `append`, the user's part, comes last and so has the last word.
    """
    parts = [PLATFORM]
    if profile.emulates_ring0:
        parts.append(SLOW_KERNEL)
    parts += devices
    if append:
        parts.append(append)
    return " ".join(parts)
