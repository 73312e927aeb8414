; What Linux' 64-bit boot protocol promises (Documentation/arch/x86/boot.rst).  RSI points to the zero page.
; The initrd begins with "module" and has 4100 bytes.
; Writes 42 to the debug exit port, or the number of the check that failed.

        mov     ebp, 1                  ; long mode, interrupts off
        mov     ecx, 0xc0000080
        rdmsr
        test    eax, 0x400
        je      fail
        mov     rsp, stack
        pushfq
        pop     rax
        test    eax, 0x200
        jne     fail

        mov     ebp, 2                  ; CS is __BOOT_CS, the others are __BOOT_DS
        mov     ax, cs
        cmp     ax, 0x10
        jne     fail
        mov     ax, ds
        cmp     ax, 0x18
        jne     fail
        mov     ax, es
        cmp     ax, 0x18
        jne     fail
        mov     ax, ss
        cmp     ax, 0x18
        jne     fail

        mov     ebp, 3                  ; the setup header, the command line
        cmp     dword [rsi + 0x202], 'HdrS'
        jne     fail
        mov     edi, [rsi + 0x228]
next:   inc     edi
        cmp     byte [rdi], 0
        jne     next
        cmp     dword [rdi - 4], 'ello'
        jne     fail

        mov     ebp, 4                  ; the initrd
        mov     edi, [rsi + 0x218]
        cmp     dword [rdi], 'modu'
        jne     fail
        cmp     dword [rsi + 0x21c], 4100
        jne     fail

        mov     ebp, 42
fail:   mov     eax, ebp
        out     0xf4, al
        hlt
        times   64 db 0
stack:
