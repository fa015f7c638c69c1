# Process 1 of a sandbox (see program.py, which has the bytes of this, and tables.py). It is started
# with its channel as descriptor 3 and a signalfd(2) of SIGCHLD and others, all blocked, as 4.
#
#   for ever: wait for one of the two
#     a signal: pass it on to the main process, if there is one; reap, and say of each command that
#       has ended its status and what it used; end with the main process
#     a message: make its calls, answer with what each gave, close the descriptors that came along
#     the end of the channel: end, unless there is a main process
#
# A clone in a table is a child that shares this memory and has no stack of its own to speak of: it
# goes on with the same loop, up to TAIL, and mostly executes a program there. This process waits
# for that (CLONE_VFORK), and goes on with the rows from TAIL.
#
# Registers: r14 memory; rbx row; r13 its number; r12 the number to stop at; rbp marks; r15 child?
    .intel_syntax noprefix
    .set CONTROL, 0x0        # what recvmsg(2) writes of descriptors: a header of 16 bytes,
    .set GIVEN, 0x10         # then the descriptors
    .set POLLED, 0x140       # two struct pollfd: the channel, signals
    .set MESSAGE, 0x160      # struct msghdr
    .set VECTOR, 0x1a0       # its struct iovec
    .set SIGNAL, 0x200       # struct signalfd_siginfo
    .set STATUS, 0x280       # of a child that has ended,
    .set USED, 0x288         # and its struct rusage
    .set MAIN, 0x340         # the pid of the main process, 0 for none
    .set KEPT, 0x348         # 1: the first one of GIVEN belongs to a command
    .set CODE, 0x34c         # the exit status of a child whose calls are over
    .set SILENT, 0x350       # 1: nothing is answered where the child has its program
    .set FAILED, 0x351       # 1: it has none
    .set RUNNING, 0x800      # pid and channel of each command
    .set RUNNING_END, 0x1000
    .set RESULTS, 0x1000
    .set BUFFER, 0x10000     # the message: four numbers of 32 bits
    .set COUNT, 0x10000      # - of rows
    .set TAIL, 0x10004       # - the row with which the parent goes on after a clone
    .set PLACE, 0x10008      # - where the rows are in the message
    .set REPLY, 0x1000c      # - the descriptor that gets the results; below 0: ~which of GIVEN
start:
    mov r14, 0x1000000000
    mov eax, 28              # madvise: no huge page for the few that are used
    mov rdi, r14
    mov esi, 0x800000
    mov edx, 15              # MADV_NOHUGEPAGE
    syscall
    mov dword ptr [r14 + POLLED], 3
    mov dword ptr [r14 + POLLED + 8], 4
    mov byte ptr [r14 + POLLED + 4], 1
    mov byte ptr [r14 + POLLED + 12], 1
    lea rax, [r14 + VECTOR]
    mov [r14 + MESSAGE + 16], rax
    mov byte ptr [r14 + MESSAGE + 24], 1
    mov [r14 + MESSAGE + 32], r14
    lea rax, [r14 + BUFFER]
    mov [r14 + VECTOR], rax
    mov dword ptr [r14 + VECTOR + 8], 0x100000
wait:
    mov eax, 7               # poll
    lea rdi, [r14 + POLLED]
    mov esi, 2
    mov rdx, -1
    syscall
    cmp word ptr [r14 + POLLED + 14], 0
    je told
    xor eax, eax             # read
    mov edi, 4
    lea rsi, [r14 + SIGNAL]
    mov edx, 128
    syscall
    mov esi, [r14 + SIGNAL]
    mov edi, [r14 + MAIN]
    cmp esi, 17              # SIGCHLD
    je reap
    test edi, edi
    jz reap
    mov eax, 62              # kill
    syscall
reap:
    mov eax, 61              # wait4
    mov rdi, -1
    lea rsi, [r14 + STATUS]
    mov edx, 1               # WNOHANG
    lea r10, [r14 + USED]
    syscall
    test eax, eax
    jle told
    cmp eax, [r14 + MAIN]
    je ended
    lea rbx, [r14 + RUNNING]
1:  cmp eax, [rbx]
    je 2f
    add rbx, 8
    lea rcx, [r14 + RUNNING_END]
    cmp rbx, rcx
    jb 1b
    jmp reap                 # an orphan
2:  mov edi, [rbx + 4]
    mov qword ptr [rbx], 0
    mov ebx, edi
    lea rsi, [r14 + STATUS]
    mov edx, 40
    call say
    mov edi, ebx
    mov eax, 3               # close
    syscall
    jmp reap
ended:
    mov edi, [r14 + STATUS]
    mov eax, edi
    shr edi, 8
    and eax, 127
    jz exit
    lea edi, [rax + 128]
