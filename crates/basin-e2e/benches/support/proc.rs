//! What a process uses.

use std::time::Duration;

use anyhow::Context;

/// Resident memory in KiB, all of it and the part that it shares with others.
#[derive(Debug, Clone, Copy)]
pub struct Resident {
    pub all: u64,
    /// Guests' memory that blockd maps, for one.
    pub shared: u64,
}

pub fn resident(pid: u32) -> anyhow::Result<Resident> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let field = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        let kib = line.and_then(|l| l.trim().strip_suffix(" kB")?.parse().ok());
        kib.with_context(|| format!("{path} has no {name}"))
    };
    Ok(Resident { all: field("VmRSS")?, shared: field("RssShmem")? })
}

/// Time on a processor that the process has used so far, by all its threads.
pub fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    // The name may hold anything; the last parenthesis closes it.
    let (_, rest) = text.rsplit_once(')').with_context(|| path.clone())?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let (user, system) = (ticks().context("utime")?, ticks().context("stime")?);
    // SAFETY: sysconf has no memory effects.
    let hertz = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) })?;
    Ok(Duration::from_micros((user + system) * 1_000_000 / hertz.max(1)))
}

/// The share of one processor, in percent, that each process uses within `time`.
pub fn load(pids: &[u32], time: Duration) -> anyhow::Result<Vec<f64>> {
    let all = || pids.iter().map(|&pid| cpu(pid)).collect::<anyhow::Result<Vec<_>>>();
    let before = all()?;
    std::thread::sleep(time);
    let used = all()?.into_iter().zip(before).map(|(after, before)| after - before);
    Ok(used.map(|used| used.as_secs_f64() / time.as_secs_f64() * 100.0).collect())
}
