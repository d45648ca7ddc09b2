//! A server's daemon is killed: its machines do not notice.

use anyhow::Result;

use super::guests::{ROAMER, Watch};
use super::servers::Servers;

pub fn all(servers: &mut Servers, watch: &mut Watch) -> Result<()> {
    let at = servers.of(ROAMER)?;
    let name = servers.all[at].name;
    let other = (at + 1) % servers.all.len();
    watch.ticks.wait(1)?;
    let mark = watch.ticks.mark();
    servers.all[at].runner.show(&["kill", "-9", "%1"]);
    servers.kill(at)?;
    let is = |list: &str, state: &str| {
        let line = list.lines().find(|line| line.starts_with(name));
        line.is_some_and(|line| line.contains(state))
    };
    servers.until(other, &["host", "list"], |list| !is(list, "ready"))?;
    servers.all[other].runner.basin(&["vm", "list"])?;
    servers.start_one(at)?;
    servers.until(other, &["host", "list"], |list| is(list, "ready"))?;
    let told = watch.ticks.since(mark)?;
    println!(
        "    meanwhile '{ROAMER}' ticked {} times, with a longest gap of {} ms",
        told.heard,
        told.longest_gap.as_millis()
    );
    Ok(())
}
