; What a flat 16-bit binary is promised: real mode, as a boot sector finds it.
; Writes 42 to the debug exit port, or the number of the check that failed.

        mov     [0x600], eax            ; before anything changes it
        mov     eax, 1                  ; general registers are 0
        or      ebx, [0x600]
        or      ebx, ecx
        or      ebx, edx
        or      ebx, esi
        or      ebx, edi
        or      ebx, ebp
        mov     bp, 1
        test    ebx, ebx
        jne     fail

        mov     bp, 2                   ; segments are 0
        mov     ax, cs
        mov     cx, ds
        or      ax, cx
        mov     cx, es
        or      ax, cx
        mov     cx, ss
        or      ax, cx
        mov     cx, fs
        or      ax, cx
        mov     cx, gs
        or      ax, cx
        test    ax, ax
        jne     fail

        mov     bp, 3                   ; the stack lies below us, and can be used
        cmp     sp, 0x7000
        jne     fail
        push    word 0x1234
        pop     ax
        cmp     ax, 0x1234
        jne     fail

        mov     bp, 4                   ; neither protected mode nor paging
        mov     eax, cr0
        test    eax, 0x80000001
        jne     fail

        mov     bp, 5                   ; interrupts are off
        pushf
        pop     ax
        test    ax, 0x200
        jne     fail

        mov     bp, 6                   ; A20 is open
        mov     ax, 0xffff
        mov     es, ax
        mov     byte [0x600], 1
        mov     byte [es:0x610], 2
        cmp     byte [0x600], 1
        jne     fail

        mov     bp, 42
fail:   mov     ax, bp
        out     0xf4, al
        hlt
