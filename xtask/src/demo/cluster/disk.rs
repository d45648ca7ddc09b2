//! The moving guest writes to its disk all the time, and in the end reads all of it.

use anyhow::Result;

use super::guests::ROAMER;
use super::servers::Servers;
use crate::demo::console::type_line;

/// Numbered blocks with checksums, one acknowledged after the other.
pub fn write(servers: &Servers) -> Result<()> {
    let write = "guest-tool disk-write dev=/dev/vda every=50 > /tmp/written &";
    type_line(servers.first(), ROAMER, write, "micro# ")
}

/// That none that was acknowledged is lost, whichever server or storage it was on then.
pub fn check(servers: &Servers) -> Result<()> {
    let check = "kill $!; wait $!; guest-tool disk-check dev=/dev/vda \
                 acked=$(grep acked /tmp/written | tail -n 1 | sed 's/.* //')";
    type_line(servers.first(), ROAMER, check, "disk: ok")
}
