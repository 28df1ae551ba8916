// The switch between stacks: save what a call must keep, exchange the stack pointer, restore.
#ifdef __x86_64__
asm(R"(
.text
.hidden fastdl_emulation_switch
.globl fastdl_emulation_switch
.type fastdl_emulation_switch, @function
fastdl_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastdl_emulation_switch, .-fastdl_emulation_switch
)");
#endif
