//! A guest of some hundred bytes that does on command what guests do.
//!
//! It is an ELF file with a PVH entry, which QEMU boots on q35 and microvm alike. It says
//! `G`, then obeys single letters from the serial line and echoes any other. On `d` it
//! writes to 8 MiB of its memory as fast as it can, checks what it wrote in the pass before,
//! and says `d` now and then, until a letter comes. It says `!` and stops when its memory
//! does not hold what it wrote. Nothing interrupts it: no write of its is noticed by chance.

/// Writes, and checks, as fast as it can.
pub const DIRTY: &[u8] = b"d";

/// Letters the guest obeys. Where the machine types differ, `q35` comes first.
pub mod says {
    pub const POWER_OFF: [&[u8]; 2] = [b"p", b"o"];
    pub const REBOOT: [&[u8]; 2] = [b"r", b"t"];
    pub const PANIC: [&[u8]; 2] = [b"P", b"N"];
    pub const WATCHDOG: [&[u8]; 2] = [b"w", b"W"];
}

std::arch::global_asm!(
    ".pushsection .rodata",
    ".code32",
    "guest_start:",
    "cli",
    "mov al, 71", // G
    "call 90f",
    "1: mov dx, 0x3fd",
    "2: in al, dx",
    "test al, 1",
    "jz 2b",
    "mov dx, 0x3f8",
    "in al, dx",
    "cmp al, 112", // p: ACPI's sleep register of q35
    "jne 3f",
    "mov dx, 0x604",
    "mov ax, 0x2000",
    "out dx, ax",
    "3: cmp al, 111", // o: the same of microvm
    "jne 3f",
    "mov ebx, 0xfea00200",
    "mov byte ptr [ebx], 0x34",
    "3: cmp al, 114", // r: the reset register of q35
    "jne 3f",
    "mov dx, 0xcf9",
    "mov al, 6",
    "out dx, al",
    "3: cmp al, 116", // t: a triple fault
    "jne 3f",
    "mov dword ptr [esp - 8], 0",
    "mov dword ptr [esp - 4], 0",
    "lidt [esp - 8]",
    "int3",
    "3: cmp al, 80", // P: pvpanic on PCI, device 1, function 3
    "jne 3f",
    "mov eax, 0x80000b10",
    "call 91f",
    "mov byte ptr [ebx], 1",
    "jmp 1b",
    "3: cmp al, 78", // N: pvpanic on ISA
    "jne 3f",
    "mov dx, 0x505",
    "mov al, 1",
    "out dx, al",
    "jmp 1b",
    "3: cmp al, 87", // W: the watchdog on ISA, no time left
    "jne 3f",
    "mov dx, 0x443",
    "mov al, 15",
    "out dx, al",
    "jmp 1b",
    "3: cmp al, 119", // w: the watchdog on PCI, device 1, function 4
    "jne 3f",
    "mov eax, 0x80000c10",
    "call 91f",
    "mov ecx, 0",
    "4: mov byte ptr [ebx + 12], 0x80",
    "mov byte ptr [ebx + 12], 0x86",
    "mov dword ptr [ebx + ecx], 16", // milliseconds
    "add ecx, 4",
    "cmp ecx, 8",
    "jne 4b",
    "mov eax, 0x80000c68",
    "mov dx, 0xcf8",
    "out dx, eax",
    "mov dx, 0xcfc",
    "mov al, 2", // on
    "out dx, al",
    "jmp 1b",
    "3: cmp al, 100", // d
    "jne 3f",
    "xor ebx, ebx",
    "5: mov edi, 0x1000000",
    "6: test ebx, ebx",
    "jz 7f",
    "mov ecx, edi",
    "xor ecx, ebx",
    "cmp ecx, dword ptr [edi]",
    "jne 8f",
    "7: lea ecx, [ebx + 1]",
    "xor ecx, edi",
    "mov dword ptr [edi], ecx",
    "add edi, 64",
    "cmp edi, 0x1800000",
    "jne 6b",
    "inc ebx",
    "test bl, 63",
    "jnz 9f",
    "mov al, 100",
    "call 90f",
    "9: mov dx, 0x3fd",
    "in al, dx",
    "test al, 1",
    "jz 5b",
    "jmp 1b",
    "8: mov al, 33",
    "call 90f",
    "4: jmp 4b",
    "3: call 90f",
    "jmp 1b",
    "90: mov dx, 0x3f8", // writes al
    "out dx, al",
    "ret",
    "91: mov dx, 0xcf8", // reads the PCI register eax into ebx
    "out dx, eax",
    "mov dx, 0xcfc",
    "in eax, dx",
    "and eax, 0xfffffff0",
    "mov ebx, eax",
    "ret",
    "guest_end:",
    ".code64",
    ".popsection",
);

unsafe extern "C" {
    static guest_start: u8;
    static guest_end: u8;
}

/// The ELF file.
pub fn elf() -> Vec<u8> {
    let start = &raw const guest_start;
    let len = (&raw const guest_end).addr() - start.addr();
    // SAFETY: the assembler put the bytes from start to end in one read-only section.
    let code = unsafe { std::slice::from_raw_parts(start, len) };
    const LOAD: u64 = 0x10_0000;
    const HEADERS: u64 = 64 + 2 * 56;
    let note_at = HEADERS;
    let code_at = 0x100;
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    let u16s = |file: &mut Vec<u8>, values: &[u16]| {
        values.iter().for_each(|value| file.extend(value.to_le_bytes()));
    };
    let u32s = |file: &mut Vec<u8>, values: &[u32]| {
        values.iter().for_each(|value| file.extend(value.to_le_bytes()));
    };
    let u64s = |file: &mut Vec<u8>, values: &[u64]| {
        values.iter().for_each(|value| file.extend(value.to_le_bytes()));
    };
    u16s(&mut file, &[2, 62]); // an executable for x86-64
    u32s(&mut file, &[1]);
    u64s(&mut file, &[LOAD, 64, 0]);
    u32s(&mut file, &[0]);
    u16s(&mut file, &[64, 56, 2, 0, 0, 0]);
    u32s(&mut file, &[1, 7]); // load it all
    let code_len = len as u64;
    u64s(&mut file, &[code_at, LOAD, LOAD, code_len, code_len + 4096, 16]);
    u32s(&mut file, &[4, 4]); // the note
    u64s(&mut file, &[note_at, 0, 0, 20, 20, 4]);
    u32s(&mut file, &[4, 4, 18]); // XEN_ELFNOTE_PHYS32_ENTRY
    file.extend(b"Xen\0");
    u32s(&mut file, &[LOAD as u32]);
    file.resize(code_at as usize, 0);
    file.extend(code);
    file
}
