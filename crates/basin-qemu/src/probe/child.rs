//! Runs the probe's guest in a child process.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};

use super::guest::{self, Stage};
use super::verdict::{End, Outcome};

/// Forks, runs, and tells what came of it within `limit`.
pub fn run(limit: Duration) -> io::Result<Outcome> {
    let native = native_loop();
    let (read, write) = pipe()?;
    // SAFETY: the child uses what it makes itself, allocates through a C library that
    // allows it after a fork, and leaves by _exit.
    let pid = unsafe { libc::fork() };
    if pid == -1 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        drop(read);
        // Its parent may die before it.
        // SAFETY: integers only.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        let mut report = Report { pipe: write };
        let end = match attempt(&mut report) {
            Ok(end) => end,
            Err(error) => End::Refused(error.errno()),
        };
        report.end(end);
        // SAFETY: no pointers; nothing of the parent's is run.
        unsafe { libc::_exit(0) };
    }
    drop(write);
    let mut outcome = Outcome { native, ..Outcome::default() };
    listen(&read, limit, &mut outcome)?;
    // SAFETY: the child is ours and not yet waited for.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    // A vCPU stuck in the kernel may not die; then its corpse is somebody else's.
    bury(pid);
    Ok(outcome)
}

fn bury(pid: libc::pid_t) {
    std::thread::spawn(move || {
        // SAFETY: waits for our own child; no status wanted.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) }
    });
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    // SAFETY: an array of two that outlives the call.
    if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made it for us alone.
    let read = unsafe { OwnedFd::from_raw_fd(fds[0]) };
    // SAFETY: as above.
    let write = unsafe { OwnedFd::from_raw_fd(fds[1]) };
    Ok((read, write))
}

/// The timed loop on this CPU without a guest, to compare with.
fn native_loop() -> Duration {
    let mut cell = 0_u64;
    let started = Instant::now();
    // SAFETY: reads and writes one local variable, and two registers that it declares.
    unsafe {
        std::arch::asm!(
            "2: mov {sum}, [{cell}]",
            "add {sum}, {turns}",
            "mov [{cell}], {sum}",
            "dec {turns}",
            "jnz 2b",
            turns = inout(reg) guest::TURNS => _,
            cell = in(reg) &raw mut cell,
            sum = out(reg) _,
            options(nostack),
        );
    }
    started.elapsed()
}

/// Ten bytes for each thing that happened: what, a value, nanoseconds.
struct Report {
    pipe: OwnedFd,
}

const STAGE: u8 = 0;
const EXITS: u8 = 1;
const END: u8 = 2;

impl Report {
    fn send(&mut self, what: u8, value: u8, number: u64) {
        let mut message = [0; 10];
        message[0] = what;
        message[1] = value;
        message[2..].copy_from_slice(&number.to_le_bytes());
        // SAFETY: a buffer of that length; fewer bytes than a pipe takes at once.
        unsafe { libc::write(self.pipe.as_raw_fd(), message.as_ptr().cast(), message.len()) };
    }

    fn end(&mut self, end: End) {
        let (value, number) = match end {
            End::Hung => (0, 0),
            End::Halted => (1, 0),
            End::Refused(errno) => (2, u64::from(errno.unsigned_abs())),
            End::Stopped(reason) => (3, u64::from(reason)),
        };
        self.send(END, value, number);
    }
}

fn attempt(report: &mut Report) -> Result<End, kvm_ioctls::Error> {
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    let memory = map(guest::MEMORY).ok_or_else(kvm_ioctls::Error::last)?;
    guest::fill(memory);
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: guest::MEMORY as u64,
        userspace_addr: memory.as_ptr().addr() as u64,
    };
    // SAFETY: the mapping lives until this process ends.
    unsafe { vm.set_user_memory_region(region)? };
    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    let mut sregs = vcpu.get_sregs()?;
    guest::set_mode(&mut sregs);
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    regs.rip = guest::CODE;
    regs.rsp = guest::STACK;
    regs.rsi = guest::DATA;
    regs.r8 = guest::TURNS;
    regs.r9 = guest::EXITS;
    regs.rflags = 2;
    vcpu.set_regs(&regs)?;
    run_vcpu(&mut vcpu, report)
}

fn run_vcpu(vcpu: &mut VcpuFd, report: &mut Report) -> Result<End, kvm_ioctls::Error> {
    let mut since = Instant::now();
    let mut exits = 0;
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(guest::PORT, [stage])) => {
                if exits == 0 {
                    report.send(STAGE, *stage, nanos(since));
                    since = Instant::now();
                }
                if *stage == Stage::Loop as u8 {
                    exits += 1;
                }
            }
            Ok(VcpuExit::Hlt) => {
                if exits > 1 {
                    report.send(EXITS, 0, nanos(since) / (exits - 1));
                }
                return Ok(End::Halted);
            }
            Ok(VcpuExit::Shutdown) => return Ok(End::Stopped(8)),
            Ok(VcpuExit::FailEntry(_, _)) => return Ok(End::Stopped(9)),
            Ok(VcpuExit::InternalError) => return Ok(End::Stopped(17)),
            Ok(_) => return Ok(End::Stopped(0)),
            Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => {}
            Err(error) => return Err(error),
        }
    }
}

fn nanos(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn map(len: usize) -> Option<&'static mut [u8]> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a fresh mapping, wherever the kernel likes.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, access, kind, -1, 0) };
    if at == libc::MAP_FAILED {
        return None;
    }
    // SAFETY: just mapped, zeroed, that long, known to nobody else, never unmapped.
    Some(unsafe { std::slice::from_raw_parts_mut(at.cast(), len) })
}

/// Collects what the child tells until its end, its death or the limit.
fn listen(pipe: &OwnedFd, limit: Duration, outcome: &mut Outcome) -> io::Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut poll = libc::pollfd { fd: pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one valid element.
        match unsafe { libc::poll(&mut poll, 1, millis) } {
            0 => return Ok(()),
            -1 => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error => return Err(error),
            },
            _ => {}
        }
        let mut message = [0_u8; 10];
        // SAFETY: a buffer of that length. Writes of ten bytes arrive whole.
        let got = unsafe { libc::read(pipe.as_raw_fd(), message.as_mut_ptr().cast(), 10) };
        if got != 10 {
            return Ok(());
        }
        let mut number = [0; 8];
        number.copy_from_slice(&message[2..]);
        let number = u64::from_le_bytes(number);
        match message[0] {
            STAGE => {
                outcome.reached = Stage::from_byte(message[1]).unwrap_or(Stage::Nothing);
                if outcome.reached == Stage::Loop {
                    outcome.guest = Duration::from_nanos(number);
                }
            }
            EXITS => outcome.exit = Duration::from_nanos(number),
            _ => {
                let small = u32::try_from(number).unwrap_or(0);
                outcome.end = match message[1] {
                    1 => End::Halted,
                    2 => End::Refused(i32::try_from(small).unwrap_or(0)),
                    _ => End::Stopped(small),
                };
                return Ok(());
            }
        }
    }
}
