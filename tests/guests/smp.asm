; Brings up all processors, each of which goes to `main` (another source, that is put behind this one) with its APIC id
; in EBP and a stack of its own.  32-bit code without paging; GDT selectors 0x10 and 0x18, as at the entry.
; VCPUS is how many processors there are.  With X2APIC = 0 one broadcast through the xAPIC's registers starts the
; others, with 1 each gets its own INIT and SIPIs through the x2APIC's MSRs.
; Intel SDM 3A, 9.4 (MP initialization) and 11 (APIC).  There is RAM behind the image for the stacks.

APIC    equ     0xfee00000
LOW     equ     0x10000                 ; Where the others start, in real mode: SIPI vector 0x10.
STACK   equ     256
IPI     equ     0x40                    ; `on_ipi` of the other source takes this vector.

        mov     esp, stacks + STACK
        lidt    [idtr]
        mov     al, 0xff                ; Nothing from the PICs.
        out     0x21, al
        out     0xa1, al
        mov     esi, trampoline
        mov     edi, LOW
        mov     ecx, trampoline_end - trampoline
        cld
        rep movsb
        call    enable_apic
        mov     eax, X2APIC
        test    eax, eax
        jne     directed
        mov     dword [APIC + 0x300], 0xc4500
        mov     dword [APIC + 0x300], 0xc4600 | LOW >> 12
        mov     dword [APIC + 0x300], 0xc4600 | LOW >> 12
        jmp     processor
directed:
        mov     edx, 1
.next:  cmp     edx, VCPUS
        jae     processor
        mov     ecx, 0x830
        mov     eax, 0x4500
        wrmsr
        mov     eax, 0x4600 | LOW >> 12
        wrmsr
        wrmsr
        inc     edx
        jmp     .next

processor:
        mov     eax, 1
        cpuid
        shr     ebx, 24
        mov     ebp, ebx
        jmp     main

; EAX: the vector, EDX: the APIC id of the processor that is to get it.
send_ipi:
        mov     ecx, X2APIC
        test    ecx, ecx
        jne     .x2apic
        shl     edx, 24
        mov     [APIC + 0x310], edx
        mov     [APIC + 0x300], eax
        ret
.x2apic:
        mov     ecx, 0x830
        wrmsr
        ret

end_of_interrupt:
        mov     ecx, X2APIC
        test    ecx, ecx
        jne     .x2apic
        mov     dword [APIC + 0xb0], 0
        ret
.x2apic:
        mov     ecx, 0x80b
        xor     eax, eax
        xor     edx, edx
        wrmsr
        ret

; EAX: what this processor's APIC says its id is.
apic_id:
        mov     ecx, X2APIC
        test    ecx, ecx
        jne     .x2apic
        mov     eax, [APIC + 0x20]
        shr     eax, 24
        ret
.x2apic:
        mov     ecx, 0x802
        rdmsr
        ret

enable_apic:
        mov     ecx, X2APIC
        test    ecx, ecx
        jne     .x2apic
        mov     dword [APIC + 0xf0], 0x1ff
        ret
.x2apic:
        mov     ecx, 0x1b
        rdmsr
        or      eax, 0x400
        wrmsr
        mov     ecx, 0x80f
        mov     eax, 0x1ff
        xor     edx, edx
        wrmsr
        ret

; The number in EAX to the debug exit.
leave:  out     0xf4, al
        cli
        hlt

application:
        mov     ax, 0x18
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     eax, 1
        lock xadd [started], eax
        shl     eax, 8
        lea     esp, [eax + stacks + STACK]
        lidt    [idtr]
        call    enable_apic
        jmp     processor

        bits    16
trampoline:
        cli
        mov     ax, cs
        mov     ds, ax
        o32 lgdt [gdtr - trampoline]
        mov     eax, cr0
        or      al, 1
        mov     cr0, eax
        jmp     dword 0x10:application
gdtr:   dw      31
        dd      gdt
trampoline_end:
        bits    32

        align   8
gdt:    dq      0, 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
idt:    times   IPI dq 0
        dw      on_ipi & 0xffff, 0x10, 0x8e00, on_ipi >> 16
idtr:   dw      IPI * 8 + 7
        dd      idt
started: dd     1
