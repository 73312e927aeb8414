; Behind smp.asm: every processor goes round and round through a write to and a read from its port (PORT + 4 * id),
; the same at its address (MMIO + 16 * id), and a counter that all share.  EBX counts the rounds; it is what is
; written, and what the devices have to answer.  After ROUNDS rounds (0: never) a processor sleeps, and the last one
; writes 42 to the debug exit; 1 and 2 are wrong answers.  The labels up to `end` tell how far a processor came in its round.

main:   mov     edx, ebp
        shl     edx, 2
        add     edx, PORT
        mov     edi, ebp
        shl     edi, 4
        add     edi, MMIO
        mov     esi, ROUNDS
        xor     ebx, ebx
round:  inc     ebx
        mov     eax, ebx
        out     dx, eax
read_port:
        in      eax, dx
compare_port:
        cmp     eax, ebx
        jne     wrong_port
        mov     [edi], ebx
read_memory:
        mov     eax, [edi]
compare_memory:
        cmp     eax, ebx
        jne     wrong_memory
        lock inc dword [shared]
done:   cmp     ebx, esi
        jne     round
end:    mov     eax, 1
        lock xadd [finished], eax
        inc     eax
        cmp     eax, VCPUS
        jne     sleep
        mov     eax, 42
        jmp     leave
sleep:  hlt
        jmp     sleep

wrong_port:
        mov     eax, 1
        jmp     leave
wrong_memory:
        mov     eax, 2
        jmp     leave

on_ipi:
        align   4
shared: dd      0
finished: dd    0
stacks:
