; What a flat 32-bit binary is promised: protected mode without paging, flat segments.
; Writes 42 to the debug exit port, or the number of the check that failed.

        or      eax, ebx                ; general registers are 0
        or      eax, ecx
        or      eax, edx
        or      eax, esi
        or      eax, edi
        or      eax, ebp
        mov     ebp, 1
        test    eax, eax
        jne     fail

        mov     ebp, 2                  ; of CR0 only PE, and ET, which is always set
        mov     eax, cr0
        cmp     eax, 0x11
        jne     fail
        mov     eax, cr4
        test    eax, eax
        jne     fail

        mov     ebp, 3                  ; selectors are those of a GDT that has them
        sgdt    [table]
        cmp     dword [table + 2], 0x1000
        jne     fail
        mov     ax, cs
        cmp     ax, 0x10
        jne     fail
        mov     ax, ds
        mov     es, ax
        mov     ss, ax
        str     ax
        cmp     ax, 0x20
        jne     fail

        mov     ebp, 4                  ; segments reach up to the end
        cmp     dword [0xfffffff8], 0xffffffff
        jne     fail

        mov     ebp, 5                  ; the stack can be used, interrupts and single steps are off
        pushfd
        pop     eax
        test    eax, 0x20300
        jne     fail

        mov     ebp, 6                  ; A20 is open
        mov     byte [0x600], 1
        mov     byte [0x100600], 2
        cmp     byte [0x600], 1
        jne     fail

        mov     ebp, 42
fail:   mov     eax, ebp
        out     0xf4, al
        hlt
table:  dw      0
        dd      0
