//! Pure. What the facts about a server mean for its VMs.

use basin_model::Bytes;
use basin_model::host::QemuInfo;

use super::facts::Facts;
use super::{Finding, Severity};

const OLDEST_KERNEL: (u32, u32) = (6, 1);

/// Less free space than this, and the store itself is in danger soon.
const LITTLE_SPACE: Bytes = Bytes::gib(1);
const SOME_SPACE: Bytes = Bytes::gib(10);

pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut all = vec![user(facts), kernel(facts), qemu(facts), kvm(facts)];
    all.extend(firmware(facts));
    all.extend(facts.programs.iter().map(|(name, there)| program(name, *there)));
    all.extend([tun(facts), cgroups(facts), daemon(facts), space(facts)]);
    all.extend([io_uring(facts), memfd(facts), overcommit(facts)]);
    all.extend(facts.ports.iter().map(|(address, free)| port(facts, address, free)));
    all.extend([clock(facts), memory(facts), swap(facts), ksm(facts)]);
    all
}

fn ok(what: &str, why: impl Into<String>) -> Finding {
    finding(Severity::Ok, what, why, "")
}

fn warning(what: &str, why: impl Into<String>, advice: &str) -> Finding {
    finding(Severity::Warning, what, why, advice)
}

fn problem(what: &str, why: impl Into<String>, advice: &str) -> Finding {
    finding(Severity::Problem, what, why, advice)
}

fn finding(severity: Severity, what: &str, why: impl Into<String>, advice: &str) -> Finding {
    Finding { severity, what: what.to_owned(), why: why.into(), advice: advice.to_owned() }
}

fn user(facts: &Facts) -> Finding {
    match facts.root {
        true => ok("user", "root"),
        false => problem("user", "not root", "run it as root: VMs need taps, cgroups and users"),
    }
}

fn kernel(facts: &Facts) -> Finding {
    match facts.kernel {
        Some((major, minor)) if (major, minor) >= OLDEST_KERNEL => {
            ok("kernel", format!("{major}.{minor}"))
        }
        Some((major, minor)) => {
            let why = format!("{major}.{minor} is older than 6.1");
            warning("kernel", why, "upgrade: Basin is tested on 6.1 and newer")
        }
        None => warning("kernel", "its version cannot be read", "check that it is 6.1 or newer"),
    }
}

fn qemu(facts: &Facts) -> Finding {
    match &facts.qemu {
        QemuInfo::Usable { path, version } => ok("QEMU", format!("{version} at {path}")),
        QemuInfo::Unusable { reason } => {
            let advice = "install QEMU 7.2 or newer: apt-get install qemu-system-x86";
            problem("QEMU", reason, advice)
        }
    }
}

fn kvm(facts: &Facts) -> Finding {
    if facts.kvm.usable {
        return ok("KVM", &facts.kvm.reason);
    }
    let advice = "VMs run by emulation, many times slower; switch on VT-x or AMD-V in the \
                  firmware, or nested virtualization where this server is itself a VM";
    warning("KVM", &facts.kvm.reason, advice)
}

fn firmware(facts: &Facts) -> [Finding; 2] {
    let bios = match facts.bios_firmware {
        true => ok("SeaBIOS", "installed"),
        false => problem(
            "SeaBIOS",
            "not installed: VMs that boot by BIOS do not start",
            "apt-get install seabios",
        ),
    };
    let uefi = match facts.uefi_firmware {
        true => ok("OVMF", "installed"),
        false => warning(
            "OVMF",
            "not installed: VMs that boot by UEFI do not start",
            "apt-get install ovmf",
        ),
    };
    [bios, uefi]
}

fn program(name: &str, there: bool) -> Finding {
    let (without, advice) = match name {
        "qemu-img" => ("images cannot be imported", "apt-get install qemu-utils"),
        "dnsmasq" => ("networks have no DHCP and DNS", "apt-get install dnsmasq-base"),
        _ => ("networks cannot be set up", "apt-get install nftables"),
    };
    match there {
        true => ok(name, "installed"),
        false => problem(name, format!("not installed: {without}"), advice),
    }
}

