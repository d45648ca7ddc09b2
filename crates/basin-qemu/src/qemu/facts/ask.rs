//! Runs a QEMU without a machine, only to answer questions.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;

use super::Ask;
use crate::qemu::process;

/// The user that owns nothing.
const NOBODY: u32 = 65534;

const SCRIPT: &str = "\
{\"execute\":\"qmp_capabilities\"}
{\"execute\":\"query-cpu-definitions\",\"id\":\"cpus\"}
{\"execute\":\"query-machines\",\"id\":\"machines\"}
{\"execute\":\"quit\"}
";

/// The monitor's lines.
pub fn qemu(ask: &Ask<'_>) -> Result<String, String> {
    let shown = ask.program.display();
    let accelerator = ask.accelerator.as_str();
    let mut command = Command::new(ask.program);
    command.args(["-machine", "none", "-accel", accelerator, "-nodefaults", "-no-user-config"]);
    command.args(["-display", "none", "-S", "-qmp", "stdio"]);
    command.args(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny"]);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if nix::unistd::geteuid().is_root() {
        command.uid(NOBODY).gid(ask.kvm_group.unwrap_or(NOBODY));
    }
    let mut child = command.spawn().map_err(|error| format!("{shown} cannot be run: {error}"))?;
    let answers = talk(&mut child, ask.limit);
    // Ended or not, it is not needed any more.
    let _ = child.kill();
    let status = child.wait().map_err(|error| format!("{shown}: {error}"))?;
    let (answers, words) = answers.map_err(|why| format!("{shown}: {why}"))?;
    match words.trim() {
        words if !status.success() && !words.is_empty() => Err(format!("{shown}: {words}")),
        _ => Ok(answers),
    }
}

/// What it answers, and its words of complaint.
fn talk(child: &mut Child, limit: Duration) -> Result<(String, String), String> {
    let text = |error: std::io::Error| error.to_string();
    let (input, output, words) =
        match (child.stdin.take(), child.stdout.take(), child.stderr.take()) {
            (Some(input), Some(output), Some(words)) => (input, output, words),
            _ => return Err("it has no standard streams".to_owned()),
        };
    // Far less than a pipe holds; one that has ended already is heard by its words.
    let mut input = input;
    let _ = input.write_all(SCRIPT.as_bytes());
    // A reader of its own for each: whichever QEMU fills, the other does not block it.
    let words = std::thread::spawn(move || read(words));
    let output = std::thread::spawn(move || read(output));
    let pidfd = process::pidfd_open(child.id()).map_err(text)?;
    if !ends(&pidfd, limit).map_err(text)? {
        process::kill(&pidfd).map_err(text)?;
        return Err(format!("it did not answer within {limit:?}"));
    }
    drop(input);
    let join = |thread: std::thread::JoinHandle<String>| thread.join().unwrap_or_default();
    Ok((join(output), join(words)))
}

fn read(mut from: impl Read) -> String {
    let mut bytes = Vec::new();
    // What came before an error is judged as it is.
    let _ = from.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits for the process to end; false: it has not.
fn ends(pidfd: &OwnedFd, limit: Duration) -> std::io::Result<bool> {
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut fds, timeout) {
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
            Ok(ready) => return Ok(ready > 0),
        }
    }
}
