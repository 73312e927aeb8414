/* The KVM API, for cffi: what x86 has.  Read after kvm.h's constants; kvm_run's own struct needs kvm_debug_exit_arch. */

/* For arrays: the kernel has them of `unsigned long long`, and C tells pointers to it from those to `long`. */
typedef unsigned long long __u64;

struct kvm_debug_exit_arch { uint32_t exception; uint32_t pad; uint64_t pc; uint64_t dr6; uint64_t dr7; };

struct kvm_regs {
    uint64_t rax, rbx, rcx, rdx;
    uint64_t rsi, rdi, rsp, rbp;
    uint64_t r8, r9, r10, r11;
    uint64_t r12, r13, r14, r15;
    uint64_t rip, rflags;
};
struct kvm_segment {
    uint64_t base;
    uint32_t limit;
    uint16_t selector;
    uint8_t type;
    uint8_t present, dpl, db, s, l, g, avl;
    uint8_t unusable;
    uint8_t padding;
};
struct kvm_dtable { uint64_t base; uint16_t limit; uint16_t padding[3]; };
struct kvm_sregs {
    struct kvm_segment cs, ds, es, fs, gs, ss;
    struct kvm_segment tr, ldt;
    struct kvm_dtable gdt, idt;
    uint64_t cr0, cr2, cr3, cr4, cr8;
    uint64_t efer;
    uint64_t apic_base;
    __u64 interrupt_bitmap[4];
};
#define KVM_SREGS2_FLAGS_PDPTRS_VALID ...
struct kvm_sregs2 {
    struct kvm_segment cs, ds, es, fs, gs, ss;
    struct kvm_segment tr, ldt;
    struct kvm_dtable gdt, idt;
    uint64_t cr0, cr2, cr3, cr4, cr8;
    uint64_t efer;
    uint64_t apic_base;
    uint64_t flags;
    __u64 pdptrs[4];
};
struct kvm_fpu {
    uint8_t fpr[8][16];
    uint16_t fcw;
    uint16_t fsw;
    uint8_t ftwx;
    uint16_t last_opcode;
    uint64_t last_ip;
    uint64_t last_dp;
    uint8_t xmm[16][16];
    uint32_t mxcsr;
    ...;
};
struct kvm_lapic_state { char regs[1024]; };
struct kvm_xsave { uint32_t region[1024]; ...; };
struct kvm_xcr { uint32_t xcr; uint64_t value; ...; };
struct kvm_xcrs { uint32_t nr_xcrs; uint32_t flags; struct kvm_xcr xcrs[16]; ...; };
struct kvm_debugregs { __u64 db[4]; uint64_t dr6; uint64_t dr7; uint64_t flags; ...; };

struct kvm_msr_entry { uint32_t index; uint64_t data; ...; };
struct kvm_msrs { uint32_t nmsrs; struct kvm_msr_entry entries[]; ...; };
struct kvm_msr_list { uint32_t nmsrs; uint32_t indices[]; };
struct kvm_cpuid_entry2 { uint32_t function, index, flags, eax, ebx, ecx, edx; ...; };
struct kvm_cpuid2 { uint32_t nent; struct kvm_cpuid_entry2 entries[]; ...; };
#define KVM_CPUID_FLAG_SIGNIFCANT_INDEX ...

#define KVM_VCPUEVENT_VALID_NMI_PENDING ...
#define KVM_VCPUEVENT_VALID_SIPI_VECTOR ...
#define KVM_VCPUEVENT_VALID_SHADOW ...
#define KVM_VCPUEVENT_VALID_SMM ...
#define KVM_VCPUEVENT_VALID_PAYLOAD ...
struct kvm_vcpu_events {
    struct { uint8_t injected, nr, has_error_code, pending; uint32_t error_code; } exception;
    struct { uint8_t injected, nr, soft, shadow; } interrupt;
    struct { uint8_t injected, pending, masked, pad; } nmi;
    uint32_t sipi_vector;
    uint32_t flags;
    struct { uint8_t smm, pending, smm_inside_nmi, latched_init; } smi;
    struct { uint8_t pending; } triple_fault;
    uint8_t reserved[26];
    uint8_t exception_has_payload;
    uint64_t exception_payload;
};

