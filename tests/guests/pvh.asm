; What PVH promises (docs/misc/pvh.pandoc and start_info.h of Xen).  EBX points to the start info.
; MEMORY is how much RAM there is; the one module begins with "module" and has 4100 bytes; the command line ends
; with "hello".  Writes 42 to the debug exit port, or the number of the check that failed.

        mov     ebp, 1                  ; CR0: PE, and ET, which is always set; CR4: nothing
        mov     eax, cr0
        cmp     eax, 0x11
        jne     fail
        mov     eax, cr4
        test    eax, eax
        jne     fail

        mov     ebp, 2                  ; VM, IF and TF are clear
        mov     esp, stack
        pushfd
        pop     eax
        test    eax, 0x20300
        jne     fail

        mov     ebp, 3                  ; flat data segments: a write through each, and A20
        mov     byte [es:0x600], 1
        mov     byte [0x100600], 2
        cmp     byte [0x600], 1
        jne     fail
        cmp     dword [0xfffffff8], 0xffffffff
        jne     fail

        mov     ebp, 4                  ; magic, version, flags
        cmp     dword [ebx], 0x336ec578
        jne     fail
        cmp     dword [ebx + 4], 1
        jne     fail
        cmp     dword [ebx + 8], 0
        jne     fail

        mov     ebp, 5                  ; one module
        cmp     dword [ebx + 12], 1
        jne     fail
        mov     esi, [ebx + 16]
        cmp     dword [esi + 8], 4100
        jne     fail
        mov     edi, [esi]
        test    edi, 0xfff
        jne     fail
        cmp     dword [edi], 'modu'
        jne     fail
        cmp     dword [esi + 4], 0
        jne     fail

        mov     ebp, 6                  ; the command line
        mov     edi, [ebx + 24]
next:   inc     edi
        cmp     byte [edi], 0
        jne     next
        cmp     dword [edi - 4], 'ello'
        jne     fail
        cmp     byte [edi - 5], 'h'
        jne     fail

        mov     ebp, 7                  ; no ACPI, or an RSDP where it says
        mov     esi, [ebx + 32]
        test    esi, esi
        je      map
        cmp     dword [esi], 'RSD '
        jne     fail

map:    mov     ebp, 8                  ; the memory map begins with RAM at 0, and has that from 1 MiB up
        mov     esi, [ebx + 40]
        mov     ecx, [ebx + 48]
        cmp     dword [esi], 0
        jne     fail
        cmp     dword [esi + 16], 1
        jne     fail
entry:  cmp     dword [esi], 0x100000
        je      high
        add     esi, 24
        dec     ecx
        jne     entry
        jmp     fail
high:   cmp     dword [esi + 8], MEMORY - 0x100000
        jne     fail
        cmp     dword [esi + 16], 1
        jne     fail

        mov     ebp, 42
fail:   mov     eax, ebp
        out     0xf4, al
        hlt
        times   64 db 0
stack:
