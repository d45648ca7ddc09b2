//! What moves a guest from one server to the other, whoever does it.

use std::time::{Duration, Instant};

use anyhow::bail;
use basin_e2e::observe::Collector;

/// A guest, and what it does.
#[derive(Debug, Clone)]
pub struct Guest {
    pub mib: u64,
    pub load: Load,
    /// Its address, in the words of `micro.ip`.
    pub ip: String,
    /// Where its heartbeats go.
    pub heartbeat: std::net::SocketAddr,
}

/// What became of a guest that was moved to and fro.
#[derive(Debug)]
pub enum Outcome {
    Moved(Vec<Move>),
    /// A move did not come to its end in time.
    Endless,
    /// It lost pages, or its kernel stopped over that.
    Damaged(String),
}

/// How fast the guest writes to half of its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    Idle,
    MibPerSecond(u64),
    Unthrottled,
}

/// Two servers and what moves guests between them. A guest that is dropped ends.
pub trait Mover {
    /// Starts a guest on either side.
    fn start(&mut self, guest: &Guest) -> anyhow::Result<()>;

    /// Moves it to the other side, and returns when it is there and what it left is gone.
    /// `Ok(false)` when that takes too long: the guest stays where it was.
    fn migrate(&mut self, limit: Duration) -> anyhow::Result<bool>;

    /// What it said on its console so far, on both sides.
    fn said(&self) -> anyhow::Result<String>;

    fn stop(&mut self) -> anyhow::Result<()>;
}

/// One move, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Move {
    pub total: f64,
    /// The longest silence of its heartbeat.
    pub gap: f64,
}

/// The longest silence that the guest's load and the machine make without a move.
const BEFORE: usize = 400;
const AFTER: usize = 200;

impl Load {
    pub fn words(self) -> String {
        match self {
            Load::Idle => "idle".to_owned(),
            Load::MibPerSecond(rate) => format!("{rate} MiB/s"),
            Load::Unthrottled => "unthrottled".to_owned(),
        }
    }
}

impl Guest {
    /// Words for the micro guest's kernel line.
    pub fn command_line(&self) -> String {
        let mut words = format!(
            "console=ttyS0 quiet no_timer_check micro.ip={} micro.run=heartbeat,to={}",
            self.ip, self.heartbeat
        );
        let rate = match self.load {
            Load::Idle => None,
            Load::MibPerSecond(rate) => Some(rate),
            Load::Unthrottled => Some(0),
        };
        if let Some(rate) = rate {
            words += &format!(" micro.run=dirty,rate={rate},mib={}", self.mib / 2);
        }
        words
    }

    /// Moves it to and fro so many times.
    pub fn moves(
        &self,
        mover: &mut dyn Mover,
        collector: &Collector,
        runs: usize,
        limit: Duration,
    ) -> anyhow::Result<Outcome> {
        mover.start(self)?;
        self.wait_busy(mover)?;
        let mut moves = Vec::new();
        for _ in 0..runs {
            collector.wait_more(BEFORE);
            collector.forget();
            let begin = Instant::now();
            if !mover.migrate(limit)? {
                mover.stop()?;
                return Ok(Outcome::Endless);
            }
            let total = super::ms(begin.elapsed());
            collector.wait_more(AFTER);
            let report = collector.report();
            if let Some(why) = report.ran_twice {
                bail!("the guest ran twice: {why}");
            }
            let gap = super::ms(report.longest_silence);
            println!(
                "  {} MiB, {}: {gap:.0} ms silent, {total:.0} ms in all",
                self.mib,
                self.load.words()
            );
            moves.push(Move { total, gap });
            if let Some(damage) = damage(&mover.said()?) {
                mover.stop()?;
                return Ok(Outcome::Damaged(damage));
            }
        }
        mover.stop()?;
        Ok(Outcome::Moved(moves))
    }

    /// Until all of the memory that it writes to has been written.
    fn wait_busy(&self, mover: &dyn Mover) -> anyhow::Result<()> {
        let sign = if self.load == Load::Idle { "heartbeat: to" } else { "dirty: pass 2 ok" };
        let begin = Instant::now();
        while !mover.said()?.contains(sign) {
            if begin.elapsed() > basin_e2e::BOOT {
                bail!("the guest never said '{sign}': {}", mover.said()?);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

/// A guest that lost pages says so, or its kernel does.
fn damage(said: &str) -> Option<String> {
    let bad = ["FAILED", "Kernel panic", "Oops", "BUG: "];
    let at = bad.iter().find_map(|word| said.find(word))?;
    Some(said[at..].lines().next().unwrap_or_default().to_owned())
}
