//! A small Linux without firmware: up in seconds.

use anyhow::{Result, bail};

use super::console::{BOOTS_WITHIN, type_line};
use super::run::Runner;
use super::single::Demo;

const CREATE: [&str; 12] = [
    "--machine",
    "microvm",
    "--memory",
    "128MiB",
    "--kernel",
    "micro-kernel",
    "--initrd",
    "micro-initrd",
    "--cmdline",
    "console=ttyS0 quiet reboot=t",
    "--disk",
    "size=256MiB",
];

const BLOCKS: &str = "dev=/dev/vda blocks=256";

pub fn create_flags_for_a_shell() -> String {
    CREATE.map(|w| if w.contains(' ') { format!("'{w}'") } else { w.to_owned() }).join(" ")
        + " --start"
}

pub fn all(demo: &mut Demo<'_>) -> Result<()> {
    demo.step("a micro VM: create and start", |basin| {
        basin.basin(&[&["vm", "create", "tiny"], &CREATE[..], &["--start"]].concat())?;
        basin.basin(&["vm", "list"])?.expect("running")
    })?;
    demo.step("its console, until it has an address from DHCP", |basin| {
        let mut log = basin.spawn_basin(&["vm", "log", "tiny", "--follow"])?.marked("| ");
        log.hear("micro: address eth0 ", BOOTS_WITHIN)?;
        log.hear("/24\n", BOOTS_WITHIN)
    })?;
    let address = demo.step("reach it over the network", |basin| {
        let address = basin.basin(&["vm", "ip", "tiny"])?.text().to_owned();
        basin.run_inside(&["ping", "-c", "3", &address])?.expect(" 0% packet loss")?;
        Ok(address)
    })?;
    demo.step("write to its disk and check, typed at its console", |basin| {
        let write = format!("guest-tool disk-write {BLOCKS} count=200 every=100");
        type_line(basin, "tiny", &write, "disk: done")?;
        check_disk(basin)
    })?;
    demo.step("pause and resume", |basin| {
        basin.basin(&["vm", "pause", "tiny"])?;
        basin.basin(&["vm", "list"])?.expect("paused")?;
        expect_silence(basin, &address)?;
        basin.basin(&["vm", "resume", "tiny"])?;
        basin.run_inside(&["ping", "-c", "3", &address])?.expect(" 0% packet loss")
    })?;
    demo.step("shut down: the guest hears the power button", |basin| {
        basin.basin(&["vm", "shutdown", "tiny"])?;
        basin.basin(&["vm", "list"])?.expect("stopped")?;
        basin.basin(&["vm", "log", "tiny", "--tail", "200"])?.expect("power-button: pressed")
    })?;
    demo.step("start again: what was written is there", |basin| {
        basin.basin(&["vm", "start", "tiny"])?;
        let mut log = basin.spawn_basin(&["vm", "log", "tiny", "--follow"])?.marked("| ").silent();
        log.hear("reboot: Power down", BOOTS_WITHIN)?;
        log.skip_past("reboot: Power down");
        log.hear("micro: address eth0 ", BOOTS_WITHIN)?;
        drop(log);
        check_disk(basin)
    })?;
    demo.step("delete", |basin| {
        basin.basin(&["vm", "power-off", "tiny"])?;
        basin.basin(&["vm", "delete", "tiny"])?;
        expect_gone(basin)
    })
}

fn check_disk(basin: &Runner) -> Result<()> {
    let check = format!("guest-tool disk-check {BLOCKS} acked=200");
    type_line(basin, "tiny", &check, "disk: ok newest=200")
}

/// A VM that stands still answers nobody.
pub fn expect_silence(basin: &Runner, address: &str) -> Result<()> {
    let words = ["ping", "-c", "2", "-W", "1", address];
    super::run::show(&words);
    let mut ping = basin.inside(words[0]);
    ping.args(&words[1..]);
    let (code, said) = basin.spawn(ping, &words)?.end()?;
    match code {
        1 => Ok(()),
        _ => bail!("expected no answer while it is paused, but ping said:\n{}", said.text()),
    }
}

/// No VM is left, and no disk of one.
pub fn expect_gone(basin: &Runner) -> Result<()> {
    basin.basin(&["vm", "list"])?.expect("no vms")?;
    basin.basin(&["volume", "list"])?.expect("no volumes")
}
