//! Debian's libvirt beside Basin: a daemon of its own in the server's network, whose
//! directories hide the system's in a mount namespace, so that nothing of it stays.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use basin_e2e::{Server, images, process};

const PACKAGES: [&str; 3] = ["libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt-clients"];

/// What libvirt keeps outside of what its configuration names.
const HIDDEN: [&str; 5] =
    ["/etc/libvirt", "/run/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt"];

/// A libvirtd; ends with the server, in whose network namespace it lives.
pub struct Libvirt {
    daemon: Child,
    /// Domains are in this part of the control groups.
    partition: String,
    dir: PathBuf,
    /// Kernel and initrd.
    files: PathBuf,
    /// Mount points that were not there before.
    made: Vec<&'static str>,
}

impl Libvirt {
    /// With a bridge `lv-br` for its machines, in place of its own network.
    pub fn start(server: &Server) -> anyhow::Result<Libvirt> {
        let files = server.place.dir.join("libvirt");
        Libvirt::start_with(server, &files)
    }

    /// Kernels are in a directory that several have in common.
    pub fn start_with(server: &Server, files: &Path) -> anyhow::Result<Libvirt> {
        install()?;
        let dir = server.place.dir.join("libvirt");
        fs::create_dir_all(&dir)?;
        fs::create_dir_all(files)?;
        server.sh("ip link add lv-br type bridge && ip link set lv-br up");
        let mut made = Vec::new();
        for path in HIDDEN {
            if !Path::new(path).exists() {
                fs::create_dir_all(path)?;
                made.push(path);
            }
        }
        let partition = server.place.name.clone();
        make_partition(&partition)?;
        // Copies, since libvirt changes the owner of what it gives to a machine.
        for file in ["vmlinuz", "initrd.img"] {
            fs::copy(images::micro(file), files.join(file))?;
        }
        fs::write(dir.join("libvirtd.conf"), daemon_conf(&dir, server))?;
        fs::write(dir.join("qemu.conf"), QEMU_CONF)?;
        // It asks for the address of its host at each move, where nobody would answer.
        let host = format!("127.0.1.1 {}\n", server.place.name);
        for (file, line) in [("passwd", USER), ("group", GROUP), ("hosts", host.as_str())] {
            let mut text = fs::read_to_string(Path::new("/etc").join(file))?;
            text.push_str(line);
            fs::write(dir.join(file), text)?;
        }
        let script = format!(
            "set -e; mount --make-rprivate /; \
             for d in {}; do mount -t tmpfs -o mode=0755 tmpfs $d; done; \
             cp {dir}/qemu.conf /etc/libvirt/qemu.conf; \
             for f in passwd group hosts; do mount --bind {dir}/$f /etc/$f; done; \
             hostname {name}; virtlogd --daemon --pid-file {dir}/virtlogd.pid; \
             libvirtd --config {dir}/libvirtd.conf --pid-file {dir}/pid & wait",
            HIDDEN.join(" "),
            name = server.place.name,
            dir = dir.display(),
        );
        let log = fs::File::create(dir.join("log"))?;
        let daemon = server
            .place
            .command("unshare")
            // The shell is the first of its processes, and buries its machines: libvirtd
            // waits for the end of a machine that is not its child.
            .args(["--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("run libvirtd")?;
        let libvirt = Libvirt { daemon, partition, dir, files: files.to_owned(), made };
        let begin = Instant::now();
        while let Err(error) = libvirt.virsh(&["uri"]) {
            if begin.elapsed() > basin_e2e::SOON {
                return Err(error.context("libvirtd does not answer"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(libvirt)
    }

    /// As this process counts them.
    pub fn pid(&self) -> anyhow::Result<u32> {
        let config = self.dir.join("libvirtd.conf").display().to_string();
        let is_it = |words: &[String]| {
            words.first().is_some_and(|w| w == "libvirtd") && words.contains(&config)
        };
        process::find(is_it).first().copied().context("libvirtd does not run")
    }

    /// Runs virsh; what it says.
    pub fn virsh(&self, args: &[&str]) -> anyhow::Result<String> {
        self.command(args).with_context(|| {
            fs::read_to_string(self.dir.join("log")).unwrap_or_else(|e| e.to_string())
        })
    }

    pub fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.dir.join("libvirt-sock").display())
    }

    fn command(&self, args: &[&str]) -> anyhow::Result<String> {
        // libvirtd waits without end for a machine that it cannot bury.
        let mut virsh = Command::new("timeout");
        let out = virsh.args(["60", "virsh", "--connect", &self.uri()]).args(args).output()?;
        if !out.status.success() {
            bail!("virsh {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Writes a domain like Basin's q35 machines: emulated, a kernel, a raw disk, a tap on
    /// a bridge, the same small devices. The file to give to virsh.
    pub fn domain(&self, name: &str, number: u8, mib: u64) -> anyhow::Result<PathBuf> {
        let disk = self.dir.join(format!("{name}.raw"));
        fs::File::create(&disk)?.set_len(64 << 20)?;
        let disk = DISK.replace("@DISK@", &disk.display().to_string());
        let words = "console=ttyS0 quiet micro.ip=dhcp";
        let with = (disk.as_str(), "lv-br", words, "<serial type='pty'/>");
        self.write(name, number, mib, with)
    }

    /// One that can be moved to another libvirtd: what it names is there on both sides.
    pub fn diskless(
        &self,
        name: &str,
        (mib, bridge): (u64, &str),
        command_line: &str,
        console: &Path,
    ) -> anyhow::Result<PathBuf> {
        let console = format!(
            "<serial type='file'><source path='{}' append='on'/></serial>",
            console.display()
        );
        self.write(name, 1, mib, ("", bridge, command_line, &console))
    }

    fn write(
        &self,
        name: &str,
        number: u8,
        mib: u64,
        (disk, bridge, command_line, console): (&str, &str, &str, &str),
    ) -> anyhow::Result<PathBuf> {
        let xml = DOMAIN
            .replace("@NAME@", name)
            .replace("@NUMBER@", &format!("{number:02x}"))
            .replace("@MIB@", &mib.to_string())
            .replace("@PARTITION@", &self.partition)
            .replace("@KERNEL@", &self.files.join("vmlinuz").display().to_string())
            .replace("@INITRD@", &self.files.join("initrd.img").display().to_string())
            .replace("@WORDS@", command_line)
            .replace("@BRIDGE@", bridge)
            .replace("@CONSOLE@", console)
            .replace("@DISK@", disk);
        let path = self.dir.join(format!("{name}.xml"));
        fs::write(&path, xml)?;
        Ok(path)
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        let running = self.command(&["list", "--name"]).unwrap_or_default();
        for name in running.split_whitespace() {
            let _ = self.command(&["destroy", name]);
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        for dir in partitions(&self.partition) {
            let _ = fs::remove_dir(dir);
        }
        for dir in &self.made {
            let _ = fs::remove_dir(dir);
        }
    }
}

fn install() -> anyhow::Result<()> {
    let there = |program: &str| {
        let shell = format!("command -v {program}");
        Command::new("sh").args(["-c", &shell]).output().is_ok_and(|out| out.status.success())
    };
    let all = ["virsh", "libvirtd", "virtlogd"].into_iter().all(there);
    if all && Path::new("/usr/lib/x86_64-linux-gnu/libvirt/connection-driver").is_dir() {
        return Ok(());
    }
    println!("installing libvirt to compare with: {}", PACKAGES.join(" "));
    let status = Command::new("apt-get")
        .args(["install", "--yes", "--quiet", "--no-install-recommends"])
        .args(PACKAGES)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .status()
        .context("run apt-get")?;
    if !status.success() {
        bail!("libvirt cannot be installed; 'apt-get install {}' says why", PACKAGES.join(" "));
    }
    Ok(())
}

/// libvirt wants the part to be there, in every hierarchy that it uses.
fn partitions(name: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let controllers =
        ["cpu", "cpuacct", "cpuset", "memory", "devices", "blkio", "freezer", "unified"];
    let hierarchies = controllers.iter().map(|c| root.join(c)).filter(|dir| dir.is_dir());
    let mut all: Vec<PathBuf> = hierarchies.collect();
    if all.is_empty() {
        all.push(root.to_owned());
    }
    all.iter().map(|dir| dir.join(format!("{name}.partition"))).collect()
}

fn make_partition(name: &str) -> anyhow::Result<()> {
    for dir in partitions(name) {
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let parent = dir.parent().map(|p| p.join(file)).filter(|p| p.exists());
            if let Some(parent) =
                parent.filter(|p| p.components().any(|c| c.as_os_str() == "cpuset"))
            {
                fs::write(dir.join(file), fs::read(parent)?)?;
            }
        }
    }
    Ok(())
}

fn daemon_conf(dir: &Path, server: &Server) -> String {
    // Two on one machine are not one host: they would not move machines to each other.
    let digits: String = server.place.name.chars().filter(char::is_ascii_digit).collect();
    format!(
        "unix_sock_dir = \"{0}\"\nauth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n\
         log_outputs = \"3:stderr\"\nhost_uuid = \"8badf00d-0000-4000-8000-{digits:0>12}\"\n",
        dir.display()
    )
}

/// Debian's own user for machines comes with another package; libvirtd looks for it
/// even when its configuration names another one.
const USER: &str = "libvirt-qemu:x:1899999999:1899999999::/nonexistent:/usr/sbin/nologin\n";
const GROUP: &str = "libvirt-qemu:x:1899999999:\n";
const QEMU_CONF: &str = "user = \"+1899999999\"\ngroup = \"+1899999999\"\n\
                         security_default_confined = 0\n";

const DOMAIN: &str = r#"<domain type='qemu'>
  <name>@NAME@</name>
  <memory unit='MiB'>@MIB@</memory>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <vcpu>1</vcpu>
  <resource><partition>/@PARTITION@</partition></resource>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>@KERNEL@</kernel>
    <initrd>@INITRD@</initrd>
    <cmdline>@WORDS@</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='custom' match='exact' check='none'><model fallback='allow'>Nehalem</model></cpu>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    @DISK@
    <interface type='bridge'>
      <mac address='52:54:00:00:00:@NUMBER@'/>
      <source bridge='@BRIDGE@'/>
      <model type='virtio'/>
    </interface>
    @CONSOLE@
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <memballoon model='virtio'><stats period='5'/></memballoon>
    <watchdog model='i6300esb' action='pause'/>
    <panic model='isa'/>
  </devices>
</domain>
"#;

const DISK: &str = r"<disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source file='@DISK@'/>
      <target dev='vda' bus='virtio'/>
    </disk>";
