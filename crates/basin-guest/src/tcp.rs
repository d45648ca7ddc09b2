//! One TCP connection that must outlive whatever happens to the guest.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;
use crate::args::Args;

/// The peer's stack gives up long before; a test that waits has to see why.
const PATIENCE: Duration = Duration::from_secs(120);

/// Sends numbers and checks that the echo returns them. Prints
/// `tcp-count: N longest MS lately MS`: of all answers, and of those since the last line.
pub fn run(args: &mut Args) -> Result<()> {
    let to: SocketAddr = args.require("to")?;
    let period = Duration::from_millis(args.take_or("ms", 10u64)?);
    let every = args.take_or("every", 100u64)?.max(1);
    let count = args.take_or("count", u64::MAX)?;
    args.finish()?;
    let stream = connect(to)?;
    println!("tcp-count: connected");
    let (mut longest, mut lately) = (Duration::ZERO, Duration::ZERO);
    exchange(stream, period, count, |number, took| {
        (longest, lately) = (longest.max(took), lately.max(took));
        if number % every == 0 {
            let (all, last) = (longest.as_millis(), lately.as_millis());
            println!("tcp-count: {number} longest {all} lately {last}");
            lately = Duration::ZERO;
        }
    })?;
    println!("tcp-count: done");
    Ok(())
}

fn connect(to: SocketAddr) -> Result<TcpStream> {
    let start = Instant::now();
    let stream = loop {
        match TcpStream::connect(to) {
            Ok(stream) => break stream,
            // Its own address may have to come first, and the peer may be booting.
            Err(_) if start.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(200)),
            Err(error) => return Err(format!("{to}: {error}")),
        }
    };
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
    Ok(stream)
}

/// Tells of each number and of how long its answer took.
fn exchange(
    mut stream: TcpStream,
    period: Duration,
    count: u64,
    mut answered: impl FnMut(u64, Duration),
) -> Result<()> {
    let mut answers = BufReader::new(stream.try_clone().map_err(|error| error.to_string())?);
    let mut answer = String::new();
    for number in 1..=count {
        let sent = Instant::now();
        let broke = |error| format!("number {number}: {error}");
        stream.write_all(format!("{number}\n").as_bytes()).map_err(broke)?;
        answer.clear();
        if answers.read_line(&mut answer).map_err(broke)? == 0 {
            return Err(format!("number {number}: the peer closed the connection"));
        }
        if answer.trim() != number.to_string() {
            return Err(format!("number {number} came back as {answer:?}"));
        }
        answered(number, sent.elapsed());
        thread::sleep(period.saturating_sub(sent.elapsed()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;

    /// A peer that answers with what it makes of each line.
    fn check(peer: fn(&str) -> String, expect: Result<u64>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 64];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                let text = std::str::from_utf8(&buffer[..length]).unwrap();
                let answer = peer(text);
                if answer.is_empty() || stream.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        });
        let mut last = 0;
        let result = exchange(connect(to).unwrap(), Duration::ZERO, 5, |n, _| last = n);
        assert_eq!(result.map(|()| last), expect);
        server.join().unwrap();
    }

    #[test]
    fn numbers_have_to_come_back() {
        check(str::to_owned, Ok(5));
        check(|_| "7\n".to_owned(), Err("number 1 came back as \"7\\n\"".to_owned()));
        let close = |text: &str| if text == "3\n" { String::new() } else { text.to_owned() };
        check(close, Err("number 3: the peer closed the connection".to_owned()));
    }
}