exit:
    mov eax, 231             # exit_group
    syscall
told:
    cmp word ptr [r14 + POLLED + 6], 0
    je wait
    mov dword ptr [r14 + MESSAGE + 40], 0x110
    mov eax, 47              # recvmsg
    mov edi, 3
    lea rsi, [r14 + MESSAGE]
    mov edx, 0x40000000      # MSG_CMSG_CLOEXEC
    syscall
    mov edi, 1
    test byte ptr [r14 + MESSAGE + 48], 8  # MSG_CTRUNC: no descriptor is free here, and those
    jnz exit                 # of another message would be taken for the ones of this
    test rax, rax
    jg begin
    xor edi, edi
    cmp edi, [r14 + MAIN]
    je exit
    mov dword ptr [r14 + POLLED], -1
    mov dword ptr [r14 + POLLED + 4], 1
    jmp wait
begin:
    mov r12d, [r14 + COUNT]  # the row to stop at
    lea rdi, [r14 + RESULTS]
    mov ecx, r12d
    mov rax, 0x4000000000000000
    rep stosq
    and dword ptr [r14 + KEPT], 0
    and word ptr [r14 + SILENT], 0
    xor r13d, r13d           # which row
    xor r15d, r15d           # 1 in a child
jump:
    imul rbx, r13, 56
    mov eax, [r14 + PLACE]
    add rbx, rax
    lea rbx, [r14 + rbx + BUFFER]
next:
    cmp r13d, r12d
    jae over
    mov ebp, [rbx + 4]
    mov rdi, [rbx + 8]
    mov rsi, [rbx + 16]
    mov rdx, [rbx + 24]
    mov r10, [rbx + 32]
    mov r8, [rbx + 40]
    mov r9, [rbx + 48]
    test ebp, 1
    jz 1f
    movsxd rdi, dword ptr [rdi]
1:  test ebp, 2
    jz 1f
    movsxd rsi, dword ptr [rsi]
1:  test ebp, 4
    jz 1f
    movsxd rdx, dword ptr [rdx]
1:  test ebp, 8
    jz 1f
    movsxd r10, dword ptr [r10]
1:  test ebp, 16
    jz 1f
    movsxd r8, dword ptr [r8]
1:  mov eax, [rbx]
    syscall
    mov [r14 + r13 * 8 + RESULTS], rax
    test rax, rax
    js failed
    test ebp, 512            # a clone?
    jz step
    test eax, eax
    jnz parent
    inc r15d
    mov r12d, [r14 + TAIL]
    mov dword ptr [r14 + CODE], 127
step:
    inc r13d
    add rbx, 56
    jmp next
failed:
    test ebp, 512            # no child: what is undone after one is undone
    jnz tail
    test ebp, 256            # go on?
    jz over
    cmp eax, -2              # ENOENT
    je step
    cmp eax, -20             # ENOTDIR
    je step
    mov dword ptr [r14 + CODE], 126
    jmp step
parent:
    lea rcx, [r14 + RUNNING]
1:  cmp dword ptr [rcx], 0
    je 2f
    add rcx, 8
    jmp 1b
2:  mov [rcx], eax
    mov edx, [r14 + GIVEN]
    mov [rcx + 4], edx
    inc dword ptr [r14 + KEPT]
    test ebp, 2048           # a silent one?
    setnz byte ptr [r14 + SILENT]
    test ebp, 1024           # the main process?
    jz 1f
    mov [r14 + MAIN], eax
tail:
1:  mov r13d, [r14 + TAIL]
    jmp jump
over:
    test r15d, r15d
    jz 1f
    mov byte ptr [r14 + FAILED], 1
    mov edi, [r14 + CODE]
    jmp exit
1:  cmp word ptr [r14 + SILENT], 1
    je close                 # silent, and it has not failed
    mov edi, [r14 + REPLY]
    test edi, edi
    jns 1f
    not edi
    mov edi, [r14 + rdi * 4 + GIVEN]
1:  lea rsi, [r14 + RESULTS]
    mov edx, [r14 + COUNT]
    shl edx, 3
    call say
close:
    cmp dword ptr [r14 + MESSAGE + 40], 16
    jbe wait                 # none came along
    mov rbp, [r14 + CONTROL]
    sub ebp, 16
    shr ebp, 2               # so many descriptors
    mov ebx, [r14 + KEPT]
1:  cmp ebx, ebp
    jae wait
    mov edi, [r14 + rbx * 4 + GIVEN]
    mov eax, 3               # close
    syscall
    inc ebx
    jmp 1b
say:
    mov eax, 44              # sendto
    mov r10d, 0x4040         # MSG_NOSIGNAL, MSG_DONTWAIT
    xor r8d, r8d
    xor r9d, r9d
    syscall
    ret
