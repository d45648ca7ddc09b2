//! One VM, two servers, one thing changed at a time: what is said of it.

use basin_model::hardware::{CpuClass, CpuModels, CpuVendor, GuestHardware, HardwareFacts};
use basin_model::host::HostCapacity;
use basin_model::vm::Machine;
use basin_model::{Bytes, DatastoreId, HostId, NetworkId, Vcpus, VmId, VolumeId};

use super::*;

pub(crate) fn id<T: std::str::FromStr>(n: usize) -> T {
    let text = format!("00000000-0000-0000-0000-{n:012x}");
    text.parse().unwrap_or_else(|_| panic!("{text}"))
}

pub(crate) const LOCAL: usize = 100;
pub(crate) const SHARED: usize = 99;

fn facts(class: CpuClass, models: &[(&str, &[&str])], q35: &str) -> HardwareFacts {
    let own = |f: &&str| (*f).to_owned();
    let models = models.iter().map(|(m, missing)| (own(m), missing.iter().map(own).collect()));
    let q35 = q35.split_whitespace().map(|v| v.parse().unwrap()).collect();
    HardwareFacts { class, cpus: CpuModels::new(models, BTreeMap::new()), q35 }
}

/// More servers than a test has.
const MOST: usize = 9;

fn elsewhere(owner: usize) -> (DatastoreId, String) {
    (id(LOCAL + owner), format!("it is on srv{owner} alone"))
}

/// Server `n`, which reaches the shared datastore and its own.
pub(crate) fn site(n: usize) -> Site {
    Site {
        host: id(n),
        name: format!("srv{n}"),
        silent: None,
        unusable: None,
        draining: false,
        capacity: HostCapacity { cpus: Vcpus(8), memory: Bytes::gib(16) },
        committed: Bytes::ZERO,
        emulated: true,
        hardware: Some(facts(CpuClass::Tcg, &[("Nehalem-v1", &[])], "7.2")),
        qemu: Some("7.2.22".to_owned()),
        daemon: "0.2.0".to_owned(),
        without_datastores: (1..=MOST).filter(|other| *other != n).map(elsewhere).collect(),
        without_networks: BTreeMap::new(),
    }
}

/// The shared datastore, and one of each server.
pub(crate) fn stores(servers: usize) -> Stores {
    let store = |name: String, local_to| Store { name, local_to, free: Some(Bytes::gib(100)) };
    let local =
        (1..=servers).map(|n| (id(LOCAL + n), store(format!("local{n}"), Some(id::<HostId>(n)))));
    local.chain([(id(SHARED), store("shared".to_owned(), None))]).collect()
}

/// It runs on server `on`, with one disk in `datastore`.
pub(crate) fn vm(n: usize, on: usize, datastore: usize) -> MovingVm {
    MovingVm {
        vm: id(n),
        name: format!("vm{n}"),
        on: id(on),
        vcpus: Vcpus(2),
        memory: Bytes::gib(2),
        machine: Machine::Q35,
        hardware: Some(GuestHardware {
            class: CpuClass::Tcg,
            cpu: "Nehalem-v1".to_owned(),
            machine_version: Some("7.2".parse().unwrap()),
        }),
        activity: Activity::Running,
        qemu: Some("7.2.22".to_owned()),
        disks: vec![disk("root", 1000 + n, datastore)],
        networks: vec![(id(50), "default".to_owned())],
        passthrough: vec![],
        held_by: None,
    }
}

fn disk(name: &str, volume: usize, datastore: usize) -> MovingDisk {
    MovingDisk {
        volume: id(volume),
        name: name.to_owned(),
        datastore: id(datastore),
        reads_through: vec![],
        needs: Bytes::gib(10),
        fixed: None,
        stalled: None,
    }
}

/// Everything of a move from srv1 to srv2.
pub(crate) struct Case {
    vm: MovingVm,
    source: Site,
    target: Site,
    stores: Stores,
    storage: Storage,
}

fn check(edit: impl FnOnce(&mut Case), expect: &[&str]) {
    let (source, target) = (site(1), site(2));
    let vm = vm(7, 1, SHARED);
    let mut case = Case { vm, source, target, stores: stores(3), storage: Storage::Stay };
    edit(&mut case);
    let Case { vm, source, target, stores, storage } = &case;
    let found = super::check(vm, source, target, stores, storage);
    let said: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(said, expect);
    assert!(found.iter().all(|obstacle| obstacle.advice().ends_with('.')));
}

#[test]
fn a_guest_on_shared_storage_moves() {
    check(|_| {}, &[]);
    check(|c| c.vm.activity = Activity::Paused, &[]);
    // A newer QEMU, with the old machine.
    check(
        |c| {
            c.target.qemu = Some("10.0.2".to_owned());
            c.target.hardware.as_mut().unwrap().q35.push("10.0".parse().unwrap());
        },
        &[],
    );
    // Within a release either way.
    check(|c| c.target.qemu = Some("7.2.5".to_owned()), &[]);
    check(|c| c.target.daemon = "0.1.9".to_owned(), &[]);
}

