//! A namespace that is a server, and one that is the world outside it.

use std::future::Future;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use basin_model::{MacAddr, NetworkId, NicId};
use tempfile::TempDir;
use uuid::Uuid;

use crate::fabric::{Fabric, Lease, NetworkSpec};
use crate::linux::{LinuxFabric, NetConfig};
use crate::names::Instance;

use super::packet::Guest;

const INSIDE: &str = "BASIN_NET_TEST";
const OUTSIDE: &str = "BASIN_NET_OUTSIDE";

/// Runs the test called `name` again, inside a fresh namespace, and there `body`.
pub fn in_namespace<F: Future<Output = ()>>(name: &str, body: impl FnOnce() -> F) {
    inside(name, &["srv", "out"], || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(body());
    });
}

/// The same with as many namespaces as there are `kinds`; the test is in the first.
pub fn inside(name: &str, kinds: &[&str], body: impl FnOnce()) {
    if std::env::var(INSIDE).is_ok_and(|inside| inside == name) {
        sh("ip link set lo up");
        return body();
    }
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let named = |kind: &&str| format!("bnt-{}-{count}-{kind}", std::process::id());
    let namespaces = Namespaces(kinds.iter().map(named).collect());
    for namespace in &namespaces.0 {
        sh(&format!("ip netns add {namespace}"));
    }
    let status = Command::new("ip")
        .args(["netns", "exec", &namespaces.0[0]])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, name)
        .env(OUTSIDE, namespaces.0[1..].join(" "))
        .output()
        .unwrap();
    drop(namespaces);
    let text = String::from_utf8_lossy(&status.stdout);
    // For `--nocapture`.
    print!("{text}");
    eprint!("{}", String::from_utf8_lossy(&status.stderr));
    assert!(text.contains("1 passed"), "{text}\n{}", String::from_utf8_lossy(&status.stderr));
}

/// The other namespaces of this test.
pub fn others() -> Vec<String> {
    std::env::var(OUTSIDE).unwrap().split(' ').map(str::to_owned).collect()
}

struct Namespaces(Vec<String>);

impl Drop for Namespaces {
    fn drop(&mut self) {
        for namespace in &self.0 {
            let pids = output(&format!("ip netns pids {namespace}"));
            for pid in String::from_utf8_lossy(&pids.stdout).split_whitespace() {
                output(&format!("kill -9 {pid}"));
            }
            output(&format!("ip netns del {namespace}"));
        }
    }
}

pub fn output(command: &str) -> Output {
    Command::new("sh").args(["-c", command]).output().unwrap()
}

pub fn sh(command: &str) -> String {
    let done = output(command);
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command}: {error}");
    String::from_utf8(done.stdout).unwrap()
}

/// The address of the world outside, and the server's on that side.
pub const WORLD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
pub const UPLINK: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// Connects the server to the world by `up0`, its default route.
pub fn uplink() {
    let outside = &others()[0];
    sh(&format!(
        "ip link add up0 type veth peer name out0 netns {outside} && \
         ip addr add {UPLINK}/24 dev up0 && ip link set up0 up && \
         ip -n {outside} addr add {WORLD}/24 dev out0 && ip -n {outside} link set out0 up && \
         ip route add default via {WORLD}"
    ));
}

/// Runs a command in the world.
pub fn outside(command: &str) {
    sh(&format!("ip netns exec {} {command}", others()[0]));
}

/// A daemon's directories; the fabric can be made anew on them.
pub struct Daemon {
    dir: TempDir,
    tag: &'static str,
}

impl Daemon {
    pub fn new(tag: &'static str) -> Daemon {
        let dir = tempfile::Builder::new().prefix("bnt").tempdir().unwrap();
        let open = std::fs::Permissions::from_mode(0o711);
        std::fs::set_permissions(dir.path(), open).unwrap();
        Daemon { dir, tag }
    }

    pub fn instance(&self) -> Instance {
        Instance::new(self.tag).unwrap()
    }

    pub fn start(&self) -> LinuxFabric {
        LinuxFabric::new(NetConfig {
            run_dir: self.dir.path().join("run"),
            state_dir: self.dir.path().join("state"),
            instance: self.instance(),
        })
        .unwrap()
    }

    pub fn bridge(&self, network: &NetworkSpec) -> String {
        self.instance().bridge(network.id)
    }

    pub fn pid(&self, network: &NetworkSpec) -> Option<i32> {
        let fabric = self.start();
        super::super::process::by_pid_file(&fabric.layout, network.id).map(|p| p.pid)
    }

    /// How many processes serve this daemon's networks.
    pub fn processes(&self) -> usize {
        let mark = format!("--pid-file={}/", self.dir.path().display());
        sh("ip netns pids $(ip netns identify)")
            .split_whitespace()
            .filter(|pid| {
                let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
                line.is_ok_and(|l| l.starts_with("dnsmasq") && l.contains(&mark))
            })
            .count()
    }

    /// Files that are left below the daemon's directories.
    pub fn files(&self) -> Vec<String> {
        let text = sh(&format!("find {} -type f", self.dir.path().display()));
        text.lines().map(str::to_owned).collect()
    }
}

pub fn network(third: u8) -> NetworkSpec {
    NetworkSpec {
        id: NetworkId::from_uuid(Uuid::new_v4()),
        subnet: format!("10.77.{third}.0/24").parse().unwrap(),
        gateway: Ipv4Addr::new(10, 77, third, 1),
        domain: "vm.test".into(),
        leases: vec![],
        overlay: None,
        trunk: None,
    }
}

pub fn mac(last: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 7, 7, last])
}

/// Adds a lease `vmN` of the N-th address.
pub fn lease(network: &mut NetworkSpec, last: u8) -> Lease {
    let [a, b, c, _] = network.gateway.octets();
    let lease = Lease {
        mac: mac(last),
        address: Ipv4Addr::new(a, b, c, last),
        name: format!("vm{last}"),
        at: None,
        to: None,
    };
    network.leases.push(lease.clone());
    lease
}

/// A machine of that lease on the network.
pub async fn guest(fabric: &LinuxFabric, network: &NetworkSpec, lease: &Lease) -> Guest {
    let nic = NicId::from_uuid(Uuid::new_v4());
    let fd = fabric.open_tap(network.id, nic, lease.mac, lease.address).await.unwrap();
    Guest::new(fd, nic, lease, network.gateway)
}
