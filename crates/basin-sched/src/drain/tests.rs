//! Servers that are emptied, step by step until nothing more happens.

use basin_model::Bytes;
use proptest::prelude::*;

use super::*;
use crate::movable::tests::{LOCAL, SHARED, id, site, stores, vm};
use crate::movable::{MovingVm, Site};

const LIMITS: Limits = Limits { per_source: 2, per_target: 2, per_cluster: 3 };

fn cluster(servers: usize, vms: Vec<MovingVm>, drained: &[usize], local: bool) -> Snapshot {
    let mut snapshot = Snapshot {
        sites: (1..=servers).map(site).collect(),
        stores: stores(servers),
        vms,
        in_flight: vec![],
        drains: drained.iter().map(|n| (id(*n), Policy { move_local_disks: local })).collect(),
    };
    commit(&mut snapshot);
    snapshot
}

/// What the VMs take where they are.
fn commit(snapshot: &mut Snapshot) {
    for site in &mut snapshot.sites {
        let here = snapshot.vms.iter().filter(|vm| vm.on == site.host && vm.activity.is_active());
        site.committed = here.map(|vm| vm.memory + overhead(vm.memory)).sum();
    }
}

fn overhead(memory: Bytes) -> Bytes {
    crate::place::overhead(memory, true)
}

fn off(mut vm: MovingVm) -> MovingVm {
    vm.activity = Activity::Off;
    vm
}

/// `VM>server` of what starts, `VM` of what waits, and why the others are stuck.
fn check(snapshot: &Snapshot, start: &[&str], waiting: &[&str], stuck: &[&str]) {
    let name = |vm: VmId| snapshot.vms.iter().find(|v| v.vm == vm).unwrap().name.clone();
    let server = |h: HostId| snapshot.sites.iter().find(|s| s.host == h).unwrap().name.clone();
    let plan = plan(snapshot, &LIMITS);
    let found: Vec<String> =
        plan.start.iter().map(|s| format!("{}>{}", name(s.vm), server(s.to))).collect();
    assert_eq!(found, start, "{plan:#?}");
    let found: Vec<String> = plan.waiting.iter().map(|vm| name(*vm)).collect();
    assert_eq!(found, waiting);
    let found: Vec<String> =
        plan.stuck.iter().map(|s| format!("{}: {}", s.name, s.reasons().join("; "))).collect();
    assert_eq!(found, stuck);
}

#[test]
fn as_many_as_the_limits_allow() {
    let vms: Vec<MovingVm> = (1..=4).map(|n| vm(n, 1, SHARED)).collect();
    check(&cluster(3, vms.clone(), &[1], false), &["vm1>srv2", "vm2>srv3"], &["vm3", "vm4"], &[]);
    // Two servers at once share what the cluster may do.
    let both = (1..=4).map(|n| vm(n, 1 + n % 2, SHARED)).collect();
    let drained = cluster(4, both, &[1, 2], false);
    check(&drained, &["vm1>srv3", "vm2>srv4", "vm3>srv3"], &["vm4"], &[]);
    // What is under way counts, on both ends and whatever it is for.
    let mut busy = cluster(3, vms, &[1], false);
    busy.in_flight.push(busy.vms[3].in_flight(id(2), &Storage::Stay));
    check(&busy, &["vm1>srv3"], &["vm2", "vm3"], &[]);
}

#[test]
fn the_largest_first_and_only_where_there_is_room() {
    let mut vms: Vec<MovingVm> = (1..=3).map(|n| vm(n, 1, SHARED)).collect();
    vms[1].memory = Bytes::gib(12);
    vms[2].memory = Bytes::gib(14);
    let mut drained = cluster(2, vms, &[1], false);
    drained.sites[0].capacity.memory = Bytes::gib(64);
    let needs = "needs 12.4 GiB of memory (overhead included), and 1.6 GiB of the 16 GiB of srv2";
    let small = "needs 2.3 GiB of memory (overhead included), and 1.6 GiB of the 16 GiB of srv2";
    check(
        &drained,
        &["vm3>srv2"],
        &[],
        &[&format!("vm2: it {needs} are free"), &format!("vm1: it {small} are free")],
    );
}

