; What a flat 64-bit binary is promised: long mode with the first 4 GiB mapped onto themselves.
; Writes 42 to the debug exit port, or the number of the check that failed.

        or      rax, rbx                ; general registers are 0
        or      rax, rcx
        or      rax, rdx
        or      rax, rsi
        or      rax, rdi
        or      rax, rbp
        or      rax, r8
        or      rax, r15
        mov     ebp, 1
        test    rax, rax
        jne     fail

        mov     ebp, 2                  ; protection and paging, with PAE
        mov     rax, cr0
        and     eax, 0x80000001
        cmp     eax, 0x80000001
        jne     fail
        mov     rax, cr4
        test    eax, 0x20
        je      fail

        mov     ebp, 3                  ; long mode, enabled and active
        mov     ecx, 0xc0000080
        rdmsr
        and     eax, 0x500
        cmp     eax, 0x500
        jne     fail

        mov     ebp, 4                  ; 64-bit code: in 32-bit code this increments EAX and decrements it
        xor     eax, eax
        db      0x48, 0xff, 0xc8
        shr     rax, 63
        cmp     eax, 1
        jne     fail

        mov     ebp, 5                  ; the last of the 4 GiB is mapped
        mov     rbx, 0xfffffff8
        cmp     dword [rbx], 0xffffffff
        jne     fail

        mov     ebp, 6                  ; the stack can be used, interrupts and single steps are off
        pushfq
        pop     rax
        test    eax, 0x300
        jne     fail

        mov     ebp, 7                  ; the selectors are those of Linux' boot protocol
        mov     ax, cs
        cmp     ax, 0x10
        jne     fail
        mov     ax, ds
        cmp     ax, 0x18
        jne     fail

        mov     ebp, 42
fail:   mov     eax, ebp
        out     0xf4, al
        hlt
