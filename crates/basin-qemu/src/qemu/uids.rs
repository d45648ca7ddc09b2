//! A user id for each VM (decision 0021): the lowest that is free, kept in a file until
//! the VM is forgotten.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use basin_model::VmId;

use super::files;

/// How many ids a daemon has.
pub const RANGE: u32 = 1 << 16;

#[derive(Debug)]
pub struct Uids {
    base: u32,
    dir: PathBuf,
    taken: Mutex<BTreeMap<VmId, u32>>,
}

impl Uids {
    /// Reads who has which from `<dir>/<vm>/uid`.
    pub fn open(dir: PathBuf, base: u32) -> io::Result<Uids> {
        files::private_dir(&dir)?;
        let mut taken = BTreeMap::new();
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let vm = entry.file_name().to_str().and_then(|name| name.parse::<VmId>().ok());
            let uid = fs::read_to_string(entry.path().join("uid"));
            if let (Some(vm), Some(uid)) = (vm, uid.ok().and_then(|uid| uid.trim().parse().ok())) {
                taken.insert(vm, uid);
            }
        }
        Ok(Uids { base, dir, taken: Mutex::new(taken) })
    }

    /// The VM's id; its own from the first call on.
    pub fn get(&self, vm: VmId) -> io::Result<u32> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(uid) = taken.get(&vm) {
            return Ok(*uid);
        }
        let uid = lowest_free(self.base, taken.values().copied().collect()).ok_or_else(|| {
            io::Error::other(format!("all {RANGE} user ids for machines are taken"))
        })?;
        let dir = self.dir.join(vm.to_string());
        files::private_dir(&dir)?;
        files::replace_durably(&dir.join("uid"), uid.to_string().as_bytes())?;
        taken.insert(vm, uid);
        Ok(uid)
    }

    /// Frees the VM's id.
    pub fn forget(&self, vm: VmId) -> io::Result<()> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        files::remove(&self.dir.join(vm.to_string()).join("uid"))?;
        taken.remove(&vm);
        Ok(())
    }
}

fn lowest_free(base: u32, mut taken: Vec<u32>) -> Option<u32> {
    taken.sort_unstable();
    taken.dedup();
    let mut free = base;
    for uid in taken {
        if uid == free {
            free += 1;
        }
    }
    (free - base < RANGE).then_some(free)
}

/// Where a daemon's ids begin. Daemons that share a host have different cgroup names, and
/// so, nearly always, different ids.
pub fn base_of(cgroup_name: &str) -> u32 {
    const FIRST: u32 = 1_900_000_000;
    if cgroup_name == "basin" {
        return FIRST;
    }
    let hash = cgroup_name
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    FIRST + (1 + hash % 3000) * RANGE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(n: u128) -> VmId {
        VmId::from_uuid(uuid::Uuid::from_u128(n))
    }

    #[test]
    fn the_lowest_free_id_is_given_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Uids::open(dir.path().to_owned(), 1000).unwrap();
        let uids = open();
        let got: Vec<u32> = (1..=3).map(|n| uids.get(vm(n)).unwrap()).collect();
        assert_eq!(got, [1000, 1001, 1002]);
        uids.forget(vm(2)).unwrap();
        uids.forget(vm(9)).unwrap();
        let uids = open();
        assert_eq!(uids.get(vm(3)).unwrap(), 1002);
        assert_eq!(uids.get(vm(4)).unwrap(), 1001);
    }

    #[test]
    fn ids_stay_in_their_range() {
        assert_eq!(lowest_free(10, (10..10 + RANGE).collect()), None);
        assert_eq!(lowest_free(10, vec![5, 11, 99]), Some(10));
        for name in ["basin", "basin-a", "b2"] {
            let base = base_of(name);
            assert!(base >= 1_900_000_000 && base.checked_add(RANGE).unwrap() < u32::MAX - 1);
        }
    }
}
