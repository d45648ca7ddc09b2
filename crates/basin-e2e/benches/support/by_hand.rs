//! Plain QEMU moved by hand over QMP, with the settings an operator would try.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use basin_e2e::{Cluster, Server, images, raw};
use serde_json::{Value, json};

use super::mover::{Guest, Mover};
use super::pair::BRIDGE;
use super::qmp::Qmp;

/// What the operator sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tuning {
    Defaults,
    /// All of the link, and a downtime limit of 30 ms.
    Fast,
    /// All of the link, and post-copy after the first pass.
    PostCopy,
}

/// QEMU on one side.
struct Side {
    child: Child,
    qmp: Qmp,
}

pub struct ByHand<'c> {
    cluster: &'c Cluster,
    tuning: Tuning,
    guest: Option<Guest>,
    /// Where it runs, and the QEMU there.
    at: usize,
    running: Option<Side>,
    /// QEMUs started so far: each has files of its own.
    count: usize,
}

impl<'c> ByHand<'c> {
    pub fn new(cluster: &'c Cluster, tuning: Tuning) -> ByHand<'c> {
        ByHand { cluster, tuning, guest: None, at: 0, running: None, count: 0 }
    }

    fn dir(&self, n: usize) -> PathBuf {
        self.cluster.fabric.place.dir.join(format!("hand-{:?}-{n}", self.tuning))
    }

    fn launch(&mut self, at: usize, incoming: bool) -> anyhow::Result<Side> {
        let guest = self.guest.clone().context("no guest was started")?;
        let dir = self.dir(self.count);
        self.count += 1;
        fs::create_dir_all(&dir)?;
        let server = &self.cluster.servers[at];
        let mut command = server.place.command("qemu-system-x86_64");
        let name = format!("hand{}", self.count);
        let tap = tap(server, &name)?;
        // As Basin's guests have it under emulation: docs/decisions/0120.
        let kib = guest.mib * 1024 + 64;
        let memory = format!("memory-backend-memfd,id=ram,size={kib}K,share=on");
        let socket = dir.join("qmp");
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-machine", "q35,memory-backend=ram,vmport=off", "-accel", "tcg,tb-size=256"])
            .args(["-object", &memory, "-m", &format!("{kib}K")])
            .args(["-cpu", "Nehalem", "-smp", "cpus=1,maxcpus=2"])
            .arg("-kernel")
            .arg(images::micro("vmlinuz"))
            .arg("-initrd")
            .arg(images::micro("initrd.img"))
            .args(["-append", &guest.command_line()])
            .args(["-chardev", &format!("file,id=c,path={}", dir.join("console").display())])
            .args(["-serial", "chardev:c"])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())])
            .args(["-netdev", &format!("tap,id=n,fd={}", tap.as_raw_fd())])
            .args(["-device", "virtio-net-pci,netdev=n,mac=52:54:00:00:00:77"]);
        if incoming {
            command.args(["-incoming", "defer"]);
        }
        let log = fs::File::create(dir.join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        super::inherit(&mut command, vec![tap.as_raw_fd()]);
        let mut child = command.spawn().context("run QEMU")?;
        basin_e2e::until("QEMU has a monitor", || {
            socket.exists() || child.try_wait().is_ok_and(|status| status.is_some())
        });
        let qmp = Qmp::connect(&socket);
        let qmp = qmp.with_context(|| fs::read_to_string(dir.join("log")).unwrap_or_default())?;
        Ok(Side { child, qmp })
    }

    fn tune(&self, side: &mut Side) -> anyhow::Result<()> {
        if self.tuning == Tuning::PostCopy {
            let on = json!([{ "capability": "postcopy-ram", "state": true }]);
            side.qmp.execute("migrate-set-capabilities", json!({ "capabilities": on }))?;
        }
        if self.tuning != Tuning::Defaults {
            let parameters = json!({ "max-bandwidth": 0, "downtime-limit": 30 });
            side.qmp.execute("migrate-set-parameters", parameters)?;
        }
        Ok(())
    }

    /// Whether it came to its end in time.
    fn follow(&self, source: &mut Side, limit: Duration) -> anyhow::Result<bool> {
        let begin = Instant::now();
        let mut post_copy = false;
        loop {
            let now = source.qmp.execute("query-migrate", json!({}))?;
            match now["status"].as_str() {
                Some("completed") => return Ok(true),
                Some("failed" | "cancelled") => bail!("the move failed: {now}"),
                _ => {}
            }
            let passes = now["ram"]["dirty-sync-count"].as_u64().unwrap_or(0);
            if self.tuning == Tuning::PostCopy && !post_copy && passes >= 2 {
                source.qmp.execute("migrate-start-postcopy", json!({}))?;
                post_copy = true;
            }
            if begin.elapsed() > limit {
                source.qmp.execute("migrate_cancel", json!({}))?;
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Mover for ByHand<'_> {
    fn start(&mut self, guest: &Guest) -> anyhow::Result<()> {
        self.guest = Some(guest.clone());
        self.at = 0;
        self.running = Some(self.launch(0, false)?);
        Ok(())
    }

    fn migrate(&mut self, limit: Duration) -> anyhow::Result<bool> {
        let to = 1 - self.at;
        let mut target = self.launch(to, true)?;
        let mut source = self.running.take().context("no guest runs")?;
        self.tune(&mut source)?;
        self.tune(&mut target)?;
        let uri = json!({ "uri": format!("tcp:{}:4444", self.cluster.address(to)) });
        target.qmp.execute("migrate-incoming", uri.clone())?;
        source.qmp.execute("migrate", uri)?;
        if !self.follow(&mut source, limit)? {
            self.running = Some(source);
            return Ok(false);
        }
        let runs = |status: &Value| status["status"] == "running";
        while !runs(&target.qmp.execute("query-status", json!({}))?) {
            std::thread::sleep(Duration::from_millis(2));
        }
        // After post-copy the target needs the source no more, either.
        drop(source);
        self.at = to;
        self.running = Some(target);
        Ok(true)
    }

    fn said(&self) -> anyhow::Result<String> {
        let mut said = String::new();
        for n in 0..self.count {
            let console = fs::read(self.dir(n).join("console"))?;
            said += &String::from_utf8_lossy(&console);
        }
        Ok(said)
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        self.running = None;
        for n in 0..self.count {
            fs::remove_dir_all(self.dir(n))?;
        }
        self.count = 0;
        Ok(())
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// On the server's bridge; it goes with QEMU.
fn tap(server: &Server, name: &str) -> anyhow::Result<std::os::fd::OwnedFd> {
    let tap = server.in_network(|_| raw::tap(name)).context("make a tap")?;
    server.sh(&format!("ip link set {name} master {BRIDGE} up"));
    Ok(tap)
}
