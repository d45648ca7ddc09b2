//! Full guests on the firmware that machines have.

use basin_api::image::ImageKind;
use basin_api::vm::{Boot, State};
use basin_e2e::{BOOT, Server, eventually, images};

#[test]
fn debian_under_uefi() {
    let server = Server::start();
    server.import("debian", ImageKind::Disk, &images::debian_disk());
    let key = server.place.dir.join("key").display().to_string();
    server.sh(&format!("ssh-keygen -q -t ed25519 -N '' -f {key}"));
    let public = std::fs::read_to_string(format!("{key}.pub")).unwrap();
    let guest = server.create(&server.debian("deb", Boot::Uefi, public.trim()));
    guest.start();

    let options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
                   -o BatchMode=yes -o ConnectTimeout=10";
    let ssh = format!("ssh -i {key} {options} debian@{}", guest.address());
    let seen = eventually("an SSH log-in", 2 * BOOT, || {
        let script = format!("{ssh} 'hostname; test -d /sys/firmware/efi && echo uefi'");
        let out = server.place.command("sh").args(["-c", &script]).output().unwrap();
        out.status.success().then(|| String::from_utf8_lossy(&out.stdout).into_owned())
    });
    assert_eq!(seen.lines().collect::<Vec<_>>(), ["deb", "uefi"]);

    let agent = eventually("the guest agent tells", BOOT, || {
        guest.vm().status.usage?.guest.filter(|g| g.hostname.is_some() && !g.addresses.is_empty())
    });
    assert_eq!(agent.hostname.as_deref(), Some("deb"));
    assert!(agent.os.is_some_and(|os| os.contains("Debian")));
    assert!(
        agent.addresses.iter().any(|a| a.starts_with(&guest.address())),
        "{:?}",
        agent.addresses
    );
    guest.shut_down(240);
    assert_eq!(guest.state(), State::Stopped);
}

/// As far as the kernel: the rest is the same as under UEFI.
#[test]
fn debian_under_bios() {
    let server = Server::start();
    server.import("debian", ImageKind::Disk, &images::debian_disk());
    let mut vm = server.debian("deb", Boot::Bios, "");
    vm.cloud_init = None;
    let guest = server.create(&vm);
    guest.start();
    guest.console().expect("systemd[1]:");
    guest.power_off();
    assert_eq!(guest.state(), State::Stopped);
}