#[test]
fn the_vm_itself() {
    check(
        |c| c.vm.held_by = Some("task 12 (vm-delete)".into()),
        &["task 12 (vm-delete) works on it"],
    );
    check(|c| c.vm.activity = Activity::Changing("starting".into()), &["it is starting"]);
    check(|c| c.vm.activity = Activity::Crashed, &["its guest crashed and was left as it is"]);
    check(
        |c| c.vm.passthrough = vec!["PCI 0000:3b:00.0".into()],
        &["its guest drives PCI 0000:3b:00.0, a device of the server itself"],
    );
    check(
        |c| c.vm.disks[0].stalled = Some("its datastore is full".into()),
        &["its disk 'root' stands still: its datastore is full"],
    );
    check(|c| c.target = c.source.clone(), &["it is on srv1 already"]);
}

#[test]
fn what_the_guest_sees() {
    let intel = || CpuClass::Kvm { vendor: CpuVendor::Intel };
    check(
        |c| c.vm.hardware = None,
        &["nobody noted which CPU and machine its guest sees when it was started"],
    );
    check(
        |c| c.target.hardware = None,
        &["srv2 has not said which CPUs and machines its QEMU can give"],
    );
    check(
        |c| c.target.hardware = Some(facts(intel(), &[], "7.2")),
        &["its guest runs by emulation (TCG), and guests on srv2 by KVM on Intel"],
    );
    let kvm = |cpu: &'static str, here: &'static [&'static str], there: &'static [&'static str]| {
        move |c: &mut Case| {
            let sees = c.vm.hardware.as_mut().unwrap();
            (sees.class, sees.cpu) = (intel(), cpu.to_owned());
            c.source.hardware = Some(facts(intel(), &[("Haswell-v4", here)], "7.2"));
            c.target.hardware = Some(facts(intel(), &[("Haswell-v4", there)], "7.2"));
        }
    };
    check(kvm("Haswell-v4", &[], &[]), &[]);
    check(
        kvm("Haswell-v4", &[], &["avx2", "bmi2"]),
        &["srv2 lacks features of its CPU model Haswell-v4: avx2, bmi2"],
    );
    // Named by somebody, whole nowhere: the same in both places, or not.
    check(kvm("Haswell-v4", &["pcid"], &["pcid"]), &[]);
    check(
        kvm("Haswell-v4", &["pcid"], &["avx2"]),
        &[
            "srv2 lacks features of its CPU model Haswell-v4: avx2",
            "its CPU model Haswell-v4 is only in part there where it runs, and would have more on \
             srv2, under the running guest: pcid",
        ],
    );
    check(kvm("EPYC-v9", &[], &[]), &["the QEMU of srv2 does not know the CPU model EPYC-v9"]);
    check(
        kvm("host", &[], &[]),
        &["its guest sees its server's own CPU, which no other server is sure to have"],
    );
    check(
        |c| {
            c.vm.hardware.as_mut().unwrap().machine_version = Some("9.2".parse().unwrap());
            c.vm.qemu = Some("9.2.1".to_owned());
        },
        &[
            "the QEMU of srv2 has no machine pc-q35-9.2, only 7.2",
            "it runs on QEMU 9.2.1, and that of srv2 is older: 7.2.22",
        ],
    );
    check(
        |c| {
            c.vm.machine = Machine::Microvm;
            c.vm.hardware.as_mut().unwrap().machine_version = None;
            c.target.qemu = Some("8.0.0".to_owned());
        },
        &["it is a microvm, which only the same release of QEMU can receive: it runs on 7.2.22, \
           and srv2 has 8.0.0"],
    );
}

#[test]
fn the_servers() {
    let silent = || Some("no answer for 40 s".to_owned());
    check(|c| c.target.silent = silent(), &["srv2 does not answer: no answer for 40 s"]);
    check(|c| c.source.silent = silent(), &["srv1 does not answer: no answer for 40 s"]);
    check(
        |c| c.target.unusable = Some("QEMU is missing".into()),
        &["srv2 cannot run VMs: QEMU is missing"],
    );
    check(|c| c.target.draining = true, &["srv2 is being drained"]);
    check(
        |c| c.target.daemon = "0.4.0".to_owned(),
        &["srv2 runs Basin 0.4.0, more than one release away from 0.2.0 where the VM is"],
    );
    check(|c| c.target.capacity.cpus = Vcpus(1), &["its 2 vCPUs are more than the 1 CPUs of srv2"]);
    check(
        |c| c.target.committed = Bytes::gib(15),
        &["it needs 2.3 GiB of memory (overhead included), and 1 GiB of the 16 GiB of srv2 are \
           free"],
    );
    check(
        |c| drop(c.target.without_networks.insert(id::<NetworkId>(50), "nft is missing".into())),
        &["network 'default' is not on srv2: nft is missing"],
    );
}

#[test]
fn disks() {
    let local = |c: &mut Case| c.vm.disks[0].datastore = id(LOCAL + 1);
    let sentence = "its disk 'root' is on datastore 'local1', which only its server reaches";
    check(local, &[sentence]);
    let to = |n: usize| Storage::All(id::<DatastoreId>(n));
    let moved = |n: usize| {
        move |c: &mut Case| {
            local(c);
            c.storage = to(n);
        }
    };
    check(moved(SHARED), &[]);
    check(moved(LOCAL + 2), &[]);
    check(moved(LOCAL + 3), &["srv2 does not reach datastore 'local3': it is on srv3 alone"]);
    check(moved(77), &["there is no datastore '00000000-0000-0000-0000-00000000004d'"]);
    // One of two disks goes along, and together they are too large.
    check(
        |c| {
            local(c);
            c.vm.disks.push(disk("data", 2, LOCAL + 1));
            c.storage = Storage::Each([(id::<VolumeId>(2), id(SHARED))].into());
        },
        &[sentence],
    );
    check(
        |c| {
            local(c);
            c.vm.disks.push(disk("data", 2, LOCAL + 1));
            c.storage = to(SHARED);
            c.stores.get_mut(&id(SHARED)).unwrap().free = Some(Bytes::gib(19));
        },
        &["its disks need 20 GiB on datastore 'shared', where 19 GiB are free"],
    );
    check(
        |c| {
            local(c);
            c.storage = to(SHARED);
            c.stores.get_mut(&id(SHARED)).unwrap().free = None;
        },
        &["nobody can say how much space datastore 'shared' has"],
    );
    check(
        |c| drop(c.target.without_datastores.insert(id(SHARED), "it is not mounted".into())),
        &["srv2 does not reach datastore 'shared': it is not mounted"],
    );
    check(
        |c| {
            local(c);
            c.vm.disks[0].fixed = Some("it is read-only".to_owned());
            c.storage = to(SHARED);
        },
        &["its disk 'root' cannot move along: it is read-only"],
    );
    // What a linked clone reads through counts as well.
    check(|c| c.vm.disks[0].reads_through = vec![id(LOCAL + 1)], &[sentence]);
    // Only disks move, on the same server.
    check(
        |c| {
            c.target = c.source.clone();
            c.storage = to(LOCAL + 1);
        },
        &[],
    );
}

#[test]
fn a_vm_that_is_off_needs_only_its_disks() {
    check(
        |c| {
            c.vm.activity = Activity::Off;
            (c.vm.hardware, c.vm.qemu) = (None, None);
            c.target.hardware = None;
            c.target.committed = Bytes::gib(16);
            c.source.silent = Some("it is gone".into());
        },
        &[],
    );
    check(
        |c| {
            c.vm.activity = Activity::Off;
            c.vm.disks[0].datastore = id(LOCAL + 1);
        },
        &["its disk 'root' is on datastore 'local1', which only its server reaches"],
    );
}

#[test]
fn all_obstacles_are_told_at_once() {
    check(
        |c| {
            c.vm.disks[0].datastore = id(LOCAL + 1);
            c.vm.held_by = Some("task 3".into());
            c.target.draining = true;
            c.target.committed = Bytes::gib(16);
        },
        &[
            "task 3 works on it",
            "srv2 is being drained",
            "it needs 2.3 GiB of memory (overhead included), and 0 B of the 16 GiB of srv2 are free",
            "its disk 'root' is on datastore 'local1', which only its server reaches",
        ],
    );
}

#[test]
fn the_roomiest_server_without_an_obstacle_is_chosen() {
    let mut sites: Vec<Site> = (1..=4).map(site).collect();
    sites[1].committed = Bytes::gib(4);
    sites[2].committed = Bytes::gib(2);
    sites[3].draining = true;
    let vm: MovingVm = vm(7, 1, SHARED);
    let choice = choose_target(&vm, &sites, &stores(4), &Storage::Stay);
    assert_eq!(choice.chosen, Some(id(3)));
    let full = PassedOver::FullerThan { chosen: "srv3".into() };
    let draining = Obstacle::Draining { server: "srv4".into() };
    let draining = PassedOver::Obstacles(vec![draining]);
    assert_eq!(choice.others, [("srv2".to_owned(), full), ("srv4".to_owned(), draining)]);

    // Moves under way to srv3 make it the fuller one.
    let other = tests::vm(8, 2, SHARED).in_flight(id(3), &Storage::Stay);
    let mut stores = stores(4);
    count_in_flight(&mut sites, &mut stores, &[other.clone(), InFlight { vm: id(9), ..other }]);
    let choice = choose_target(&vm, &sites, &stores, &Storage::Stay);
    assert_eq!(choice.chosen, Some(id(2)));
    let _: VmId = vm.vm;
}
