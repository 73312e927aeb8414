"""The names of CPU features, as Linux writes them in /proc/cpuinfo, and the CPUID bits behind them.

What /proc/cpuinfo does not show has the name of the kernel's constant, in small letters; KVM's own features begin
with `kvm`.  One name may stand for several bits: AMD repeats the bits of leaf 1 in leaf 0x80000001.
"""

from __future__ import annotations

from kvmpy.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvmpy.kvm import CpuidEntry

    Place = tuple[int, int, str, int]
    """Leaf, sub-leaf, register and bit."""

# (leaf, sub-leaf, register): a name for each bit from bit 0 on, eight in a row, `-` where there is none.
REGISTERS = {
    (0x1, 0, "edx"): """
        fpu vme de pse tsc msr pae mce
        cx8 apic - sep mtrr pge mca cmov
        pat pse36 pn clflush - dts acpi mmx
        fxsr sse sse2 ss ht tm ia64 pbe""",
    (0x1, 0, "ecx"): """
        pni pclmulqdq dtes64 monitor ds_cpl vmx smx est
        tm2 ssse3 cid sdbg fma cx16 xtpr pdcm
        - pcid dca sse4_1 sse4_2 x2apic movbe popcnt
        tsc_deadline_timer aes xsave osxsave avx f16c rdrand hypervisor""",
    (0x6, 0, "eax"): """
        dtherm ida arat - pln - pts hwp
        hwp_notify hwp_act_window hwp_epp hwp_pkg_req - - - -
        - - - hfi""",
    (0x6, 0, "ecx"): "aperfmperf - - epb",
    (0x7, 0, "ebx"): """
        fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep
        bmi2 erms invpcid rtm cqm zero_fcs_fds mpx rdt_a
        avx512f avx512dq rdseed adx smap avx512ifma - clflushopt
        clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl""",
    (0x7, 0, "ecx"): """
        - avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk
        gfni vaes vpclmulqdq avx512_vnni avx512_bitalg tme avx512_vpopcntdq -
        la57 - - - - - rdpid -
        bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc -""",
    (0x7, 0, "edx"): """
        - - avx512_4vnniw avx512_4fmaps fsrm uintr - -
        avx512_vp2intersect srbds_ctrl md_clear rtm_always_abort - tsx_force_abort serialize hybrid_cpu
        tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16
        amx_tile amx_int8 spec_ctrl intel_stibp flush_l1d arch_capabilities core_capabilities spec_ctrl_ssbd""",
    (0x7, 1, "eax"): """
        sha512 sm3 sm4 - avx_vnni avx512_bf16 cmpccxadd -
        arch_perfmon_ext - fzrm fsrs fsrc - - -
        - fred lkgs wrmsrns - amx_fp16 - avx_ifma
        - - lam""",
    (0x7, 1, "edx"): """
        - - - - avx_vnni_int8 avx_ne_convert - -
        amx_complex - avx_vnni_int16 - - - prefetchiti -
        - - - avx10""",
    (0x7, 2, "edx"): "intel_psfd ipred_ctrl rrsba_ctrl ddpd_u bhi_ctrl mcdt_no",
    (0xD, 1, "eax"): "xsaveopt xsavec xgetbv1 xsaves xfd",
    (0x40000001, 0, "eax"): """
        kvmclock kvm_nopiodelay kvm_mmu kvmclock kvm_asyncpf kvm_steal_time kvm_pv_eoi kvm_pv_unhalt
        - kvm_pv_tlb_flush kvm_asyncpf_vmexit kvm_pv_ipi kvm_poll_control kvm_pv_sched_yield kvm_asyncpf_int
        kvm_msi_ext_dest_id
        kvm_hc_map_gpa_range kvm_migration_control - - - - - -
        kvmclock_stable_bit""",
    (0x40000001, 0, "edx"): "kvm_hint_dedicated",
    (0x80000001, 0, "edx"): """
        fpu vme de pse tsc msr pae mce
        cx8 apic - syscall mtrr pge mca cmov
        pat pse36 - mp nx - mmxext mmx
        fxsr fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow""",
    (0x80000001, 0, "ecx"): """
        lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse
        3dnowprefetch osvw ibs xop skinit wdt - lwp
        fma4 tce - nodeid_msr - tbm topoext perfctr_core
        perfctr_nb - bpext ptsc perfctr_llc mwaitx""",
    (0x80000007, 0, "ebx"): "overflow_recov succor - smca",
    (0x80000007, 0, "edx"): "- - - - - - - hw_pstate nonstop_tsc cpb - proc_feedback",
    (0x80000008, 0, "ebx"): """
        clzero irperf xsaveerptr - rdpru - - -
        - wbnoinvd - - amd_ibpb - amd_ibrs amd_stibp
        - amd_stibp_always_on - - - - - amd_ppin
        amd_ssbd virt_ssbd amd_ssb_no cppc amd_psfd btc_no amd_ibpb_ret brs""",
    (0x8000000A, 0, "edx"): """
        npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists
        - - pausefilter - pfthreshold avic - v_vmsave_vmload
        vgif - x2avic - v_spec_ctrl vnmi - -
        - - - - svme_addr_chk""",
    (0x80000021, 0, "eax"): """
        no_nested_data_bp wrmsr_xx_base_ns lfence_rdtsc - - verw_clear null_sel_clr_base -
        autoibrs no_smm_ctl_msr - - - - - -
        - - - - prefetchi - - -
        - - - sbpb ibpb_brtype srso_no""",
}

