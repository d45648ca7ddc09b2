//! Three servers become one cluster, the way people do it.

use anyhow::Result;

use super::servers::Servers;
use crate::demo::{Setting, say, step};
use crate::steps::Steps;

pub fn all(setting: &Setting<'_>, steps: &mut Steps) -> Result<Servers> {
    let mut servers = step(steps, "three servers, each for itself", || {
        say("Network namespaces of this machine, joined by a bridge as by a switch. Each server");
        say("has a daemon and a directory of its own, and offers 2 CPUs and 3 GiB.");
        let mut servers = Servers::new(setting)?;
        servers.start()?;
        Ok(servers)
    })?;
    step(steps, "the first one founds a cluster", || found(&servers))?;
    step(steps, "the others join it", || {
        (1..servers.all.len()).try_for_each(|n| join(&servers, n))
    })?;
    step(steps, "one entity: any server answers", || {
        say("What they know gets a copy on each of them by itself: any one may be lost.");
        servers.until(2, &["host", "list"], |list| list.matches("ready").count() == 3)?;
        servers.until(1, &["cluster", "show"], |sheet| kept_by(sheet) == 3)?;
        Ok(())
    })?;
    servers.check()?;
    Ok(servers)
}

fn found(servers: &Servers) -> Result<()> {
    say("What it knows moves from a file into etcd, which Basin sets up and keeps running.");
    let address = servers.all[0].address.to_string();
    servers.first().basin(&["init", "--advertise", &address]).map(drop)
}

fn join(servers: &Servers, n: usize) -> Result<()> {
    let first = servers.first();
    first.show(&["TOKEN=$(basin token create --join)"]);
    let made = crate::shell::quietly(first.quiet_basin(&["token", "create", "--join"]))?;
    let token = String::from_utf8(made)?.trim().to_owned();
    let member = &servers.all[n];
    let (url, address) =
        (format!("https://{}:7443", servers.all[0].address), member.address.to_string());
    let words = |token| ["join", &url, "--token", token, "--advertise", &address];
    member.runner.show(&[&["basin"], &words("$TOKEN")[..]].concat());
    let args = words(&token);
    member.runner.spawn(member.runner.quiet_basin(&args), &["basin", "join"])?.succeed()?;
    Ok(())
}

/// How many servers keep the state.
fn kept_by(sheet: &str) -> usize {
    let line = sheet.lines().find_map(|l| l.trim().strip_prefix("State kept by"));
    line.map_or(0, |names| names.split(',').count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_keeps_the_state_is_counted() {
        let check = |sheet: &str, expect: usize| assert_eq!(kept_by(sheet), expect);
        check("Leader         srv1\nState kept by  srv1, srv2, srv3\nState  current", 3);
        check("State kept by  srv1", 1);
        check("Leader  nobody", 0);
    }
}