#[test]
fn local_disks_move_along_when_asked_to() {
    let local = vec![vm(1, 1, LOCAL + 1), off(vm(2, 1, LOCAL + 1)), off(vm(3, 1, SHARED))];
    let why = "its disk 'root' is on datastore 'local1', which only its server reaches";
    check(
        &cluster(3, local.clone(), &[1], false),
        &["vm3>srv2"],
        &[],
        &[&format!("vm1: {why}"), &format!("vm2: {why}")],
    );
    let asked = cluster(3, local, &[1], true);
    check(&asked, &["vm1>srv2", "vm2>srv3", "vm3>srv3"], &[], &[]);
    let plan = plan(&asked, &LIMITS);
    // The roomiest datastore that the target reaches, what the first takes counted.
    let to = |n: usize, datastore: usize| Storage::Each([(id(1000 + n), id(datastore))].into());
    assert_eq!(plan.start[0].storage, to(1, SHARED));
    assert_eq!((plan.start[1].how, &plan.start[1].storage), (How::Cold, &to(2, LOCAL + 3)));
    assert_eq!((plan.start[2].how, &plan.start[2].storage), (How::Cold, &Storage::Stay));
}

#[test]
fn what_is_stuck_says_why_and_whether_it_passes() {
    let mut busy = vm(1, 1, SHARED);
    busy.held_by = Some("task 5 (vm-disk-add)".into());
    let drained = cluster(3, vec![busy, off(vm(2, 1, LOCAL + 1))], &[1], false);
    let plan = plan(&drained, &LIMITS);
    let [off, busy] = [1, 0].map(|n| &plan.stuck[n]);
    assert!(busy.blocks && busy.passes(), "{busy:?}");
    assert!(!off.blocks && !off.passes(), "{off:?}");
    let alone = cluster(1, vec![vm(1, 1, SHARED)], &[1], false);
    check(&alone, &[], &[], &["vm1: there is no other server"]);
    // Every other server is drained as well.
    let all = cluster(2, vec![vm(1, 1, SHARED)], &[1, 2], false);
    check(&all, &[], &[], &["vm1: there is no other server"]);
}

#[test]
fn a_server_is_empty_when_nothing_runs_or_moves_there() {
    let mut drained = cluster(3, vec![off(vm(1, 1, LOCAL + 1)), vm(2, 2, SHARED)], &[1, 2], false);
    assert_eq!(plan(&drained, &LIMITS).empty, [id(1)]);
    drained.in_flight.push(vm(3, 3, SHARED).in_flight(id(1), &Storage::Stay));
    assert_eq!(plan(&drained, &LIMITS).empty, []);
}

/// A cluster in some state of use, parts of it to be emptied.
fn clusters() -> impl Strategy<Value = (Snapshot, Limits)> {
    let servers = 2usize..6;
    servers.prop_flat_map(|servers| {
        let one = (1..=servers, 1u64..9, 0u8..4, prop::bool::ANY);
        let vms = prop::collection::vec(one, 0..24);
        let drained = prop::collection::btree_set(1..=servers, 0..servers);
        let limits = (1usize..4, 1usize..4, 1usize..6);
        let capacity = prop::collection::vec(16u64..64, servers);
        (vms, drained, limits, capacity, prop::bool::ANY).prop_map(
            move |(vms, drained, limits, capacity, local)| {
                let vms = vms.into_iter().enumerate().map(|(n, (on, gib, kind, alone))| {
                    let datastore = if alone { LOCAL + on } else { SHARED };
                    let mut vm = vm(n + 1, on, datastore);
                    vm.memory = Bytes::gib(gib);
                    if kind == 0 { off(vm) } else { vm }
                });
                let drained: Vec<usize> = drained.into_iter().collect();
                let mut snapshot = cluster(servers, vms.collect(), &drained, local);
                for (site, gib) in snapshot.sites.iter_mut().zip(capacity) {
                    // Whatever is there fits.
                    site.capacity.memory = Bytes::gib(gib).max(site.committed);
                }
                let (per_source, per_target, per_cluster) = limits;
                (snapshot, Limits { per_source, per_target, per_cluster })
            },
        )
    })
}