fn tun(facts: &Facts) -> Finding {
    match facts.tun {
        true => ok("taps", "/dev/net/tun is there"),
        false => problem("taps", "/dev/net/tun is missing", "load the module: modprobe tun"),
    }
}

fn cgroups(facts: &Facts) -> Finding {
    match facts.cgroups.as_str() {
        "none" => problem(
            "cgroups",
            "not mounted: VMs cannot be confined or found again",
            "mount them: mount -t cgroup2 none /sys/fs/cgroup",
        ),
        "v1" => warning(
            "cgroups",
            "v1: VMs run, but are confined less well",
            "boot with systemd.unified_cgroup_hierarchy=1, where the distribution allows",
        ),
        version => ok("cgroups", version),
    }
}

fn daemon(facts: &Facts) -> Finding {
    let dir = facts.state_dir.display();
    match &facts.daemon {
        Some(pid) => ok("daemon", format!("runs on {dir}, process {pid}")),
        None => ok("daemon", format!("none runs on {dir}")),
    }
}

fn space(facts: &Facts) -> Finding {
    let dir = facts.state_dir.display();
    let advice = "free some, or mount a larger file system there";
    match &facts.space {
        Ok((free, _)) if *free < LITTLE_SPACE => {
            problem("space", format!("{free} free at {dir}: the store may stop"), advice)
        }
        Ok((free, _)) if *free < SOME_SPACE => {
            warning("space", format!("{free} free at {dir}: little for disks and images"), advice)
        }
        Ok((free, total)) => ok("space", format!("{free} of {total} free at {dir}")),
        Err(error) => problem("space", format!("{dir}: {error}"), "check the file system"),
    }
}

fn io_uring(facts: &Facts) -> Finding {
    match &facts.io_uring {
        Ok(()) => ok("io_uring", "usable"),
        Err(error) => problem(
            "io_uring",
            format!("refused: {error}; disks cannot be served"),
            "set kernel.io_uring_disabled to 0, and allow it in the container if this is one",
        ),
    }
}

fn memfd(facts: &Facts) -> Finding {
    match &facts.memfd {
        Ok(()) => ok("memfd", "usable"),
        Err(error) => problem(
            "memfd",
            format!("refused: {error}; guests' memory cannot be made"),
            "allow memfd_create where this server confines the daemon",
        ),
    }
}

fn overcommit(facts: &Facts) -> Finding {
    match facts.overcommit {
        Some(2) => warning(
            "memory overcommit",
            "vm.overcommit_memory is 2: large VMs may be refused though there is memory",
            "set vm.overcommit_memory to 0",
        ),
        _ => ok("memory overcommit", "allowed"),
    }
}

fn port(facts: &Facts, address: &str, free: &Result<(), String>) -> Finding {
    match (free, &facts.daemon) {
        (Ok(()), _) => ok(address, "free"),
        (Err(_), Some(pid)) => ok(address, format!("in use while daemon {pid} runs")),
        (Err(error), None) => problem(
            address,
            error,
            "find who has it with ss -ltnp, or have the daemon listen elsewhere",
        ),
    }
}

fn clock(facts: &Facts) -> Finding {
    match facts.clock_synchronised {
        true => ok("clock", "synchronised"),
        false => warning(
            "clock",
            "not synchronised: certificates and logs of several servers may disagree",
            "run chrony or systemd-timesyncd",
        ),
    }
}

fn memory(facts: &Facts) -> Finding {
    match facts.memory_limit {
        Some(limit) if limit < facts.memory => warning(
            "memory",
            format!("this process may use {limit} of the server's {}", facts.memory),
            "offer no more than that to VMs, or start the daemon outside of that cgroup",
        ),
        _ => ok("memory", facts.memory.to_string()),
    }
}

