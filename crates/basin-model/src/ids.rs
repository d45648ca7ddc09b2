//! Identifiers. One type a noun, so that a volume's id never lands where a VM's belongs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A text that is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an id: expected a UUID such as 0190a5f2-7c1e-7d3a-9b1f-2f6f0c9e4d11")]
pub struct InvalidId(pub String);

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID that the caller made (this crate makes no random numbers).
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            pub const fn uuid(self) -> Uuid {
                self.0
            }

            /// The first eight hex digits of the random half: short enough for
            /// the names of network interfaces and for tables.
            pub fn short(self) -> String {
                self.0.simple().to_string()[24..32].to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(s: &str) -> Result<Self, InvalidId> {
                Uuid::parse_str(s).map(Self).map_err(|_| InvalidId(s.to_owned()))
            }
        }
    )*};
}

ids! {
    /// A virtual machine.
    VmId;
    /// A server that runs virtual machines.
    HostId;
    /// A place that holds volumes and images.
    DatastoreId;
    /// A virtual disk.
    VolumeId;
    /// Something volumes are cloned from or guests boot from.
    ImageId;
    /// A virtual network.
    NetworkId;
    /// A network interface of a VM.
    NicId;
    /// A long operation.
    TaskId;
    /// An API token.
    TokenId;
}
