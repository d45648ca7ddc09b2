//! Which servers reach what, on snapshots made by hand.

use super::*;
use basin_model::datastore::DatastoreKind;
use basin_model::host::{Host, HostStatus};
use basin_model::task::Problem;
use basin_model::volume::{VolumeFormat, VolumeState};
use basin_model::{Bytes, Meta};
use basin_store::Revision;
use basin_store::records::Versioned;
use serde_json::json;
use uuid::Uuid;

fn versioned<T>(value: T) -> Versioned<T> {
    Versioned::new(String::new(), value, Revision(1))
}

fn host(n: u128) -> HostId {
    HostId::from_uuid(Uuid::from_u128(n))
}

fn place(n: u128) -> DatastoreId {
    DatastoreId::from_uuid(Uuid::from_u128(n))
}

fn volume_id(n: u128) -> VolumeId {
    VolumeId::from_uuid(Uuid::from_u128(n))
}

fn meta(name: String) -> Meta {
    let (description, labels) = Default::default();
    let created_at = "2026-01-01T00:00:00Z".parse().unwrap();
    Meta { name: name.parse().unwrap(), description, labels, created_at }
}

fn status(n: u128, shared: &[u128], trouble: &[u128]) -> HostStatus {
    let conditions: Vec<_> = trouble
        .iter()
        .map(|d| {
            json!({"subject": format!("datastore/{}", place(*d)),
                   "problem": {"code": "x", "detail": "not mounted", "advice": "mount it"}})
        })
        .collect();
    serde_json::from_value(json!({
        "host": host(n), "daemon_version": "0", "boot_id": "", "kernel": "", "cpu_model": "",
        "started_at": "2026-01-01T00:00:00Z", "capacity": {"cpus": 1, "memory": 1}, "cgroups": "",
        "qemu": {"state": "unusable", "reason": ""}, "kvm": {"usable": false, "reason": ""},
        "conditions": conditions,
        "shared_datastores": shared.iter().map(|d| place(*d)).collect::<Vec<_>>(),
    }))
    .unwrap()
}

/// Servers 1 to 3; datastore 1 on srv1, 2 on srv2, 7 shared and proven on 1 and 2,
/// where srv2 has lost it. Volume N is in datastore N, and 17 is linked to volume 1.
fn snapshot() -> Snapshot {
    let mut s = Snapshot::default();
    for (n, shared, trouble) in
        [(1, vec![7], vec![]), (2, vec![7], vec![7, 2]), (3, vec![], vec![])]
    {
        let meta = meta(format!("srv{n}"));
        let record = Host {
            id: host(n),
            meta,
            address: None,
            api_port: None,
            drain: None,
            trunks: Vec::new(),
        };
        s.hosts.insert(record.id, versioned(record));
        s.host_statuses.insert(host(n), versioned(status(n, &shared, &trouble)));
    }
    let local = |n| Sharing::Local(host(n));
    for (n, sharing) in [(1, local(1)), (2, local(2)), (7, Sharing::Shared { maker: host(1) })] {
        let record = Datastore {
            id: place(n),
            meta: meta(format!("place{n}")),
            sharing,
            kind: DatastoreKind::Dir { path: "/srv".into() },
            quota: None,
            overcommit_percent: 200,
            state: DatastoreState::Ready,
        };
        s.datastores.insert(record.id, versioned(record));
    }
    let linked = VolumeSource::LinkedVolume { volume: volume_id(1) };
    let blank = VolumeSource::Blank;
    for (n, datastore, source) in [(1, 1, blank), (2, 2, blank), (7, 7, blank), (17, 7, linked)] {
        let record = Volume {
            id: volume_id(n),
            meta: meta(format!("v{n}")),
            datastore: place(datastore),
            format: VolumeFormat::Qcow2,
            size: Bytes::mib(1),
            source,
            state: VolumeState::Ready,
        };
        s.volumes.insert(record.id, versioned(record));
    }
    s
}

fn vm(disks: &[u128]) -> Vm {
    let disk = |n: &u128| json!({"volume": volume_id(*n), "serial": "x"});
    serde_json::from_value(json!({
        "id": Uuid::from_u128(99), "meta": meta("a".into()),
        "spec": {"vcpus": 1, "memory": 1 << 26,
                 "disks": disks.iter().map(disk).collect::<Vec<_>>()},
        "run": {"power": {"state": "running"}, "epoch": 1, "resets": 0},
        "placement": {"host": host(2), "generation": 1},
    }))
    .unwrap()
}

fn check(disks: &[u128], when: When, expect: &[u128], why: &[(u128, &str)]) {
    let reach = reachable_from(&vm(disks), when, &snapshot());
    assert_eq!(reach.hosts, expect.iter().map(|n| host(*n)).collect(), "{reach:?}");
    assert_eq!(reach.hosts.len() + reach.cut_off.len(), 3);
    for (n, words) in why {
        let said = &reach.cut_off[&host(*n)];
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn a_vm_runs_where_all_its_disks_can_be_reached() {
    check(&[], When::Now, &[1, 2, 3], &[]);
    check(&[1], When::Now, &[1], &[(2, "datastore 'place1' is on server srv1 alone")]);
    let lost = "it does not reach datastore 'place7': not mounted";
    check(&[7], When::Now, &[1], &[(2, lost), (3, "not been checked yet")]);
    check(&[7], When::Ever, &[1, 2, 3], &[]);
    check(&[17], When::Ever, &[1], &[(3, "'place1' is on server srv1")]);
    check(&[2], When::Now, &[], &[(2, "not mounted"), (1, "srv2 alone")]);
    check(&[2], When::Ever, &[2], &[]);
    check(&[1, 2], When::Ever, &[], &[]);
}

fn chosen(datastores: &[u128], preferred: u128, expect: Result<u128, &str>) {
    let all: Vec<_> = datastores.iter().map(|n| place(*n)).collect();
    said(choose(&all, host(preferred), &snapshot()), expect);
}

fn said(got: Result<HostId, Problem>, expect: Result<u128, &str>) {
    match expect {
        Ok(n) => assert_eq!(got.unwrap(), host(n)),
        Err(words) => {
            let problem = got.unwrap_err();
            assert!(problem.detail.contains(words), "{problem:?}");
        }
    }
}

#[test]
fn the_preferred_server_works_if_it_can() {
    chosen(&[7], 1, Ok(1));
    chosen(&[7], 2, Ok(1));
    chosen(&[7], 3, Ok(1));
    // A local datastore's own server says itself what is wrong.
    chosen(&[2], 1, Ok(2));
    chosen(&[1, 7], 3, Ok(1));
    chosen(&[1, 2], 1, Err("srv3: datastore 'place1' is on server srv1 alone"));
    chosen(&[2, 7], 1, Err("srv2: it does not reach datastore 'place7': not mounted"));
    chosen(&[5], 1, Err("datastore"));
}

#[test]
fn the_server_of_a_running_vm_works_on_its_volumes() {
    let mut s = snapshot();
    let volume = s.volumes[&volume_id(7)].value.clone();
    said(choose_for(&volume, host(1), &s), Ok(1));
    let vm = vm(&[7]);
    s.attachments.insert(volume.id, vm.id);
    s.vms.insert(vm.id, versioned(vm));
    said(choose_for(&volume, host(1), &s), Ok(2));
}
