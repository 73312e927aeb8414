"""The vCPUs' processor: CPUID, MSRs, topology, models, templates.

`CpuSetup` is the way in; `features` names what there is, and `MsrPolicy` answers for MSRs that KVM does not know.
"""

from kvmpy.x86.cpu.setup import CpuSetup

__all__ = ["CpuSetup"]