fn swap(facts: &Facts) -> Finding {
    match facts.swap {
        Bytes::ZERO => ok("swap", "none"),
        swap => warning(
            "swap",
            format!("{swap}: guests' memory may be swapped out, and its contents lie on disk"),
            "switch it off where guests must answer fast: swapoff -a",
        ),
    }
}

fn ksm(facts: &Facts) -> Finding {
    match facts.ksm {
        false => ok("KSM", "off"),
        true => warning(
            "KSM",
            "on: it costs CPU, and cannot merge guests' memory, which is shared with blockd",
            "switch it off: echo 0 > /sys/kernel/mm/ksm/run",
        ),
    }
}

#[cfg(test)]
mod tests {
    use basin_model::host::KvmVerdict;

    use super::*;

    fn good() -> Facts {
        Facts {
            root: true,
            kernel: Some((6, 1)),
            qemu: QemuInfo::Usable { path: "/usr/bin/q".into(), version: "7.2.0".into() },
            kvm: KvmVerdict { usable: true, reason: "works".into() },
            uefi_firmware: true,
            bios_firmware: true,
            programs: vec![("qemu-img", true), ("dnsmasq", true), ("nft", true)],
            tun: true,
            cgroups: "v2".into(),
            state_dir: "/var/lib/basin".into(),
            space: Ok((Bytes::gib(100), Bytes::gib(200))),
            daemon: None,
            io_uring: Ok(()),
            memfd: Ok(()),
            overcommit: Some(0),
            ports: vec![("0.0.0.0:7443".into(), Ok(()))],
            clock_synchronised: true,
            memory: Bytes::gib(64),
            memory_limit: Some(Bytes(u64::MAX)),
            swap: Bytes::ZERO,
            ksm: false,
        }
    }

    fn check(spoil: impl Fn(&mut Facts), expect: &[(Severity, &str)]) {
        let mut facts = good();
        spoil(&mut facts);
        let all = judge(&facts);
        let bad: Vec<_> = all.iter().filter(|f| f.severity != Severity::Ok).collect();
        let seen: Vec<_> = bad.iter().map(|f| (f.severity, f.what.as_str())).collect();
        assert_eq!(seen, expect);
        assert!(bad.iter().all(|f| !f.advice.is_empty()), "{bad:#?}");
    }

    #[test]
    fn each_fault_is_found_and_nothing_else() {
        use Severity::{Problem, Warning};
        check(|_| {}, &[]);
        check(|f| f.root = false, &[(Problem, "user")]);
        check(|f| f.kernel = Some((5, 10)), &[(Warning, "kernel")]);
        check(|f| f.qemu = QemuInfo::Unusable { reason: "old".into() }, &[(Problem, "QEMU")]);
        check(|f| f.kvm.usable = false, &[(Warning, "KVM")]);
        check(|f| f.uefi_firmware = false, &[(Warning, "OVMF")]);
        check(|f| f.programs[1].1 = false, &[(Problem, "dnsmasq")]);
        check(|f| f.cgroups = "none".into(), &[(Problem, "cgroups")]);
        check(|f| f.space = Ok((Bytes::mib(1), Bytes::gib(1))), &[(Problem, "space")]);
        check(|f| f.io_uring = Err("EPERM".into()), &[(Problem, "io_uring")]);
        check(|f| f.overcommit = Some(2), &[(Warning, "memory overcommit")]);
        check(|f| f.ports[0].1 = Err("in use".into()), &[(Problem, "0.0.0.0:7443")]);
        check(|f| f.memory_limit = Some(Bytes::gib(1)), &[(Warning, "memory")]);
        check(|f| f.swap = Bytes::gib(1), &[(Warning, "swap")]);
        check(|f| f.ksm = true, &[(Warning, "KSM")]);
    }

    #[test]
    fn a_running_daemon_may_have_its_own_port() {
        let spoil = |f: &mut Facts| {
            f.daemon = Some("7".into());
            f.ports[0].1 = Err("in use".into());
        };
        check(spoil, &[]);
    }
}
