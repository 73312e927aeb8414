; Behind smp.asm: every processor writes down its APIC id from all places that tell it, the first one checks them and
; writes 42 to the debug exit, or the number of the check that failed.  `table` has, by the id of CPUID leaf 1, that of
; the APIC, that of leaf 0xb, the number of processors that leaf 0xb tells of, and how many came with this id.

main:   mov     edi, ebp
        shl     edi, 4
        add     edi, table
        call    apic_id
        mov     [edi], eax
        mov     eax, 0xb
        xor     ecx, ecx
        cpuid
        mov     [edi + 4], edx
        mov     eax, 0xb
        mov     ecx, 1
        cpuid
        mov     [edi + 8], ebx
        lock inc dword [edi + 12]
        lock inc dword [arrived]
        test    ebp, ebp
        je      wait
        hlt

wait:   pause
        cmp     dword [arrived], VCPUS
        jne     wait
        mov     edi, table
        xor     edx, edx
next:   mov     eax, 1                  ; each id is one processor's
        cmp     dword [edi + 12], 1
        jne     leave
        mov     eax, 2                  ; the APIC says the same
        cmp     [edi], edx
        jne     leave
        mov     eax, 3                  ; so does leaf 0xb
        cmp     [edi + 4], edx
        jne     leave
        add     edi, 16
        inc     edx
        cmp     edx, VCPUS
        jb      next
        mov     eax, 42
        jmp     leave

on_ipi:
        align   16
table:  times   VCPUS * 2 dq 0
arrived: dd     0
stacks:
