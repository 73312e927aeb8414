; Behind smp.asm: an interrupt goes from processor to processor, ROUNDS times through all of them; they sleep until it
; comes.  Writes 42 to the debug exit when the first one got it the last time.

main:   lock inc dword [ready]
        test    ebp, ebp
        jne     sleep
wait:   pause
        cmp     dword [ready], VCPUS
        jne     wait
        call    pass_on
sleep:  sti
        hlt
        jmp     sleep

on_ipi: inc     dword [hops]            ; Nobody else does so now.
        test    ebp, ebp
        jne     .on
        mov     eax, 42
        cmp     dword [hops], VCPUS * ROUNDS
        je      leave
.on:    call    end_of_interrupt
        call    pass_on
        add     esp, 12                 ; As `iret` would, to the only place that is interrupted: emulators lack it.
        jmp     sleep

pass_on:
        lea     edx, [ebp + 1]
        cmp     edx, VCPUS
        jb      .send
        xor     edx, edx
.send:  mov     eax, IPI
        jmp     send_ipi

ready:  dd      0
hops:   dd      0
stacks:
