//! Drives the i6300esb watchdog from user space: Debian's cloud kernel has no driver
//! for it, and the guest shall be able to stop feeding it at a chosen moment.
//!
//! The chip counts two stages down, each with its own preload in ticks of about 1 ms;
//! the end of the second fires it. Its memory registers take one write after the
//! unlocking sequence 0x80, 0x86. Source: Intel 6300ESB datasheet, chapter 16.

use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::mman::{MapFlags, ProtFlags, mmap};

use crate::Result;
use crate::args::Args;

const VENDOR: &str = "0x8086";
const DEVICE: &str = "0x25ab";
/// In the PCI configuration space.
const CONFIG: u64 = 0x60;
const LOCK: u64 = 0x68;
const LOCK_ENABLE: u8 = 1 << 1;
/// In the memory BAR.
const TIMER_1: usize = 0x00;
const TIMER_2: usize = 0x04;
const RELOAD: usize = 0x0c;
const RELOAD_NOW: u16 = 1 << 8;
const PRELOAD_MAX: u64 = 0xf_ffff;

/// Prints `watchdog: armed`, and `watchdog: starving` when `feed` seconds are over.
pub fn run(args: &mut Args) -> Result<()> {
    let seconds: u64 = args.take_or("seconds", 10)?;
    let feed: Option<u64> = args.take("feed")?;
    args.finish()?;
    // 512 ticks a second and stage: two stages make the time asked for.
    let preload = seconds.saturating_mul(512);
    if preload == 0 || preload > PRELOAD_MAX {
        return Err(format!("seconds must be 1 to {}", PRELOAD_MAX / 512));
    }
    let chip = Chip::find()?;
    chip.arm(preload as u32)?;
    println!("watchdog: armed");
    let start = Instant::now();
    while feed.is_none_or(|feed| start.elapsed() < Duration::from_secs(feed)) {
        thread::sleep(Duration::from_millis(seconds * 1000 / 4));
        chip.feed();
    }
    println!("watchdog: starving");
    Ok(())
}

struct Chip {
    config: File,
    registers: NonNull<u8>,
}

impl Chip {
    fn find() -> Result<Chip> {
        let device = find_device().ok_or("this machine has no i6300esb watchdog")?;
        let at = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
        // Switches the decoding of its memory on.
        let enable = device.join("enable");
        fs::write(&enable, "1").map_err(|error| at(&enable, error))?;
        let path = device.join("config");
        let open = |path: &Path| File::options().read(true).write(true).open(path);
        let config = open(&path).map_err(|error| at(&path, error))?;
        let path = device.join("resource0");
        let memory = open(&path).map_err(|error| at(&path, error))?;
        let length = NonZeroUsize::new(4096).ok_or("no length")?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh shared mapping of the device's registers, at an address of
        // the kernel's choice; no Rust object lives there.
        let mapped = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, &memory, 0) };
        let registers = mapped.map_err(|error| format!("{}: {error}", path.display()))?.cast();
        Ok(Chip { config, registers })
    }

    fn arm(&self, preload: u32) -> Result<()> {
        let configure = |value: &[u8], at| {
            self.config.write_all_at(value, at).map_err(|error| format!("watchdog: {error}"))
        };
        configure(&[0], LOCK)?;
        // Reset when it fires, 1 kHz, no interrupt after the first stage.
        configure(&0x0003u16.to_le_bytes(), CONFIG)?;
        for timer in [TIMER_1, TIMER_2] {
            self.unlock();
            // SAFETY: a 32-bit register inside of the mapping, aligned to 4.
            unsafe { self.register::<u32>(timer).write_volatile(preload) };
        }
        self.feed();
        configure(&[LOCK_ENABLE], LOCK)
    }

    fn feed(&self) {
        self.unlock();
        self.write_reload(RELOAD_NOW);
    }

    fn unlock(&self) {
        self.write_reload(0x80);
        self.write_reload(0x86);
    }

    fn register<T>(&self, offset: usize) -> *mut T {
        self.registers.as_ptr().wrapping_add(offset).cast()
    }

    fn write_reload(&self, value: u16) {
        // SAFETY: a 16-bit register inside of the mapping, aligned to 2.
        unsafe { self.register::<u16>(RELOAD).write_volatile(value) };
    }
}

fn find_device() -> Option<PathBuf> {
    let is = |path: &Path, name: &str, value: &str| {
        fs::read_to_string(path.join(name)).is_ok_and(|text| text.trim() == value)
    };
    let devices = fs::read_dir("/sys/bus/pci/devices").ok()?.flatten().map(|entry| entry.path());
    devices.into_iter().find(|path| is(path, "vendor", VENDOR) && is(path, "device", DEVICE))
}
