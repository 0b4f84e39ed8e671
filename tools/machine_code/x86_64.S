# long run(struct clone_args *how, struct record *list)
#
# Make the system calls of a list one after the other. With `how`, do so in a child that shares the
# caller's memory; the caller is suspended until the child executes a program or ends (clone3(2)
# with CLONE_VM | CLONE_VFORK). The child does not use the stack, because it is the caller's.
#
# Return the result of clone3 with `how`, otherwise the address of the record that ended the list. A
# record has nine words: number, six arguments, mode, result. A number of -1 ends the list.

#define GO_ON 1             /* an error does not end the list */
#define STOP_IF_POSITIVE 2  /* a positive result ends it, such as clone3's in the parent */
#define FIRST_IS_RESULT 4   /* the first argument points to another record's result */
#define THIRD_IS_RESULT 8   /* the third argument does */
#define CODE 0x100          /* offsets of code and data in the file, as in linux/elf.py */
#define DATA 0x10000

run:
        push    %rbx
        push    %r12
        mov     %rsi, %rbx
        mov     %rdi, %r12
        test    %rdi, %rdi
        jz      next
        mov     $435, %eax              # clone3
        mov     $88, %esi               # sizeof(struct clone_args)
        syscall
        test    %rax, %rax
        jnz     return
next:
        cmpq    $-1, (%rbx)
        je      end
        mov     8(%rbx), %rdi
        mov     16(%rbx), %rsi
        mov     24(%rbx), %rdx
        mov     32(%rbx), %r10
        mov     40(%rbx), %r8
        mov     48(%rbx), %r9
        testb   $FIRST_IS_RESULT, 56(%rbx)
        jz      1f
        mov     (%rdi), %rdi
1:      testb   $THIRD_IS_RESULT, 56(%rbx)
        jz      2f
        mov     (%rdx), %rdx
2:      mov     (%rbx), %rax
        syscall
        mov     %rax, 64(%rbx)
        cmp     $-4095, %rax
        jae     failed
        testb   $STOP_IF_POSITIVE, 56(%rbx)
        jz      advance
        test    %rax, %rax
        jnz     end
        jmp     advance
failed:
        testb   $GO_ON, 56(%rbx)
        jz      end
advance:
        add     $72, %rbx
        jmp     next
end:
        mov     %rbx, %rax
        test    %r12, %r12
        jz      return
        mov     $127, %edi
        mov     $231, %eax              # exit_group
        syscall
return:
        pop     %r12
        pop     %rbx
        ret
run_end:

# The entry point of the spawn helper: make the calls of the list in the data segment, write the
# record that ended it to the status pipe, and exit. The data segment is a word, the descriptor of
# the status pipe, and the list (SyscallBatch.image()).
        .set    data, run + DATA - CODE
        .balign 16
helper:
        lea     data(%rip), %rbp
        lea     8(%rbp), %rsi
        xor     %edi, %edi
        call    run
        mov     (%rbp), %rdi
        mov     %rax, %rsi
        mov     $72, %edx
        mov     $1, %eax                # write
        syscall
        xor     %edi, %edi
        mov     $231, %eax              # exit_group
        syscall
helper_end:

# void hook(void): a fork handler (pthread_atfork(3)) that acts once and in one thread. The data
# segment is the thread (as pthread_self(3) returns it), the address of pthread_self, and the
# addresses of lists, up to a null pointer. A list that an error ends is the last one.
        .set    lists, run + DATA
        .balign 16
hook:
        push    %rbx
        lea     lists(%rip), %rbx
        call    *8(%rbx)
        cmp     %rax, (%rbx)
        jne     2f
        movq    $0, (%rbx)
        add     $8, %rbx
1:      add     $8, %rbx
        mov     (%rbx), %rsi
        test    %rsi, %rsi
        jz      2f
        xor     %edi, %edi
        call    run
        cmpq    $-1, (%rax)
        je      1b
2:      pop     %rbx
        ret
hook_end:

# PID 1 of a container: become not dumpable, which restricts access to /proc/1, set the command
# name, and sleep. It ignores SIGCHLD, so that the kernel reaps its children.
init:
        mov     $4, %edi                # PR_SET_DUMPABLE
        xor     %esi, %esi
        mov     $157, %eax              # prctl
        syscall
        mov     $15, %edi               # PR_SET_NAME
        lea     name(%rip), %rsi
        mov     $157, %eax
        syscall
sleep:
        mov     $34, %eax               # pause
        syscall
        jmp     sleep
name:   .asciz  "sandbox-init"
init_end:
