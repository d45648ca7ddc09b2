//! One server: a hundred VMs defined, twenty of them running; what the API takes, what
//! the daemons hold in memory, and what they do when nobody asks for anything. Then a
//! cluster of a thousand simulated servers.
//!
//! `BENCH_PART=server` or `cluster` measures one of them only.

mod support;

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use basin_api::client::VmAction;
use basin_api::vm::{Machine, Vm, VmCreate};
use basin_e2e::bench::report::{Better, Figure, Target, percentile};
use basin_e2e::bench::results;
use basin_e2e::{Guest, Server, images};
use support::libvirt::Libvirt;
use support::{many, proc, timed};

const DEFINED: usize = 100;
const RUNNING: usize = 20;
const REQUESTS: usize = 500;
const SHELL_RUNS: usize = 20;
const QUIET: Duration = Duration::from_secs(20);
const LIBVIRT: &str = "libvirtd";
const VIRSH: &str = "virsh";

fn main() -> anyhow::Result<()> {
    let part = std::env::var("BENCH_PART").ok();
    let wanted = |name: &str| part.as_deref().is_none_or(|part| part == name);
    let mut figures = Vec::new();
    if wanted("cluster") {
        figures = many::figures()?;
        results::publish("scale", &figures)?;
    }
    if wanted("server") { one_server(figures) } else { Ok(()) }
}

/// Its figures come after those that there are already.
fn one_server(mut figures: Vec<Figure>) -> anyhow::Result<()> {
    let server = Server::start();
    let blockd = server.blockd_pid();
    let guests: Vec<Guest<'_>> = (0..DEFINED).map(|n| server.create(&micro(&server, n))).collect();
    let empty = proc::resident(blockd)?;
    run(&guests[..RUNNING]);
    println!("{DEFINED} VMs defined, {RUNNING} running");

    let latency = list_latency(&server);
    for percent in [50, 99] {
        let case = format!("GET /v1/vms, {DEFINED} VMs, p{percent}");
        let mut figure = Figure::alone(case, "ms", &latency, Better::Lower);
        figure.basin = percentile(&latency, percent);
        figures.push(figure);
    }
    let (daemon, full) = (proc::resident(server.pid())?, proc::resident(blockd)?);
    let idle = proc::load(&[server.pid(), blockd], QUIET)?;
    let list = shell(SHELL_RUNS, || basin_list(&server))?;
    for guest in &guests[..RUNNING] {
        guest.act(VmAction::PowerOff);
    }

    let mib = |kib: u64| kib as f64 / 1024.0;
    let disk = |r: proc::Resident| mib(r.all - r.shared) / RUNNING as f64;
    figures.push(
        Figure::alone(
            "blockd's memory for a disk",
            "MiB",
            &[disk(full) - disk(empty)],
            Better::Lower,
        )
        .target(Target::Value(2.0)),
    );
    let shared = mib(full.shared) / RUNNING as f64;
    figures.push(Figure::alone(
        "guest's pages blockd has touched, a disk",
        "MiB",
        &[shared],
        Better::Lower,
    ));
    figures.push(Figure::alone("blockd's memory", "MiB", &[mib(full.all)], Better::Lower));
    for (who, load) in [("daemon", idle[0]), ("blockd", idle[1])] {
        let case = format!("{who} at rest, of one CPU");
        figures.push(Figure::alone(case, "%", &[load], Better::Lower).target(Target::Value(1.0)));
    }
    let list =
        Figure::alone("list from the shell", "ms", &list, Better::Lower).target(Target::Ratio(1.0));
    let memory = Figure::alone("daemon's memory", "MiB", &[mib(daemon.all)], Better::Lower)
        .target(Target::Value(60.0));
    // A peer that does not come up takes nothing from what was measured.
    let alone = [&figures[..], &[list.clone(), memory.clone()]].concat();
    results::publish("scale", &alone)?;
    let peer = libvirt(&server)?;
    figures.push(list.beside(VIRSH, &peer.list));
    // libvirtd runs none of its machines meanwhile, which is in its favour.
    figures.push(memory.beside(LIBVIRT, &[mib(peer.resident.all)]));
    results::publish("scale", &figures)
}

fn micro(server: &Server, n: usize) -> VmCreate {
    let mut vm = server.micro(&format!("m{n:03}"), Machine::Microvm);
    vm.memory_bytes = 96 * images::MIB;
    vm.disks = vec![images::blank(64 * images::MIB)];
    vm
}

/// One after the other, each once the one before is up: all at once takes longest.
fn run(guests: &[Guest<'_>]) {
    for guest in guests {
        guest.start();
        guest.wait_log("micro: address", 1);
    }
    // What a guest does after its boot is over, too, then.
    std::thread::sleep(Duration::from_secs(10));
}

fn list_latency(server: &Server) -> Vec<f64> {
    let client = server.client();
    let list = || {
        let (vms, time) = timed(|| server.ok(client.list::<Vm>()));
        assert_eq!(vms.items.len(), DEFINED);
        time
    };
    list();
    (0..REQUESTS).map(|_| list()).collect()
}

fn shell(runs: usize, mut one: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Vec<f64>> {
    let mut times = Vec::new();
    for _ in 0..runs {
        let (result, time) = timed(&mut one);
        result?;
        times.push(time);
    }
    Ok(times)
}

fn basin_list(server: &Server) -> anyhow::Result<()> {
    let program = std::env::var_os("BASIN_BIN").context("set BASIN_BIN")?;
    let mut command = Command::new(program);
    command.args(["vm", "list"]).env("BASIN_SOCKET", server.place.socket());
    let out = command.stdin(Stdio::null()).output()?;
    if !out.status.success() {
        bail!("basin vm list: {}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(())
}

struct Peer {
    resident: proc::Resident,
    list: Vec<f64>,
}

/// The same number of domains, none of them running.
fn libvirt(server: &Server) -> anyhow::Result<Peer> {
    let libvirt = Libvirt::start(server)?;
    for n in 0..DEFINED {
        let domain = libvirt.domain(&format!("lv{n:03}"), u8::try_from(n)?, 96)?;
        libvirt.virsh(&["define", domain.to_str().context("a path that is no text")?])?;
    }
    let list = || {
        let names = libvirt.virsh(&["list", "--all"])?;
        if names.matches("lv").count() < DEFINED {
            bail!("domains are missing: {names}");
        }
        Ok(())
    };
    let list = shell(SHELL_RUNS, list)?;
    Ok(Peer { resident: proc::resident(libvirt.pid()?)?, list })
}
