//! Boots a kernel on the real engine, as root, to look at and to measure:
//! `launch KERNEL INITRD q35|microvm [ROUNDS]`. One round shows the console; more
//! compare the time to the first answer of QEMU with that of QEMU alone.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use basin_model::vm::{CpuModel, Machine as MachineType};
use basin_model::{Bytes, Generation, Vcpus, VmId};
use basin_qemu::qemu::{QemuConfig, QemuEngine};
use basin_qemu::{BootSpec, Engine, MachineSpec};
use tokio::io::AsyncReadExt;

type Any = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), Any> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initrd, machine, rest @ ..] = arguments.as_slice() else {
        return Err("launch KERNEL INITRD q35|microvm [ROUNDS]".into());
    };
    let rounds: u32 = rest.first().map_or(Ok(1), |n| n.parse())?;
    let dir = tempfile::tempdir()?;
    let name = format!("example-{}", std::process::id());
    let config = QemuConfig::new(dir.path().join("state"), dir.path().join("run"), &name);
    let engine = QemuEngine::new(config).await?;
    println!("{:?}\n{:?}\ncgroups {}", engine.info(), engine.kvm(), engine.cgroups().describe());
    let spec = MachineSpec {
        vm: VmId::from_uuid(uuid::Uuid::new_v4()),
        generation: Generation(1),
        name: "example".to_owned(),
        vcpus: Vcpus(1),
        memory: Bytes::mib(256),
        cpu_model: CpuModel::Auto,
        machine: if machine == "q35" { MachineType::Q35 } else { MachineType::Microvm },
        machine_version: None,
        boot: BootSpec::Kernel {
            kernel: kernel.into(),
            initrd: Some(initrd.into()),
            command_line: "console=ttyS0 panic=-1".to_owned(),
        },
        disks: vec![],
        cdroms: vec![],
        nics: vec![],
    };
    if rounds == 1 {
        show(&engine, &spec).await?
    } else {
        compare(&engine, &spec, rounds).await?
    }
    engine.forget(spec.vm).await?;
    engine.cgroups().remove()?;
    Ok(())
}

async fn show(engine: &QemuEngine, spec: &MachineSpec) -> Result<(), Any> {
    let machine = engine.launch(spec, vec![]).await?;
    let mut console = machine.open_console().await?;
    let mut bytes = [0; 4096];
    while let Ok(len) =
        tokio::time::timeout(Duration::from_secs(10), console.read(&mut bytes)).await
    {
        std::io::stdout().write_all(&bytes[..len?])?;
    }
    println!("{:?} {:?}", machine.state().await?, machine.balloon().await?);
    machine.kill().await?;
    Ok(())
}

async fn compare(engine: &QemuEngine, spec: &MachineSpec, rounds: u32) -> Result<(), Any> {
    let mut engine_times = Vec::new();
    let mut bare_times = Vec::new();
    let mut kill_times = Vec::new();
    for _ in 0..rounds {
        let started = Instant::now();
        let machine = engine.launch(spec, vec![]).await?;
        engine_times.push(started.elapsed());
        let command_line = std::fs::read(format!("/proc/{}/cmdline", machine.process().pid))?;
        let started = Instant::now();
        machine.kill().await?;
        kill_times.push(started.elapsed());
        let BootSpec::Kernel { kernel, initrd: Some(initrd), .. } = &spec.boot else { continue };
        bare_times.push(bare(&command_line, &[kernel, initrd])?);
    }
    for (what, mut times) in
        [("engine", engine_times), ("bare QEMU", bare_times), ("kill", kill_times)]
    {
        times.sort();
        println!("{what}: median {:?}, worst {:?}", times[times.len() / 2], times[times.len() - 1]);
    }
    Ok(())
}

/// The same command line without the engine; what it was handed open is opened by name.
fn bare(command_line: &[u8], images: &[&std::path::PathBuf; 2]) -> Result<Duration, Any> {
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("qmp");
    let listener = UnixListener::bind(&socket)?;
    let listener = OwnedFd::from(listener);
    let mut images = images.iter();
    let mut sockets = 0;
    let mut command = Command::new("qemu-system-x86_64");
    let text = String::from_utf8(command_line.to_vec())?;
    let mut arguments = text.trim_end_matches('\0').split('\0').skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "-add-fd" {
            arguments.next();
        } else if argument.starts_with("/proc/self/fd/") {
            command.arg(images.next().ok_or("an image too many")?);
        } else if argument.starts_with("socket,") {
            sockets += 1;
            if sockets == 1 {
                let fd = listener.as_raw_fd();
                command.arg(format!("socket,id=qmp,fd={fd},server=on,wait=off"));
            } else {
                let id = argument.split(',').nth(1).unwrap_or_default();
                let path = dir.path().join(id);
                command.arg(format!("socket,{id},path={},server=on,wait=off", path.display()));
            }
        } else {
            command.arg(argument);
        }
    }
    let fd = listener.as_raw_fd();
    let inherit = move || match nix::fcntl::fcntl(
        // SAFETY: open until the child runs QEMU.
        unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) },
        nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()),
    ) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.into()),
    };
    // SAFETY: one async-signal-safe call on a descriptor of this process.
    unsafe { command.pre_exec(inherit) };
    command.stdin(Stdio::null());
    let started = Instant::now();
    let mut child = command.spawn()?;
    drop(listener);
    let mut stream = UnixStream::connect(&socket)?;
    let mut reply = [0; 4096];
    stream.read(&mut reply).map(drop)?;
    stream.write_all(b"{\"execute\":\"qmp_capabilities\"}\n")?;
    stream.read(&mut reply).map(drop)?;
    let elapsed = started.elapsed();
    child.kill()?;
    child.wait()?;
    Ok(elapsed)
}
