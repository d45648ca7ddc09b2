//! Pure. Which images something on a server stands on: copies of them are kept.

use std::collections::{BTreeMap, BTreeSet};

use basin_model::datastore::{Datastore, Sharing};
use basin_model::vm::{Boot, Vm};
use basin_model::volume::{Volume, VolumeSource, VolumeState};
use basin_model::{HostId, ImageId, VolumeId};

pub fn needed(
    host: HostId,
    vms: &[Vm],
    volumes: &[Volume],
    datastores: &[Datastore],
) -> BTreeSet<ImageId> {
    let all: BTreeMap<VolumeId, &Volume> = volumes.iter().map(|v| (v.id, v)).collect();
    let local: BTreeSet<_> =
        datastores.iter().filter(|d| d.sharing == Sharing::Local(host)).map(|d| d.id).collect();
    let mut needed = BTreeSet::new();
    for volume in volumes {
        match volume.source {
            // Anybody may be making it.
            VolumeSource::LinkedImage { image } | VolumeSource::Image { image }
                if volume.state == VolumeState::Creating =>
            {
                needed.insert(image);
            }
            VolumeSource::LinkedImage { image } if local.contains(&volume.datastore) => {
                needed.insert(image);
            }
            _ => {}
        }
    }
    for vm in vms.iter().filter(|vm| vm.placement.is_some_and(|p| p.host == host)) {
        needed.extend(vm.spec.cdroms.iter().map(|c| c.image));
        if let Boot::Kernel { kernel, initrd, .. } = &vm.spec.boot {
            needed.insert(*kernel);
            needed.extend(initrd);
        }
        needed.extend(vm.spec.disks.iter().filter_map(|disk| base(disk.volume, &all)));
    }
    needed
}

/// The image at the bottom of a volume's chain.
fn base(volume: VolumeId, all: &BTreeMap<VolumeId, &Volume>) -> Option<ImageId> {
    let mut next = volume;
    // Chains are acyclic; a defect must not make this run for ever.
    for _ in 0..=all.len() {
        match all.get(&next)?.source {
            VolumeSource::LinkedImage { image } => return Some(image),
            VolumeSource::LinkedVolume { volume } => next = volume,
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use basin_model::datastore::{DatastoreKind, DatastoreState};
    use basin_model::volume::VolumeFormat;
    use basin_model::{Bytes, DatastoreId, Meta};
    use uuid::Uuid;

    fn id<T>(make: fn(Uuid) -> T, n: u128) -> T {
        make(Uuid::from_u128(n))
    }

    fn meta(name: &str) -> Meta {
        let (description, labels) = Default::default();
        let created_at = "2026-01-01T00:00:00Z".parse().unwrap();
        Meta { name: name.parse().unwrap(), description, labels, created_at }
    }

    fn datastore(n: u128, sharing: Sharing) -> Datastore {
        Datastore {
            id: id(DatastoreId::from_uuid, n),
            meta: meta("d"),
            sharing,
            kind: DatastoreKind::Dir { path: "/srv".into() },
            quota: None,
            overcommit_percent: 200,
            state: DatastoreState::Ready,
        }
    }

    fn volume(n: u128, datastore: u128, source: VolumeSource, state: VolumeState) -> Volume {
        Volume {
            id: id(VolumeId::from_uuid, n),
            meta: meta("v"),
            datastore: id(DatastoreId::from_uuid, datastore),
            format: VolumeFormat::Qcow2,
            size: Bytes::mib(1),
            source,
            state,
        }
    }

    fn vm(host: HostId, disk: u128, kernel: u128) -> Vm {
        serde_json::from_value(serde_json::json!({
            "id": Uuid::from_u128(1), "meta": meta("a"),
            "spec": {
                "vcpus": 1, "memory": 1 << 26, "cdroms": [],
                "boot": {"firmware": "kernel", "kernel": Uuid::from_u128(kernel),
                         "initrd": null, "command_line": ""},
                "disks": [{"volume": Uuid::from_u128(disk), "serial": "x"}],
            },
            "run": {"power": {"state": "running"}, "epoch": 1, "resets": 0},
            "placement": {"host": host, "generation": 1},
        }))
        .unwrap()
    }

    #[test]
    fn what_local_volumes_and_vms_here_stand_on_is_needed() {
        let (here, there) = (id(HostId::from_uuid, 1), id(HostId::from_uuid, 2));
        let places = [
            datastore(1, Sharing::Local(here)),
            datastore(2, Sharing::Local(there)),
            datastore(3, Sharing::Shared { maker: there }),
        ];
        let image = |n| id(ImageId::from_uuid, n);
        let linked = |n| VolumeSource::LinkedImage { image: image(n) };
        let (ready, creating) = (VolumeState::Ready, VolumeState::Creating);
        let volumes = [
            volume(11, 1, linked(101), ready),
            volume(12, 2, linked(102), ready),
            volume(13, 3, linked(103), ready),
            volume(
                14,
                3,
                VolumeSource::LinkedVolume { volume: id(VolumeId::from_uuid, 13) },
                ready,
            ),
            volume(15, 1, VolumeSource::Image { image: image(105) }, creating),
            volume(16, 1, VolumeSource::Image { image: image(106) }, ready),
        ];
        let check = |vms: &[Vm], expect: &[u128]| {
            let expect = expect.iter().map(|n| image(*n)).collect();
            assert_eq!(needed(here, vms, &volumes, &places), expect);
        };
        check(&[], &[101, 105]);
        check(&[vm(there, 14, 110)], &[101, 105]);
        check(&[vm(here, 14, 110)], &[101, 103, 105, 110]);
    }
}
