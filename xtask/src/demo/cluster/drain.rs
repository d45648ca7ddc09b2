//! A server is emptied for maintenance, and takes machines again.

use anyhow::Result;

use super::guests::{ROAMER, Watch};
use super::servers::Servers;

pub fn all(servers: &Servers, watch: &mut Watch) -> Result<()> {
    let at = servers.of(ROAMER)?;
    let name = servers.all[at].name;
    let mark = watch.ticks.mark();
    let first = servers.first();
    first.basin(&["host", "drain", name])?;
    servers.until(0, &["host", "list"], |list| list.contains("drained"))?;
    first.basin(&["vm", "list"])?;
    watch.ticks.wait(60)?;
    let (told, answer) = (watch.ticks.since(mark)?, watch.answers.longest()?);
    println!(
        "    meanwhile '{ROAMER}' was heard {} times, with a longest gap of {} ms, and \
         answered within {} ms",
        told.heard,
        told.longest_gap.as_millis(),
        answer.as_millis()
    );
    first.basin(&["host", "undrain", name]).map(drop)
}