/* 5: what KVM_RUN can leave in, and take from, struct kvm_run */
#define KVM_SYNC_X86_REGS ...
#define KVM_SYNC_X86_SREGS ...
#define KVM_SYNC_X86_EVENTS ...
struct kvm_sync_regs { struct kvm_regs regs; struct kvm_sregs sregs; struct kvm_vcpu_events events; };

#define KVM_RUN_X86_SMM ...
#define KVM_RUN_X86_BUS_LOCK ...
#define KVM_EXIT_HYPERV_SYNIC ...
#define KVM_EXIT_HYPERV_HCALL ...
#define KVM_EXIT_HYPERV_SYNDBG ...
struct kvm_hyperv_exit {
    uint32_t type;
    uint32_t pad1;
    union {
        struct { uint32_t msr; uint32_t pad2; uint64_t control; uint64_t evt_page; uint64_t msg_page; } synic;
        struct { uint64_t input; uint64_t result; uint64_t params[2]; } hcall;
        struct {
            uint32_t msr;
            uint32_t pad2;
            uint64_t control;
            uint64_t status;
            uint64_t send_page;
            uint64_t recv_page;
            uint64_t pending_page;
        } syndbg;
    } u;
};

struct kvm_x86_mce { uint64_t status; uint64_t addr; uint64_t misc; uint64_t mcg_status; uint8_t bank; ...; };
struct kvm_tpr_access_ctl { uint32_t enabled; uint32_t flags; ...; };
struct kvm_vapic_addr { uint64_t vapic_addr; };
struct kvm_reinject_control { uint8_t pit_reinject; ...; };
#define KVM_PMU_EVENT_ALLOW ...
#define KVM_PMU_EVENT_DENY ...
struct kvm_pmu_event_filter {
    uint32_t action;
    uint32_t nevents;
    uint32_t fixed_counter_bitmap;
    uint32_t flags;
    __u64 events[];
    ...;
};
#define KVM_VCPU_TSC_CTRL ...
#define KVM_VCPU_TSC_OFFSET ...

#define KVM_GUESTDBG_ENABLE ...
#define KVM_GUESTDBG_SINGLESTEP ...
#define KVM_GUESTDBG_USE_SW_BP ...
#define KVM_GUESTDBG_USE_HW_BP ...
#define KVM_GUESTDBG_INJECT_DB ...
#define KVM_GUESTDBG_INJECT_BP ...
#define KVM_GUESTDBG_BLOCKIRQ ...
struct kvm_guest_debug_arch { __u64 debugreg[8]; };
struct kvm_guest_debug { uint32_t control; uint32_t pad; struct kvm_guest_debug_arch arch; };

struct kvm_pit_config { uint32_t flags; ...; };
#define KVM_PIT_SPEAKER_DUMMY ...
struct kvm_pit_channel_state {
    uint32_t count;
    uint16_t latched_count;
    uint8_t count_latched, status_latched, status, read_state, write_state, write_latch, rw_mode, mode, bcd, gate;
    int64_t count_load_time;
};
struct kvm_pit_state2 { struct kvm_pit_channel_state channels[3]; uint32_t flags; ...; };
struct kvm_irqchip { uint32_t chip_id; uint32_t pad; ...; };

#define KVM_CLOCK_TSC_STABLE ...
#define KVM_CLOCK_REALTIME ...
#define KVM_CLOCK_HOST_TSC ...
struct kvm_clock_data { uint64_t clock; uint32_t flags; uint64_t realtime; uint64_t host_tsc; ...; };

#define KVM_MSR_FILTER_MAX_RANGES ...
#define KVM_MSR_FILTER_READ ...
#define KVM_MSR_FILTER_WRITE ...
#define KVM_MSR_FILTER_DEFAULT_ALLOW ...
#define KVM_MSR_FILTER_DEFAULT_DENY ...
#define KVM_MSR_EXIT_REASON_INVAL ...
#define KVM_MSR_EXIT_REASON_UNKNOWN ...
#define KVM_MSR_EXIT_REASON_FILTER ...
struct kvm_msr_filter_range { uint32_t flags; uint32_t nmsrs; uint32_t base; uint8_t *bitmap; };
struct kvm_msr_filter { uint32_t flags; struct kvm_msr_filter_range ranges[16]; };
