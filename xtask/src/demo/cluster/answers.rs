//! One TCP connection from a guest to another, which outlives that one's moves: what the
//! guest that asks says of it on its console (`guest-tool tcp-count`).

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::servers::Servers;
use crate::demo::running::Running;

const COME_WITHIN: Duration = Duration::from_secs(120);

pub struct Answers {
    console: Running,
    /// So many have come.
    pub count: u64,
    /// The longest since the last look, in milliseconds.
    longest: u64,
}

impl Answers {
    /// Listens to the console of the guest that asks.
    pub fn follow(servers: &Servers, vm: &str) -> Result<Answers> {
        let args = ["vm", "log", vm, "--follow"];
        let runner = servers.first();
        let console = runner.spawn(runner.quiet_basin(&args), &args)?.silent();
        Ok(Answers { console, count: 0, longest: 0 })
    }

    /// Waits for so many more than have come by now.
    pub fn wait(&mut self, more: u64) -> Result<()> {
        self.console.drain(Duration::from_millis(60))?;
        self.take()?;
        let (wanted, begin) = (self.count + more, Instant::now());
        while self.count < wanted {
            if begin.elapsed() > COME_WITHIN {
                bail!("expected answers over the connection, but none come after {}", self.count);
            }
            let goes_on = self.console.listen(Duration::from_millis(50))?;
            self.take()?;
            if !goes_on {
                bail!("expected the console to go on, but it ended after {} answers", self.count);
            }
        }
        Ok(())
    }

    /// How long the longest took since this was asked last.
    pub fn longest(&mut self) -> Result<Duration> {
        // What took long is told with the next ones.
        self.wait(20)?;
        Ok(Duration::from_millis(std::mem::take(&mut self.longest)))
    }

    fn take(&mut self) -> Result<()> {
        self.console.take_lines().lines().try_for_each(|line| self.hear(line))
    }

    fn hear(&mut self, line: &str) -> Result<()> {
        match said(line) {
            Some(Ok((count, longest))) => {
                self.count = count;
                self.longest = self.longest.max(longest);
                Ok(())
            }
            Some(Err(why)) => bail!("expected the connection to last, but the guest says: {why}"),
            None => Ok(()),
        }
    }
}

/// The number of the answer and how long the longest of the last ones took.
fn said(line: &str) -> Option<Result<(u64, u64), &str>> {
    let words = line.trim().strip_prefix("tcp-count: ")?;
    if words.starts_with("FAILED") {
        return Some(Err(words));
    }
    let mut words = words.split(' ');
    let (count, lately) = (words.next()?.parse().ok()?, words.nth(3)?.parse().ok()?);
    Some(Ok((count, lately)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guest_says_of_its_connection() {
        assert_eq!(said("tcp-count: 20 longest 73 lately 5"), Some(Ok((20, 5))));
        assert_eq!(said("tcp-count: connected"), None);
        assert_eq!(said("micro: up 3"), None);
        let failed = "FAILED number 7: the peer closed the connection";
        assert_eq!(said(&format!("tcp-count: {failed}")), Some(Err(failed)));
    }
}
