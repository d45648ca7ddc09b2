//! A fabric that only remembers: for tests of what stands on [`Fabric`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Mutex;

use async_trait::async_trait;
use basin_model::vlan::LinkName;
use basin_model::{MacAddr, NetworkId, NicId};
use ipnet::Ipv4Net;

use crate::fabric::{Affected, Fabric, NetError, NetworkSpec, SyncError, TapStats};

/// One call of a [`Fabric`] method, as it came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    Sync(Vec<NetworkSpec>),
    Check(Ipv4Net),
    OpenTap { network: NetworkId, nic: NicId, mac: MacAddr, address: Ipv4Addr },
    CloseTap(NicId),
}

/// Which method is to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    Sync,
    Check,
    OpenTap,
    CloseTap,
}

/// A tap as the fake remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FakeTap {
    pub network: NetworkId,
    pub mac: MacAddr,
    pub address: Ipv4Addr,
}

#[derive(Default)]
struct State {
    networks: Vec<NetworkSpec>,
    taps: BTreeMap<NicId, FakeTap>,
    stats: BTreeMap<NicId, TapStats>,
    calls: Vec<Call>,
    failures: BTreeMap<Method, (usize, String)>,
    refused: BTreeSet<NetworkId>,
    trunks: BTreeMap<LinkName, u32>,
}

/// See the module.
#[derive(Default)]
pub struct FakeFabric {
    state: Mutex<State>,
}

impl FakeFabric {
    pub fn new() -> FakeFabric {
        FakeFabric::default()
    }

    /// All calls so far, refused ones too.
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    pub fn networks(&self) -> Vec<NetworkSpec> {
        self.lock().networks.clone()
    }

    /// Taps that were opened and not closed.
    pub fn taps(&self) -> BTreeMap<NicId, FakeTap> {
        self.lock().taps.clone()
    }

    /// Makes the next `times` calls of `method` fail with this reason.
    pub fn fail(&self, method: Method, times: usize, why: impl Into<String>) {
        self.lock().failures.insert(method, (times, why.into()));
    }

    /// Has this network never come to be; the others do.
    pub fn refuse(&self, network: NetworkId) {
        self.lock().refused.insert(network);
    }

    /// Has an interface that can carry VLANs.
    pub fn add_trunk(&self, device: LinkName, mtu: u32) {
        self.lock().trunks.insert(device, mtu);
    }

    pub fn set_stats(&self, nic: NicId, stats: TapStats) {
        self.lock().stats.insert(nic, stats);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl State {
    fn enter(&mut self, method: Method, call: Call) -> Result<(), NetError> {
        self.calls.push(call);
        match self.failures.get_mut(&method) {
            Some((left, why)) if *left > 0 => {
                *left -= 1;
                Err(NetError::Refused { what: format!("{method:?}"), why: why.clone() })
            }
            _ => Ok(()),
        }
    }
}

fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

#[async_trait]
impl Fabric for FakeFabric {
    async fn sync(&self, networks: &[NetworkSpec]) -> Result<(), SyncError> {
        let mut state = self.lock();
        state.enter(Method::Sync, Call::Sync(networks.to_vec()))?;
        let (bad, good): (Vec<_>, Vec<_>) =
            networks.iter().cloned().partition(|n| state.refused.contains(&n.id));
        state.networks = good;
        state.taps.retain(|_, tap| networks.iter().any(|n| n.id == tap.network));
        let affected: BTreeSet<NetworkId> = bad.iter().map(|n| n.id).collect();
        match affected.first() {
            None => Ok(()),
            Some(first) => Err(SyncError {
                error: NetError::Refused {
                    what: format!("network {first}"),
                    why: "the fake was told to".into(),
                },
                affected: Affected::Only(affected),
            }),
        }
    }

    async fn overlay_mtu(&self, _local: Ipv4Addr) -> Option<u32> {
        Some(basin_model::network::Network::OVERLAY_MTU)
    }

    async fn trunk_mtu(&self, trunk: &basin_model::vlan::Trunk) -> Result<u32, NetError> {
        let device = &trunk.interface;
        match self.lock().trunks.get(device) {
            Some(mtu) => Ok(*mtu),
            None => Err(NetError::Refused {
                what: format!("trunk interface {device}"),
                why: "there is no such interface on this server".into(),
            }),
        }
    }

    async fn check(&self, subnet: Ipv4Net) -> Result<(), NetError> {
        let mut state = self.lock();
        state.enter(Method::Check, Call::Check(subnet))?;
        match state.networks.iter().find(|n| overlap(n.subnet, subnet)) {
            None => Ok(()),
            Some(n) => {
                Err(NetError::Overlap { subnet, with: n.subnet, device: format!("fake-{}", n.id) })
            }
        }
    }

    async fn open_tap(
        &self,
        network: NetworkId,
        nic: NicId,
        mac: MacAddr,
        address: Ipv4Addr,
    ) -> Result<OwnedFd, NetError> {
        let mut state = self.lock();
        state.enter(Method::OpenTap, Call::OpenTap { network, nic, mac, address })?;
        if !state.networks.iter().any(|n| n.id == network) {
            return Err(NetError::NoNetwork(network));
        }
        let fd = File::options().read(true).write(true).open("/dev/null").map_err(|e| {
            NetError::Refused { what: "opening /dev/null".into(), why: e.to_string() }
        })?;
        state.taps.insert(nic, FakeTap { network, mac, address });
        Ok(fd.into())
    }

    async fn close_tap(&self, nic: NicId) -> Result<(), NetError> {
        let mut state = self.lock();
        state.enter(Method::CloseTap, Call::CloseTap(nic))?;
        state.taps.remove(&nic);
        Ok(())
    }

    async fn tap_stats(&self, nic: NicId) -> Option<TapStats> {
        let state = self.lock();
        state.taps.get(&nic)?;
        Some(state.stats.get(&nic).copied().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> NetworkSpec {
        NetworkSpec {
            id: "0190a5f2-7c1e-7d3a-9b1f-2f6f0c9e4d11".parse().unwrap(),
            subnet: "10.77.0.0/24".parse().unwrap(),
            gateway: "10.77.0.1".parse().unwrap(),
            domain: "vm.test".into(),
            leases: vec![],
            overlay: None,
            trunk: None,
        }
    }

    #[tokio::test]
    async fn remembers_taps_and_fails_when_told() {
        let fabric = FakeFabric::new();
        let nic: NicId = "0190a5f2-7c1e-7d3a-9b1f-2f6f0c9e4d12".parse().unwrap();
        let mac = MacAddr::from_random([1, 2, 3]);
        let address = "10.77.0.5".parse().unwrap();
        let open = || fabric.open_tap(spec().id, nic, mac, address);

        assert!(matches!(open().await, Err(NetError::NoNetwork(_))));
        fabric.sync(&[spec()]).await.unwrap();
        fabric.fail(Method::OpenTap, 1, "no more");
        assert!(matches!(open().await, Err(NetError::Refused { .. })));
        open().await.unwrap();
        assert_eq!(fabric.taps().len(), 1);
        assert!(fabric.check("10.77.0.128/25".parse().unwrap()).await.is_err());
        fabric.close_tap(nic).await.unwrap();
        fabric.close_tap(nic).await.unwrap();
        assert!(fabric.tap_stats(nic).await.is_none());
        assert_eq!(fabric.calls().len(), 7);
    }
}