/// Lets the first move under way land.
fn land(snapshot: &mut Snapshot) {
    let flight = snapshot.in_flight.remove(0);
    let vm = snapshot.vms.iter_mut().find(|vm| vm.vm == flight.vm).unwrap();
    vm.on = flight.to;
    if let Some((to, _)) = flight.space.first() {
        vm.disks[0].datastore = *to;
    }
    commit(snapshot);
}

fn taken(snapshot: &Snapshot, site: &Site) -> Bytes {
    let coming = snapshot.in_flight.iter().filter(|f| f.to == site.host && f.from != site.host);
    let coming: Bytes = coming.filter_map(|f| f.memory).map(|m| m + overhead(m)).sum();
    site.committed + coming
}

fn within(snapshot: &Snapshot, limits: &Limits) -> Result<(), TestCaseError> {
    let flights = &snapshot.in_flight;
    prop_assert!(flights.len() <= limits.per_cluster);
    for site in &snapshot.sites {
        let leaving = flights.iter().filter(|f| f.from == site.host).count();
        let coming = flights.iter().filter(|f| f.to == site.host).count();
        prop_assert!(leaving <= limits.per_source && coming <= limits.per_target);
        prop_assert!(taken(snapshot, site) <= site.capacity.memory, "{} is overfull", site.name);
    }
    Ok(())
}

proptest! {
    #[test]
    fn it_ends_within_every_limit_and_leaves_only_what_cannot_move(
        (mut snapshot, limits) in clusters(),
        landings in prop::collection::vec(prop::bool::ANY, 0..8),
    ) {
        let mut landings = landings.into_iter();
        let mut moves = 0;
        loop {
            let planned = plan(&snapshot, &limits);
            prop_assert_eq!(&planned, &plan(&snapshot, &limits), "the same snapshot, another plan");
            for start in &planned.start {
                prop_assert!(snapshot.drains.contains_key(&start.from));
                prop_assert!(!snapshot.drains.contains_key(&start.to));
                let vm = snapshot.vms.iter_mut().find(|vm| vm.vm == start.vm).unwrap();
                prop_assert_eq!(vm.on, start.from);
                if start.how == How::Cold && start.storage == Storage::Stay {
                    vm.on = start.to;
                } else {
                    let flight = vm.in_flight(start.to, &start.storage);
                    snapshot.in_flight.push(flight);
                }
            }
            within(&snapshot, &limits)?;
            moves += planned.start.len();
            prop_assert!(moves <= snapshot.vms.len(), "a VM moves twice");
            if snapshot.in_flight.is_empty() {
                prop_assert!(planned.waiting.is_empty(), "they wait for nothing: {:?}", planned);
                if planned.start.is_empty() {
                    break;
                }
            }
            // One lands, or all do: the next plan is made in either state.
            let all = landings.next().unwrap_or(true);
            while !snapshot.in_flight.is_empty() {
                land(&mut snapshot);
                if !all {
                    break;
                }
            }
        }
        let last = plan(&snapshot, &limits);
        let left: BTreeSet<VmId> = snapshot.vms.iter()
            .filter(|vm| snapshot.drains.contains_key(&vm.on)).map(|vm| vm.vm).collect();
        let stuck: BTreeSet<VmId> = last.stuck.iter().map(|s| s.vm).collect();
        prop_assert_eq!(left, stuck);
        for host in snapshot.drains.keys() {
            let blocked = last.stuck.iter().any(|s| s.on == *host && s.blocks);
            prop_assert_eq!(last.empty.contains(host), !blocked);
        }
    }
}
