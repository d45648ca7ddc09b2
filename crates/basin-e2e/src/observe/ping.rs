//! A stream of pings, and the longest time without an answer.

use std::io::Read;
use std::net::IpAddr;
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::beats::longest;
use crate::place::Place;
use crate::process;

/// A ping every 10 ms.
#[derive(Debug)]
pub struct Pinger {
    child: Option<Child>,
}

impl Pinger {
    /// From a place's network.
    #[track_caller]
    pub fn start(from: &Place, to: IpAddr) -> Pinger {
        let mut ping = from.command("ping");
        ping.args(["-D", "-n", "-i", "0.01", &to.to_string()]).stdin(Stdio::null());
        let child = ping.stdout(Stdio::piped()).spawn().expect("run ping");
        Pinger { child: Some(child) }
    }

    /// How many were answered, and the longest time between two answers.
    #[track_caller]
    pub fn stop(mut self) -> (usize, Duration) {
        let mut child = self.child.take().expect("a ping that runs");
        // It prints the last of what it has.
        process::signal(child.id(), Signal::SIGINT);
        let mut text = String::new();
        let mut out = child.stdout.take().expect("its output");
        out.read_to_string(&mut text).expect("read what ping says");
        child.wait().expect("wait for ping");
        let answers = answers(&text);
        (answers.len(), longest(&answers).map_or(Duration::ZERO, |(_, gap)| gap))
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// When each answer came.
fn answers(text: &str) -> Vec<Duration> {
    let at = |line: &str| {
        let (time, rest) = line.strip_prefix('[')?.split_once("] ")?;
        let seconds: f64 = time.parse().ok()?;
        let answer = rest.contains("bytes from") && !rest.contains("DUP!");
        answer.then(|| Duration::from_secs_f64(seconds))
    };
    text.lines().filter_map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_answers_count() {
        let text = "PING 10.0.0.1 (10.0.0.1) 56(84) bytes of data.\n\
                    [5.000000] 64 bytes from 10.0.0.1: icmp_seq=1 ttl=64 time=0.04 ms\n\
                    [5.500000] 64 bytes from 10.0.0.1: icmp_seq=2 ttl=64 time=0.04 ms\n\
                    [5.600000] 64 bytes from 10.0.0.1: icmp_seq=2 ttl=64 time=90 ms (DUP!)\n\
                    [5.700000] From 10.0.0.9 icmp_seq=3 Destination Host Unreachable\n\
                    \n--- 10.0.0.1 ping statistics ---\n";
        assert_eq!(answers(text), [Duration::from_secs(5), Duration::from_millis(5500)]);
    }
}
