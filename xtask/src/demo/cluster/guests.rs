//! The guests: one that will move, with a disk that every server reaches; one that talks
//! to it without end; and a few that do nothing.

use anyhow::{Context, Result};

use super::answers::Answers;
use super::servers::Servers;
use super::ticks::{self, Ticks};
use crate::demo::console::{BOOTS_WITHIN, type_line};
use crate::demo::{say, step};
use crate::steps::Steps;

/// The one that moves.
pub const ROAMER: &str = "roamer";
/// The one that stays, and keeps a connection to it.
pub const FRIEND: &str = "friend";
/// Others, to have something to drain.
const OTHERS: [&str; 2] = ["app1", "app2"];

const NETWORK: &str = "blue";
const ROAMER_AT: &str = "10.50.0.11";

/// The kernel, and what is done with it.
const BOOT: [&str; 6] =
    ["--memory", "128MiB", "--kernel", "micro-kernel", "--initrd", "micro-initrd"];

/// What watches the guests.
pub struct Watch {
    pub ticks: Ticks,
    pub answers: Answers,
}

pub fn all(servers: &Servers, steps: &mut Steps) -> Result<Watch> {
    let ticks = Ticks::listen(&servers.fabric)?;
    step(steps, "a network that is the same on all servers, and guests on it", || {
        say("'roamer' ticks every 5 ms to somebody outside of all servers. 'friend' keeps one TCP");
        say("connection to it, and counts answers.");
        let first = servers.first();
        first.basin(&["network", "create", NETWORK, "--subnet", "10.50.0.0/24"])?;
        let ask = format!("micro.run=tcp-count,to={ROAMER_AT}:7,every=10");
        create(servers, FRIEND, NETWORK, &ask, &[])?;
        let tick = format!("micro.run=heartbeat,to={},ms=5", ticks::address());
        let disk = ["--disk", "size=64MiB,datastore=shared"];
        create(servers, ROAMER, &format!("{NETWORK},address={ROAMER_AT}"), &tick, &disk)?;
        for name in OTHERS {
            create(servers, name, NETWORK, "", &["--disk", "size=64MiB,datastore=shared"])?;
        }
        servers.all[1].runner.basin(&["vm", "list"]).map(drop)
    })?;
    step(steps, "their consoles, through a server that does not have them", || {
        let at = servers.of(ROAMER)?;
        let other = &servers.all[(at + 1) % servers.all.len()].runner;
        let mut log = other.spawn_basin(&["vm", "log", ROAMER, "--follow"])?.marked("| ");
        log.hear("micro: address eth0 ", BOOTS_WITHIN)?;
        log.hear("/24\n", BOOTS_WITHIN)
    })?;
    let mut answers = Answers::follow(servers, FRIEND)?;
    step(steps, "they reach each other by name, from server to server", || {
        answers.wait(1).context("the guest that asks is up")?;
        let name = format!("{FRIEND}.{NETWORK}.internal");
        type_line(servers.first(), ROAMER, &format!("ping -c 3 {name}"), " 0% packet loss")
    })?;
    Ok(Watch { ticks, answers })
}

fn create(servers: &Servers, name: &str, network: &str, run: &str, more: &[&str]) -> Result<()> {
    let words = format!("console=ttyS0 quiet no_timer_check {run}");
    let args = ["vm", "create", name, "--network", network, "--cmdline", words.trim_end()];
    servers.first().basin(&[&args[..], &BOOT, more, &["--start"]].concat()).map(drop)
}
