//! Pure. Where everything is in the store. One place, so that no two nouns share a key.

use std::fmt::Display;

use crate::ids::{DatastoreId, HostId, ImageId, NetworkId, TaskId, TokenId, VmId, VolumeId};
use crate::name::Name;
use crate::network::Vni;
use crate::units::MacAddr;
use crate::vlan::VlanId;

/// Every key starts with this: `/basin/` and the version of the layout.
pub const ROOT: &str = "/basin/v1/";

/// A kind of record; its prefix ends with a slash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Vm,
    VmStatus,
    Volume,
    Image,
    Datastore,
    Network,
    Host,
    HostStatus,
    Task,
    Workflow,
    Token,
    Alive,
    JoinToken,
    RemovedHost,
    Issued,
}

impl Kind {
    pub const ALL: [Kind; 15] = [
        Kind::Vm,
        Kind::VmStatus,
        Kind::Volume,
        Kind::Image,
        Kind::Datastore,
        Kind::Network,
        Kind::Host,
        Kind::HostStatus,
        Kind::Task,
        Kind::Workflow,
        Kind::Token,
        Kind::Alive,
        Kind::JoinToken,
        Kind::RemovedHost,
        Kind::Issued,
    ];

    const fn word(self) -> &'static str {
        match self {
            Kind::Vm => "vm",
            Kind::VmStatus => "vm-status",
            Kind::Volume => "volume",
            Kind::Image => "image",
            Kind::Datastore => "datastore",
            Kind::Network => "network",
            Kind::Host => "host",
            Kind::HostStatus => "host-status",
            Kind::Task => "task",
            Kind::Workflow => "workflow",
            Kind::Token => "token",
            Kind::Alive => "alive",
            Kind::JoinToken => "join-token",
            Kind::RemovedHost => "removed-host",
            Kind::Issued => "issued",
        }
    }

    pub fn prefix(self) -> String {
        format!("{ROOT}{}/", self.word())
    }

    fn key(self, id: impl Display) -> String {
        format!("{ROOT}{}/{id}", self.word())
    }

    /// The kind and id in a key that [`Kind::prefix`] covers.
    pub fn parse(key: &str) -> Option<(Kind, &str)> {
        let (word, id) = key.strip_prefix(ROOT)?.split_once('/')?;
        Kind::ALL.into_iter().find(|k| k.word() == word).map(|k| (k, id))
    }

    /// Where the holder of a name is noted. Names are unique within a kind.
    pub fn name(self, name: &Name) -> String {
        format!("{ROOT}name/{}/{name}", self.word())
    }
}

pub fn vm(id: VmId) -> String {
    Kind::Vm.key(id)
}
pub fn vm_status(id: VmId) -> String {
    Kind::VmStatus.key(id)
}
pub fn volume(id: VolumeId) -> String {
    Kind::Volume.key(id)
}
pub fn image(id: ImageId) -> String {
    Kind::Image.key(id)
}
pub fn datastore(id: DatastoreId) -> String {
    Kind::Datastore.key(id)
}
pub fn network(id: NetworkId) -> String {
    Kind::Network.key(id)
}
pub fn host(id: HostId) -> String {
    Kind::Host.key(id)
}
pub fn host_status(id: HostId) -> String {
    Kind::HostStatus.key(id)
}
pub fn task(id: TaskId) -> String {
    Kind::Task.key(id)
}
pub fn workflow(id: TaskId) -> String {
    Kind::Workflow.key(id)
}
pub fn token(id: TokenId) -> String {
    Kind::Token.key(id)
}

/// That the server's daemon runs, under its lease.
pub fn alive(id: HostId) -> String {
    Kind::Alive.key(id)
}
pub fn join_token(id: TokenId) -> String {
    Kind::JoinToken.key(id)
}
pub fn removed_host(id: HostId) -> String {
    Kind::RemovedHost.key(id)
}

/// A certificate that was signed, by its serial number in hex.
pub fn issued(serial: &str) -> String {
    Kind::Issued.key(serial)
}

/// The cluster's own record.
pub fn cluster() -> String {
    format!("{ROOT}cluster")
}

/// Who leads, under that server's lease.
pub fn leader() -> String {
    format!("{ROOT}leader")
}

/// The cluster's certificate authority.
pub fn authority() -> String {
    format!("{ROOT}secret/authority")
}

/// Who holds a MAC address.
pub fn mac(mac: MacAddr) -> String {
    format!("{ROOT}mac/{mac}")
}

/// Who holds an address of a network.
pub fn address(network: NetworkId, address: std::net::Ipv4Addr) -> String {
    format!("{ROOT}address/{network}/{address}")
}

/// Which network has a VXLAN network identifier.
pub fn vni(vni: Vni) -> String {
    format!("{ROOT}vni/{vni}")
}

/// Which network has a VLAN.
pub fn vlan(vlan: VlanId) -> String {
    format!("{ROOT}vlan/{vlan}")
}

/// Which VM has a volume attached: a volume belongs to one at most.
pub fn attachment(volume: VolumeId) -> String {
    format!("{ROOT}attachment/{volume}")
}

/// Touched by whoever begins to use a thing, compared by whoever deletes it: so
/// that of the two only one succeeds, without a change to the thing itself.
pub fn guard(kind: Kind, id: impl Display) -> String {
    format!("{ROOT}guard/{}/{id}", kind.word())
}

/// Held by an operation that needs the thing for itself (a copy, a growth); a VM
/// does not start on a volume that is locked.
pub fn lock(kind: Kind, id: impl Display) -> String {
    format!("{ROOT}lock/{}/{id}", kind.word())
}

/// That the defaults of a new data centre have been made.
pub fn bootstrapped() -> String {
    format!("{ROOT}bootstrapped")
}

/// The version of the records' layout.
pub fn schema() -> String {
    format!("{ROOT}schema")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_its_kind_and_id() {
        for kind in Kind::ALL {
            let key = format!("{}some-id", kind.prefix());
            assert_eq!(Kind::parse(&key), Some((kind, "some-id")));
        }
        assert_eq!(Kind::parse("/elsewhere/vm/x"), None);
    }
}
