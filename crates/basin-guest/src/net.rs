//! Network load: a heartbeat whose gaps can be measured outside, and an echo server.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::Result;
use crate::args::Args;

/// Sends `SEQUENCE NANOSECONDS INCARNATION` as UDP datagrams. Ones that cannot be sent
/// are skipped, never repeated: the listener counts the gaps. The incarnation is of
/// this start of the command: a guest that was moved keeps it, one that was booted
/// again has another.
pub fn heartbeat(args: &mut Args) -> Result<()> {
    let to: SocketAddr = args.require("to")?;
    let period = Duration::from_millis(args.take_or("ms", 5u64)?.max(1));
    let count = args.take_or("count", u32::MAX)?;
    args.finish()?;
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).map_err(|error| format!("a UDP socket: {error}"))?;
    let incarnation = incarnation();
    println!("heartbeat: to {to}");
    let start = Instant::now();
    for beat in 1..=count {
        if let Some(early) = (period * beat).checked_sub(start.elapsed()) {
            thread::sleep(early);
        }
        let text = format!("{beat} {} {incarnation:016x}\n", start.elapsed().as_nanos());
        let _ = socket.send_to(text.as_bytes(), to);
    }
    println!("heartbeat: done");
    Ok(())
}

/// Two emulated boots may draw the same random numbers, but not at the same time.
fn incarnation() -> u64 {
    let random = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
    let hex: String = random.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    u64::from_str_radix(&hex, 16).unwrap_or(0) ^ now
}

/// Sends back what it gets, on every connection.
pub fn tcp_echo(args: &mut Args) -> Result<()> {
    let port: u16 = args.take_or("port", 7)?;
    args.finish()?;
    let listener =
        TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)));
    let listener = listener.map_err(|error| format!("port {port}: {error}"))?;
    println!("tcp-echo: port {port}");
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                thread::spawn(move || echo(stream));
            }
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn echo(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut buffer = [0; 16 * 1024];
    while let Ok(length) = stream.read(&mut buffer) {
        if length == 0 || stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}
