//! The probe's guest: its instructions and the tables it starts with.
//!
//! It enters in 64-bit kernel mode with one-to-one paging and tells how far it came by
//! writing a number to [`PORT`].

use kvm_bindings::{kvm_dtable, kvm_segment, kvm_sregs};

/// The guest's memory: everything is in the first 64 KiB of its 2 MiB.
pub const MEMORY: usize = 2 << 20;
pub const PORT: u16 = 0x80;
pub const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const IDT: u64 = 0x4000;
pub const CODE: u64 = 0x5000;
/// Where the guest writes; the last part is the XSAVE area, aligned.
pub const DATA: u64 = 0x8000;
pub const STACK: u64 = 0xf000;
/// Turns of the timed loop.
pub const TURNS: u64 = 20_000_000;
/// Exits to the host that are timed.
pub const EXITS: u64 = 2_000;

/// How far the guest came: each number is written when its part is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    Nothing = 0,
    LongMode = 1,
    CmpXchg16b = 2,
    XSave = 3,
    Int3 = 4,
    Loop = 5,
}

impl Stage {
    pub const fn from_byte(byte: u8) -> Option<Stage> {
        match byte {
            0 => Some(Stage::Nothing),
            1 => Some(Stage::LongMode),
            2 => Some(Stage::CmpXchg16b),
            3 => Some(Stage::XSave),
            4 => Some(Stage::Int3),
            5 => Some(Stage::Loop),
            _ => None,
        }
    }
}

// rsi: DATA. r8: turns. r9: exits. The handler of int3 follows `basin_probe_int3`.
std::arch::global_asm!(
    ".pushsection .rodata",
    ".balign 16",
    "basin_probe_start:",
    "mov al, 1",
    "out 0x80, al",
    // cmpxchg16b: memory holds 0:0, becomes r:r.
    "xor eax, eax",
    "xor edx, edx",
    "mov ebx, 0x1234",
    "mov ecx, 0x5678",
    "lock cmpxchg16b [rsi]",
    "jnz 9f",
    "cmp qword ptr [rsi + 8], 0x5678",
    "jne 9f",
    "mov al, 2",
    "out 0x80, al",
    // xsave and xrstor of x87 and SSE state.
    "xor ecx, ecx",
    "mov eax, 3",
    "xor edx, edx",
    "xsetbv",
    "mov eax, 3",
    "xsave [rsi + 0x1000]",
    "mov eax, 3",
    "xrstor [rsi + 0x1000]",
    "mov al, 3",
    "out 0x80, al",
    // int3: the handler sets r10.
    "xor r10d, r10d",
    "int3",
    "cmp r10d, 77",
    "jne 9f",
    "mov al, 4",
    "out 0x80, al",
    // The loop: arithmetic, a load and a store each turn.
    "mov rcx, r8",
    "2: mov rax, [rsi + 64]",
    "add rax, rcx",
    "mov [rsi + 64], rax",
    "dec rcx",
    "jnz 2b",
    "mov al, 5",
    "out 0x80, al",
    // Exits, to tell their price.
    "mov rcx, r9",
    "3: mov al, 5",
    "out 0x80, al",
    "dec rcx",
    "jnz 3b",
    "9: hlt",
    "jmp 9b",
    ".balign 16",
    "basin_probe_int3:",
    "mov r10d, 77",
    "iretq",
    "basin_probe_end:",
    ".popsection",
);

unsafe extern "C" {
    static basin_probe_start: u8;
    static basin_probe_int3: u8;
    static basin_probe_end: u8;
}

/// The instructions, and where in them the handler of int3 begins.
fn code() -> (&'static [u8], u64) {
    let start = &raw const basin_probe_start;
    let end = (&raw const basin_probe_end).addr();
    let handler = (&raw const basin_probe_int3).addr();
    let len = end - start.addr();
    // SAFETY: the assembler put the bytes from start to end in one read-only section.
    let bytes = unsafe { std::slice::from_raw_parts(start, len) };
    (bytes, (handler - start.addr()) as u64)
}

/// Fills the guest's memory.
pub fn fill(memory: &mut [u8]) {
    let mut put = |at: u64, bytes: &[u8]| {
        let at = at as usize;
        memory[at..at + bytes.len()].copy_from_slice(bytes);
    };
    let (code, handler) = code();
    put(CODE, code);
    // Present, writable; the last one a page of 2 MiB at 0.
    put(PML4, &(PDPT | 3).to_le_bytes());
    put(PDPT, &(PD | 3).to_le_bytes());
    put(PD, &0x83_u64.to_le_bytes());
    // A 64-bit interrupt gate for vector 3 in code segment 8.
    let to = CODE + handler;
    let gate = (to & 0xffff) | (8 << 16) | (0x8e00 << 32) | ((to >> 16 & 0xffff) << 48);
    put(IDT + 3 * 16, &gate.to_le_bytes());
    put(IDT + 3 * 16 + 8, &(to >> 32).to_le_bytes());
    // A table for iretq, which loads the segments anew: null, code, data.
    put(GDT, &0_u64.to_le_bytes());
    put(GDT + 8, &0x00af_9b00_0000_ffff_u64.to_le_bytes());
    put(GDT + 16, &0x00cf_9300_0000_ffff_u64.to_le_bytes());
}

const GDT: u64 = 0x7000;

/// The registers of a vCPU in 64-bit kernel mode.
pub fn set_mode(sregs: &mut kvm_sregs) {
    let segment = |selector: u16, type_: u8, l: u8| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: 1 - l,
        s: 1,
        l,
        g: 1,
        ..kvm_segment::default()
    };
    sregs.cs = segment(8, 11, 1);
    let data = segment(16, 3, 0);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt = kvm_dtable { base: GDT, limit: 23, ..kvm_dtable::default() };
    sregs.idt = kvm_dtable { base: IDT, limit: 4095, ..kvm_dtable::default() };
    // Paging, write protection, numeric errors, protected mode.
    sregs.cr0 = 0x8001_0033;
    sregs.cr3 = PML4;
    // PAE, SSE, XSAVE.
    sregs.cr4 = 0x0004_0620;
    // Long mode, enabled and active.
    sregs.efer = 0x500;
}