# Bits that follow what the guest does (CR4, its APIC), and sizes that follow XCR0: no matter of what was asked.
_FOLLOWING = {
    (0x1, 0, "ecx"): 1 << 27,
    (0x1, 0, "edx"): 1 << 9,
    (0x7, 0, "ecx"): 1 << 4,
    (0xD, 0, "ebx"): 0xFFFFFFFF,
    (0xD, 1, "ebx"): 0xFFFFFFFF,
}

_NAMES = {register: text.split() for register, text in REGISTERS.items()}

PLACES: dict[str, list[Place]] = {}
"""Where each feature's bits are."""
for (_leaf, _subleaf, _register), _row in _NAMES.items():
    for _bit, _name in enumerate(_row):
        if _name != "-":
            PLACES.setdefault(_name, []).append((_leaf, _subleaf, _register, _bit))


def places(name: str) -> list[Place]:
    """Where the bits of feature `name` are; a `ConfigError` at `cpu`, with the nearest name, where there is none."""
    try:
        return PLACES[name]
    except KeyError:
        from difflib import get_close_matches

        nearest = get_close_matches(name.lower(), PLACES, 1, 0.5)
        advice = f"; did you mean {nearest[0]}?" if nearest else "; /proc/cpuinfo has the names of what the host has"
        raise ConfigError("cpu", f"there is no CPU feature {name!r}{advice}") from None


def present(entries: Iterable[CpuidEntry]) -> set[str]:
    """The names of the features that are in a CPUID."""
    table = {(entry.function, entry.index): entry for entry in entries}
    names: set[str] = set()
    for (leaf, subleaf, register), row in _NAMES.items():
        entry = table.get((leaf, subleaf))
        value = getattr(entry, register) if entry else 0
        names.update(name for bit, name in enumerate(row) if value >> bit & 1)
    return names - {"-"}


def forced(asked: Iterable[CpuidEntry], got: Iterable[CpuidEntry]) -> list[str]:
    """How what KVM made of a CPUID differs from what was asked for.

    `+avx2` is a feature that it added, `-x2apic` one that it took away; bits and registers without a name are as in
    `+0x7.0.ecx[9]` and `0x8000001e.0.eax=0x1`.  What follows the guest's own doing is left out.
    """
    before = {(entry.function, entry.index): entry for entry in asked}
    after = {(entry.function, entry.index): entry for entry in got}
    differences: dict[str, None] = {}  # In order, each once.
    for leaf, subleaf in sorted(before.keys() | after.keys()):
        for register in ("eax", "ebx", "ecx", "edx"):
            old = getattr(before.get((leaf, subleaf)), register, 0)
            new = getattr(after.get((leaf, subleaf)), register, 0)
            changed = (old ^ new) & ~_FOLLOWING.get((leaf, subleaf, register), 0)
            if not changed:
                continue
            where = f"{leaf:#x}.{subleaf}.{register}"
            row = _NAMES.get((leaf, subleaf, register))
            if row is None:
                differences[f"{where}={new:#x}"] = None
                continue
            for bit in range(32):
                if changed >> bit & 1:
                    name = row[bit] if bit < len(row) and row[bit] != "-" else f"{where}[{bit}]"
                    differences[f"{'+' if new >> bit & 1 else '-'}{name}"] = None
    return list(differences)
