//! The moving guest writes to its disk all the time, and in the end reads all of it.

use anyhow::Result;

use super::guests::ROAMER;
use super::servers::Servers;
use crate::demo::console::type_line;

/// Numbered blocks with checksums, one acknowledged after the other.
pub fn write(servers: &Servers) -> Result<()> {
    let write = "guest-tool disk-write dev=/dev/vda > /tmp/w &";
    type_line(servers.first(), ROAMER, write, "micro# ")
}

/// That none that was acknowledged is lost, whichever server or storage it was on then.
/// Each line fits the console, which has 80 columns.
pub fn check(servers: &Servers) -> Result<()> {
    type_line(servers.first(), ROAMER, "kill $!; wait $!; tail -n 1 /tmp/w", "disk: acked")?;
    let check = "guest-tool disk-check dev=/dev/vda acked=$(sed -n '$s/.* //p' /tmp/w)";
    type_line(servers.first(), ROAMER, check, "disk: ok")
}
