//! Pure. How far a move is, in words and as a fraction.

use std::time::Duration;

use basin_model::{Bytes, BytesPerSecond};
use basin_node::migration::types::{Copied, Report, Stage};

/// `memory: 120 MiB of 512 MiB left, writes 60 MiB/s, about 2 s`.
pub fn words(report: &Report) -> String {
    match &report.stage {
        Stage::Disks => {
            let left = left("disks", report.disks);
            let rate = rate(report.bandwidth).map(|rate| format!(", {rate}"));
            format!("{left}{}{}", rate.unwrap_or_default(), time(report.remaining_time))
        }
        Stage::Memory => {
            let writes = rate(report.dirty_rate).map(|rate| format!(", writes {rate}"));
            let slowed = match report.throttle {
                0..=1 => String::new(),
                percent => format!(", slowed down by {percent} %"),
            };
            let (left, time) = (left("memory", report.memory), time(report.remaining_time));
            format!("{left}{}{slowed}{time}", writes.unwrap_or_default())
        }
        Stage::Switching => "the guest goes over".to_owned(),
        Stage::Postcopy => {
            format!("it runs there; {}", left("its memory follows", report.memory))
        }
        Stage::PostcopyBroken => {
            "it stands still: the connection broke before all of its memory was over; connecting \
             again"
                .to_owned()
        }
        Stage::Moved { .. } => "the guest is over, and is being taken on there".to_owned(),
        Stage::Stayed { why, .. } => format!("it stays: {why}"),
        Stage::Unclear { why } => format!("asking the target what became of it: {why}"),
        Stage::SourceGone => "the machine it was to leave has ended".to_owned(),
        Stage::Unknown => "beginning".to_owned(),
    }
}

/// The same, and what the move has to do without: `...; no post-copy: why`.
pub fn with(words: String, without: &[String]) -> String {
    std::iter::once(words).chain(without.iter().cloned()).collect::<Vec<_>>().join("; ")
}

/// Of the whole that there is to copy: memory counts as copied once.
pub fn fraction(report: &Report, memory: Bytes) -> f64 {
    let there = |copied: Copied| copied.total.saturating_sub(copied.left).get() as f64;
    let all = (report.disks.total + report.memory.total.max(memory)).get() as f64;
    match report.stage {
        Stage::Switching | Stage::Postcopy | Stage::PostcopyBroken | Stage::Moved { .. } => 1.0,
        _ if all == 0.0 => 0.0,
        _ => ((there(report.disks) + there(report.memory)) / all).clamp(0.0, 1.0),
    }
}

fn left(what: &str, copied: Copied) -> String {
    match copied.total {
        Bytes::ZERO => format!("{what}: beginning"),
        total => format!("{what}: {} of {} left", short(copied.left), short(total)),
    }
}

fn rate(rate: BytesPerSecond) -> Option<String> {
    (rate.get() > 0).then(|| format!("{}/s", short(Bytes(rate.get()))))
}

fn time(left: Option<Duration>) -> String {
    match left.map(|left| left.as_secs_f64()) {
        None => String::new(),
        Some(seconds) if seconds < 1.0 => ", less than 1 s".to_owned(),
        Some(seconds) if seconds < 120.0 => format!(", about {seconds:.0} s"),
        Some(seconds) => format!(", about {:.0} min", seconds / 60.0),
    }
}

/// With as much of it as is worth reading while it changes.
fn short(bytes: Bytes) -> String {
    let bytes = bytes.get() as f64;
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut n = 0;
    let mut value = bytes;
    while value >= 1024.0 && n + 1 < units.len() {
        (value, n) = (value / 1024.0, n + 1);
    }
    let decimals = usize::from(value < 10.0 && n > 0 && value.fract() > 0.05);
    format!("{value:.decimals$} {}", units[n])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(stage: Stage) -> Report {
        Report {
            stage,
            disks: Copied { total: Bytes::gib(2), left: Bytes::mib(1536) },
            memory: Copied { total: Bytes::mib(512), left: Bytes::mib(120) },
            dirty_rate: BytesPerSecond::mib(60),
            bandwidth: BytesPerSecond::mib(110),
            remaining_time: Some(Duration::from_millis(2100)),
            throttle: 0,
            passes: 1,
        }
    }

    #[test]
    fn it_reads_well() {
        let memory = report(Stage::Memory);
        let text = "memory: 120 MiB of 512 MiB left, writes 60 MiB/s, about 2 s";
        assert_eq!(words(&memory), text);
        let disks = words(&report(Stage::Disks));
        assert_eq!(disks, "disks: 1.5 GiB of 2 GiB left, 110 MiB/s, about 2 s");
        let slowed = Report { throttle: 40, remaining_time: None, ..memory };
        assert!(words(&slowed).ends_with("writes 60 MiB/s, slowed down by 40 %"));
        let without = ["no post-copy: not there".to_owned()];
        assert_eq!(with("the guest goes over".into(), &[]), "the guest goes over");
        let short = with("the guest goes over".into(), &without);
        assert_eq!(short, "the guest goes over; no post-copy: not there");
        let early = Report { memory: Copied::default(), ..report(Stage::Memory) };
        assert!(words(&early).starts_with("memory: beginning"));
    }

    #[test]
    fn it_goes_from_nothing_to_all() {
        let begun = Report { disks: Copied::default(), ..report(Stage::Memory) };
        let part = fraction(&begun, Bytes::mib(512));
        assert!((part - 392.0 / 512.0).abs() < 1e-9, "{part}");
        assert_eq!(fraction(&report(Stage::Switching), Bytes::ZERO), 1.0);
        let none = Report { memory: Copied::default(), disks: Copied::default(), ..begun };
        assert_eq!(fraction(&none, Bytes::ZERO), 0.0);
    }
}
