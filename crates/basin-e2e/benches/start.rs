//! From the request to a machine that runs, and back: Basin beside QEMU alone with the
//! same command line, and beside libvirt.
//!
//! Each is measured in turn with its peer, round after round, so that whatever else the machine does
//! falls on all of them alike.

mod support;

use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use basin_api::client::VmAction;
use basin_api::vm::{Machine, State};
use basin_e2e::bench::report::{Better, Figure, Target};
use basin_e2e::bench::results;
use basin_e2e::{Guest, Server, images};
use support::bare::Bare;
use support::libvirt::Libvirt;
use support::timed;

const MIB: u64 = 128;
const BARE: &str = "QEMU alone";
const VIRSH: &str = "virsh";

/// Milliseconds of every round.
#[derive(Default)]
struct Times {
    start: Vec<f64>,
    stop: Vec<f64>,
}

fn main() -> anyhow::Result<()> {
    let runs = std::env::var("BENCH_RUNS").ok().map_or(Ok(20), |n| n.parse())?;
    let server = Server::start();
    let mut figures = Vec::new();
    for (name, machine) in [("microvm", Machine::Microvm), ("q35", Machine::Q35)] {
        beside_bare(&server, name, machine, runs, &mut figures)?;
    }
    // A peer that does not come up takes nothing from what was measured.
    results::publish("start", &figures)?;
    beside_virsh(&server, runs, &mut figures)?;
    results::publish("start", &figures)
}

fn beside_bare(
    server: &Server,
    name: &str,
    machine: Machine,
    runs: usize,
    figures: &mut Vec<Figure>,
) -> anyhow::Result<()> {
    let guest = create(server, name, machine);
    let bare = bare(&guest)?;
    let (mut basin, mut alone) = (Times::default(), Times::default());
    for _ in 0..runs {
        basin.add(by_api(&guest));
        alone.add(by_itself(&bare)?);
    }
    report(name, &basin, &alone, figures);
    Ok(())
}

/// Both are a program that is started, asks a daemon and waits.
fn beside_virsh(server: &Server, runs: usize, figures: &mut Vec<Figure>) -> anyhow::Result<()> {
    let guest = create(server, "shell", Machine::Q35);
    let libvirt = Libvirt::start(server)?;
    let domain = libvirt.domain("lv", 1, MIB)?;
    let domain = domain.to_str().context("a path that is no text")?;
    // The first machine of each takes longer (libvirt examines QEMU); not counted.
    by_cli(&guest)?;
    by_virsh(&libvirt, domain)?;
    let (mut cli, mut virsh) = (Times::default(), Times::default());
    for _ in 0..runs {
        cli.add(by_cli(&guest)?);
        virsh.add(by_virsh(&libvirt, domain)?);
    }
    let pairs = [("start", &cli.start, &virsh.start), ("stop", &cli.stop, &virsh.stop)];
    for (what, basin, peer) in pairs {
        let case = format!("q35 {what}, from the shell");
        figures.push(Figure::new(case, "ms", (basin, peer), VIRSH, (1.0, Better::Lower)));
    }
    Ok(())
}

impl Times {
    fn add(&mut self, (start, stop): (f64, f64)) {
        self.start.push(start);
        self.stop.push(stop);
    }
}

fn report(machine: &str, basin: &Times, alone: &Times, figures: &mut Vec<Figure>) {
    let start = Figure::alone(format!("{machine} start"), "ms", &basin.start, Better::Lower);
    figures.push(start.beside(BARE, &alone.start).target(Target::OverPeer(50.0)));
    let stop = Figure::alone(format!("{machine} stop"), "ms", &basin.stop, Better::Lower);
    figures.push(stop.beside(BARE, &alone.stop));
}

/// With a disk and a network interface.
fn create<'s>(server: &'s Server, name: &str, machine: Machine) -> Guest<'s> {
    let mut vm = server.micro(name, machine);
    vm.memory_bytes = MIB * images::MIB;
    vm.disks = vec![images::blank(64 * images::MIB)];
    server.create(&vm)
}

fn bare(guest: &Guest<'_>) -> anyhow::Result<Bare> {
    guest.start();
    let bare = Bare::like(guest.server, &format!("b-{}", guest.name), guest.qemu_pid());
    guest.power_off();
    bare
}

fn by_api(guest: &Guest<'_>) -> (f64, f64) {
    let ((), start) = timed(|| guest.act(VmAction::Start));
    assert_eq!(guest.state(), State::Running);
    let ((), stop) = timed(|| guest.act(VmAction::PowerOff));
    (start, stop)
}

fn by_itself(bare: &Bare) -> anyhow::Result<(f64, f64)> {
    let (running, start) = timed(|| bare.start());
    let running = running?;
    let (stopped, stop) = timed(|| running.stop());
    stopped?;
    Ok((start, stop))
}

fn by_cli(guest: &Guest<'_>) -> anyhow::Result<(f64, f64)> {
    let basin = |verb: &str| -> anyhow::Result<()> {
        let program = std::env::var_os("BASIN_BIN").context("set BASIN_BIN")?;
        let mut command = Command::new(program);
        command.args(["vm", verb, &guest.name]).env("BASIN_SOCKET", guest.server.place.socket());
        let out = command.stdin(Stdio::null()).output()?;
        if !out.status.success() {
            bail!("basin vm {verb}: {}", String::from_utf8_lossy(&out.stderr));
        }
        Ok(())
    };
    let (started, start) = timed(|| basin("start"));
    started?;
    assert_eq!(guest.state(), State::Running);
    let (stopped, stop) = timed(|| basin("power-off"));
    stopped?;
    Ok((start, stop))
}

fn by_virsh(libvirt: &Libvirt, domain: &str) -> anyhow::Result<(f64, f64)> {
    let (started, start) = timed(|| libvirt.virsh(&["create", domain]));
    started?;
    let (stopped, stop) = timed(|| libvirt.virsh(&["destroy", "lv"]));
    stopped?;
    Ok((start, stop))
}
