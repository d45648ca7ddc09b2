//! Waits for the ACPI power button and shuts the guest down.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::reboot::RebootMode;

use crate::Result;
use crate::after::power;
use crate::args::Args;

const EVENT_SIZE: usize = size_of::<libc::input_event>();
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;

/// Prints `power-button: pressed` each time; `do=ignore` leaves it at that.
pub fn run(args: &mut Args) -> Result<()> {
    let ignore = match args.take_or("do", "poweroff".to_owned())?.as_str() {
        "poweroff" => false,
        "ignore" => true,
        other => return Err(format!("do={other}: it is poweroff or ignore")),
    };
    args.finish()?;
    let mut inputs = open_inputs()?;
    if inputs.is_empty() {
        return Err("there is no input device".to_owned());
    }
    println!("power-button: waiting");
    loop {
        let mut polled: Vec<PollFd<'_>> =
            inputs.iter().map(|input| PollFd::new(input.as_fd(), PollFlags::POLLIN)).collect();
        poll(&mut polled, PollTimeout::NONE).map_err(|error| format!("poll: {error}"))?;
        for input in &mut inputs {
            if pressed(input) {
                println!("power-button: pressed");
                if !ignore {
                    return power(RebootMode::RB_POWER_OFF);
                }
            }
        }
    }
}

fn open_inputs() -> Result<Vec<File>> {
    let entries = fs::read_dir("/dev/input").map_err(|error| format!("/dev/input: {error}"))?;
    Ok(entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("event"))
        .filter_map(|entry| {
            File::options().read(true).custom_flags(libc::O_NONBLOCK).open(entry.path()).ok()
        })
        .collect())
}

fn pressed(input: &mut File) -> bool {
    let mut buffer = [0; EVENT_SIZE * 16];
    let length = input.read(&mut buffer).unwrap_or(0);
    buffer[..length].chunks_exact(EVENT_SIZE).any(is_power_key_down)
}

/// The kernel's `input_event`: a timestamp, then type, code and value.
fn is_power_key_down(event: &[u8]) -> bool {
    let tail = &event[EVENT_SIZE - 8..];
    u16::from_ne_bytes([tail[0], tail[1]]) == EV_KEY
        && u16::from_ne_bytes([tail[2], tail[3]]) == KEY_POWER
        && i32::from_ne_bytes([tail[4], tail[5], tail[6], tail[7]]) == 1
}
