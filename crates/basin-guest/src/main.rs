//! `guest-tool`: what test guests run to make load that can be checked afterwards.
//!
//! Every command takes `key=value` arguments, so that the micro guest can pass them
//! on from its kernel command line (`micro.run=COMMAND,key=value`). What a command
//! prints is a contract with the tests: see `docs/guest-images.md`.

mod after;
mod args;
mod check;
mod dirty;
mod disk;
mod net;
mod power_button;
mod record;
mod tcp;
mod ticks;
mod watchdog;

use std::process::ExitCode;

use args::Args;

type Result<T> = std::result::Result<T, String>;

const USAGE: &str = "usage: guest-tool COMMAND [key=value]...

disk-write    dev=PATH [start=BLOCK] [blocks=N] [seed=N] [count=N] [every=N] [resume=yes]
disk-check    dev=PATH [start=BLOCK] [blocks=N] [seed=N] [acked=N]
dirty         [rate=MIB_PER_SECOND] [mib=N] [hot=N] [passes=N]
ticks         [ms=N] [count=N]
heartbeat     to=ADDRESS:PORT [ms=N] [count=N]
tcp-echo      [port=N]
tcp-count     to=ADDRESS:PORT [ms=N] [every=N] [count=N]
watchdog      [seconds=N] [feed=SECONDS]
after         [seconds=N] do=panic|reboot|poweroff|hang
power-button  [do=poweroff|ignore]";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let Some(command) = words.next() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match Args::parse(words).and_then(|args| run(&command, args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{command}: FAILED {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &str, mut args: Args) -> Result<()> {
    match command {
        "disk-write" => disk::write(&mut args),
        "disk-check" => disk::check(&mut args),
        "dirty" => dirty::run(&mut args),
        "ticks" => ticks::run(&mut args),
        "heartbeat" => net::heartbeat(&mut args),
        "tcp-echo" => net::tcp_echo(&mut args),
        "tcp-count" => tcp::run(&mut args),
        "watchdog" => watchdog::run(&mut args),
        "after" => after::run(&mut args),
        "power-button" => power_button::run(&mut args),
        other => Err(format!("no such command: {other}\n{USAGE}")),
    }
}
