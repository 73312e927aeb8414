; What Linux' 32-bit boot protocol promises (Documentation/arch/x86/boot.rst).  ESI points to the zero page.
; MEMORY is how much RAM there is; the initrd begins with "module" and has 4100 bytes.
; Writes 42 to the debug exit port, or the number of the check that failed.

        or      ebp, edi                ; EBP, EDI and EBX are 0
        or      ebp, ebx
        mov     eax, ebp
        mov     ebp, 1
        test    eax, eax
        jne     fail

        mov     ebp, 2                  ; protected mode without paging, interrupts off
        mov     eax, cr0
        and     eax, 0x80000001
        cmp     eax, 1
        jne     fail
        mov     esp, stack
        pushfd
        pop     eax
        test    eax, 0x200
        jne     fail

        mov     ebp, 3                  ; CS is __BOOT_CS, the others are __BOOT_DS
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

        mov     ebp, 4                  ; the setup header, the command line
        cmp     dword [esi + 0x202], 'HdrS'
        jne     fail
        mov     edi, [esi + 0x228]
next:   inc     edi
        cmp     byte [edi], 0
        jne     next
        cmp     dword [edi - 4], 'ello'
        jne     fail

        mov     ebp, 5                  ; the initrd
        mov     edi, [esi + 0x218]
        cmp     dword [edi], 'modu'
        jne     fail
        cmp     dword [esi + 0x21c], 4100
        jne     fail

        mov     ebp, 6                  ; the first entry of the memory map
        cmp     byte [esi + 0x1e8], 1
        jb      fail
        cmp     dword [esi + 0x2d0], 0
        jne     fail
        cmp     dword [esi + 0x2d0 + 16], 1
        jne     fail

        mov     ebp, 42
fail:   mov     eax, ebp
        out     0xf4, al
        hlt
        times   64 db 0
stack:
