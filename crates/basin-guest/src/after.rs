//! Ends the guest in a chosen way after some time.

use std::fs;
use std::thread;
use std::time::Duration;

use nix::sys::reboot::{RebootMode, reboot};

use crate::Result;
use crate::args::Args;

#[derive(Clone, Copy)]
enum End {
    Panic,
    Reboot,
    PowerOff,
    Hang,
}

/// Prints `after: WHAT` right before it happens.
pub fn run(args: &mut Args) -> Result<()> {
    let seconds = args.take_or("seconds", 0u64)?;
    let name: String = args.require("do")?;
    args.finish()?;
    let end = match name.as_str() {
        "panic" => End::Panic,
        "reboot" => End::Reboot,
        "poweroff" => End::PowerOff,
        "hang" => End::Hang,
        other => return Err(format!("do={other}: it is panic, reboot, poweroff or hang")),
    };
    thread::sleep(Duration::from_secs(seconds));
    println!("after: {name}");
    match end {
        End::Panic => sysrq("c"),
        End::Reboot => power(RebootMode::RB_AUTOBOOT),
        End::PowerOff => power(RebootMode::RB_POWER_OFF),
        End::Hang => hang(),
    }
}

/// Acknowledged writes are on the disk; what is not yet must be, as on any orderly end.
pub fn power(mode: RebootMode) -> Result<()> {
    nix::unistd::sync();
    match reboot(mode) {
        Ok(never) => match never {},
        Err(error) => Err(format!("reboot: {error}")),
    }
}

fn sysrq(key: &str) -> Result<()> {
    fs::write("/proc/sys/kernel/sysrq", "1").map_err(|error| format!("sysrq: {error}"))?;
    fs::write("/proc/sysrq-trigger", key).map_err(|error| format!("sysrq: {error}"))
}

/// One spinning real-time thread a CPU: nothing else of the guest runs any more.
fn hang() -> Result<()> {
    fs::write("/proc/sys/kernel/sched_rt_runtime_us", "-1").map_err(|error| error.to_string())?;
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    for _ in 1..cpus {
        thread::spawn(spin);
    }
    spin()
}

fn spin() -> Result<()> {
    let priority = libc::sched_param { sched_priority: 99 };
    // SAFETY: 0 is the calling thread, the parameter outlives the call.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &priority) } != 0 {
        return Err(format!("sched_setscheduler: {}", std::io::Error::last_os_error()));
    }
    loop {
        std::hint::spin_loop();
    }
}
