; What multiboot promises (Multiboot Specification 0.6.96, 3.2 and 3.3).  EAX is a magic number, EBX points to the
; information.  FLAGS is 3, or 0x10003 for the addresses in the header; MEMORY is how much RAM there is; the one module
; begins with "module" and has 4100 bytes; the command line ends with " hello".
; Writes 42 to the debug exit port, or the number of the check that failed.

        align   4
header: dd      0x1badb002
        dd      FLAGS
        dd      -(0x1badb002 + FLAGS) & 0xffffffff
        dd      header
        dd      $$
        dd      end
        dd      end + 0x2000
        dd      start

start:  mov     ebp, 1
        cmp     eax, 0x2badb002
        jne     fail

        mov     ebp, 2                  ; protected mode without paging
        mov     eax, cr0
        and     eax, 0x80000001
        cmp     eax, 1
        jne     fail

        mov     ebp, 3                  ; VM and IF are clear
        mov     esp, end + 0x100
        pushfd
        pop     eax
        test    eax, 0x20200
        jne     fail

        mov     ebp, 4                  ; flat data segments, A20
        mov     byte [es:0x600], 1
        mov     byte [0x100600], 2
        cmp     byte [0x600], 1
        jne     fail
        cmp     dword [0xfffffff8], 0xffffffff
        jne     fail

        mov     ebp, 5                  ; what is there: memory, command line, modules, map, loader's name
        cmp     dword [ebx], 0x24d
        jne     fail
        cmp     dword [ebx + 4], 639
        jne     fail
        cmp     dword [ebx + 8], MEMORY / 1024 - 1024
        jne     fail

        mov     ebp, 6                  ; the command line
        mov     edi, [ebx + 16]
next:   inc     edi
        cmp     byte [edi], 0
        jne     next
        cmp     dword [edi - 4], 'ello'
        jne     fail
        cmp     word [edi - 6], ' h'
        jne     fail

        mov     ebp, 7                  ; one module, on a page, behind our zeroed data
        cmp     dword [ebx + 20], 1
        jne     fail
        mov     esi, [ebx + 24]
        mov     edi, [esi]
        cmp     edi, end + 0x2000
        jb      fail
        test    edi, 0xfff
        jne     fail
        cmp     dword [edi], 'modu'
        jne     fail
        mov     eax, [esi + 4]
        sub     eax, edi
        cmp     eax, 4100
        jne     fail
        mov     edi, [esi + 8]
        cmp     dword [edi], 'init'
        jne     fail

        mov     ebp, 8                  ; the memory map begins with RAM at 0, and has that from 1 MiB up
        mov     esi, [ebx + 48]
        mov     ecx, [ebx + 44]
        add     ecx, esi
        cmp     dword [esi + 4], 0
        jne     fail
        cmp     dword [esi + 20], 1
        jne     fail
entry:  cmp     dword [esi + 4], 0x100000
        je      high
        add     esi, [esi]
        add     esi, 4
        cmp     esi, ecx
        jb      entry
        jmp     fail
high:   cmp     dword [esi + 12], MEMORY - 0x100000
        jne     fail
        cmp     dword [esi + 20], 1
        jne     fail

        mov     ebp, 9                  ; the loader's name
        mov     edi, [ebx + 64]
        cmp     dword [edi], 'kvmp'
        jne     fail

        mov     ebp, 42
fail:   mov     eax, ebp
        out     0xf4, al
        hlt
end:
