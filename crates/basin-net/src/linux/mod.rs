//! The fabric of a real server.

mod apply;
mod files;
mod netlink;
mod nft;
mod observe;
mod ports;
mod process;
mod sysctl;
mod tap;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use async_trait::async_trait;
use basin_model::{Bytes, MacAddr, NetworkId, NicId};
use ipnet::Ipv4Net;
use tokio::sync::Mutex;

use crate::dnsmasq::Layout;
use crate::fabric::{Affected, Fabric, NetError, NetworkSpec, SyncError, TapStats};
use crate::names::{Instance, TapOwner, bridge_mac};
use crate::obstacles;
use crate::overlay;
use crate::plan::{self, Step, plan};
use crate::spec::{self, Refusal};
use crate::state::{Hosts, Observed};
use crate::trunk;
use apply::Hands;
use netlink::Netlink;
use nft::Nft;

/// Where and as whom networks are made.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// Files of running networks go to `net/` below; others may pass through it.
    pub run_dir: PathBuf,
    /// DHCP's leases go to `net/` below.
    pub state_dir: PathBuf,
    /// Tells this daemon's kernel objects from those of others on the server.
    pub instance: Instance,
}

/// See the module. All changes are made one after the other.
pub struct LinuxFabric {
    instance: Instance,
    layout: Layout,
    netlink: Netlink,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    nft: Nft,
    /// Which process has read which hosts; empty after a restart, so all read again.
    loaded: BTreeMap<NetworkId, (i32, Hosts)>,
    /// What the last sync made true.
    networks: Vec<NetworkSpec>,
    synced: bool,
}

impl LinuxFabric {
    /// Works in the network namespace of the caller. Inside a tokio runtime.
    pub fn new(config: NetConfig) -> Result<LinuxFabric, NetError> {
        let NetConfig { run_dir, state_dir, instance } = config;
        let layout = Layout { run_dir, state_dir, user: process::user() };
        Ok(LinuxFabric {
            instance,
            layout,
            netlink: Netlink::open()?,
            inner: Mutex::new(Inner::default()),
        })
    }

    /// What other software's firewall may keep from guests, and what to do; for
    /// the operator. Empty when nothing is in the way.
    pub async fn obstacles(&self) -> Vec<String> {
        obstacles::obstacles(&self.instance, &nft::chains().await)
    }

    async fn observe(
        &self,
        inner: &mut Inner,
        wanted: &[NetworkSpec],
    ) -> Result<Observed, NetError> {
        let mut observed = observe::kernel(&self.instance, &self.layout, &self.netlink).await?;
        self.netlink.forwarding(&mut observed.links).await?;
        observed.firewall = inner.nft.observe(&self.instance).await?;
        let ids: BTreeSet<NetworkId> = wanted.iter().map(|n| n.id).collect();
        observed.services = observe::services(&self.layout, &ids, &inner.loaded, !inner.synced);
        Ok(observed)
    }

    /// Carries out `steps`. What fails for one network does not stop the others;
    /// what concerns all does, before anything is opened to guests.
    async fn apply(&self, inner: &mut Inner, steps: &[Step]) -> Result<(), SyncError> {
        let Inner { nft, loaded, .. } = inner;
        let (instance, layout, netlink) = (&self.instance, &self.layout, &self.netlink);
        let mut hands = Hands { instance, layout, netlink, nft, loaded };
        let mut failed: BTreeMap<NetworkId, NetError> = BTreeMap::new();
        for Step { op, why, network } in steps {
            if network.is_some_and(|id| failed.contains_key(&id)) {
                continue;
            }
            tracing::debug!(?op, why, "network");
            if let Err(e) = hands.apply(op).await {
                match network {
                    Some(id) => failed.insert(*id, e),
                    None => return Err(e.into()),
                };
            }
        }
        outcome(failed.into_iter().map(|(id, e)| (Some(id), e)).collect())
    }
}

fn outcome(refused: Vec<Refusal>) -> Result<(), SyncError> {
    let affected = Affected::Only(refused.iter().filter_map(|(id, _)| *id).collect());
    let first = refused.into_iter().next();
    first.map_or(Ok(()), |(_, error)| Err(SyncError { affected, error }))
}

fn both(done: Result<(), SyncError>, refused: Result<(), SyncError>) -> Result<(), SyncError> {
    match (done, refused) {
        (Ok(()), other) | (other, Ok(())) => other,
        (Err(first), Err(second)) => {
            let affected = match (first.affected, second.affected) {
                (Affected::Only(a), Affected::Only(b)) => Affected::Only(&a | &b),
                _ => Affected::All,
            };
            Err(SyncError { affected, error: first.error })
        }
    }
}

#[async_trait]
impl Fabric for LinuxFabric {
    async fn sync(&self, networks: &[NetworkSpec]) -> Result<(), SyncError> {
        let mut inner = self.inner.lock().await;
        let observed = self.observe(&mut inner, networks).await?;
        let plan = plan(&self.instance, &self.layout, networks, &observed);
        let done = self.apply(&mut inner, &plan.steps).await;
        inner.networks = plan.accepted;
        inner.synced = true;
        if plan.steps.is_empty() {
            inner.nft.learn(&self.instance).await;
        }
        both(done, outcome(plan.refused))
    }

    async fn overlay_mtu(&self, local: Ipv4Addr) -> Option<u32> {
        match self.netlink.links().await {
            Ok(links) => overlay::mtu(&Observed { links, ..Observed::default() }, local),
            Err(error) => {
                tracing::warn!(%error, "cannot tell what fits between servers");
                None
            }
        }
    }

    async fn trunk_mtu(&self, trunk: &basin_model::vlan::Trunk) -> Result<u32, NetError> {
        let observed = Observed { links: self.netlink.links().await?, ..Observed::default() };
        let (device, tagged) = (trunk.interface.as_str(), trunk.untagged.is_none());
        trunk::mtu(&self.instance, &observed, device, tagged)
    }

    async fn check(&self, subnet: Ipv4Net) -> Result<(), NetError> {
        let observed = observe::kernel(&self.instance, &self.layout, &self.netlink).await?;
        spec::check(&self.instance, &observed, &subnet)
    }

    async fn open_tap(
        &self,
        network: NetworkId,
        nic: NicId,
        mac: MacAddr,
        address: Ipv4Addr,
    ) -> Result<OwnedFd, NetError> {
        let mut inner = self.inner.lock().await;
        let bridge = self.instance.bridge(network);
        let spec = inner.networks.iter().find(|n| n.id == network);
        let spec = spec.ok_or(NetError::NoNetwork(network))?;
        if !spec::usable(&spec.subnet, &address)
            || address == spec.gateway
            || spec.trunk.as_ref().is_some_and(|t| t.router == address)
            || mac == bridge_mac(network)
        {
            return Err(NetError::Refused {
                what: format!("an interface {mac} with address {address}"),
                why: format!("the network is {}, its gateway {}", spec.subnet, spec.gateway),
            });
        }
        let found = self.netlink.link(&bridge).await?;
        if !found.is_some_and(|l| l.is_own_bridge(&bridge, &self.instance)) {
            return Err(NetError::NoNetwork(network));
        }
        let name = self.instance.tap(nic);
        // From here on, an error closes the file and with it the tap goes.
        let fd = tap::create(&name)?;
        let owner = TapOwner { network, nic, mac, address };
        self.netlink.label_tap(&name, &owner.alias()).await?;
        // Without forwarding entries: a new tap has none, and of thousands of
        // interfaces elsewhere they take long to list.
        let observed = observe::kernel(&self.instance, &self.layout, &self.netlink).await?;
        let (instance, layout) = (&self.instance, &self.layout);
        let steps = plan::new_tap(instance, layout, &inner.networks, &name, &observed);
        self.apply(&mut inner, &steps).await.map_err(|e| e.error)?;
        Ok(fd)
    }

    async fn close_tap(&self, nic: NicId) -> Result<(), NetError> {
        let _changes = self.inner.lock().await;
        let name = self.instance.tap(nic);
        match self.netlink.link(&name).await? {
            Some(link) if link.own_tap(&name, &self.instance).is_some_and(|o| o.nic == nic) => {
                self.netlink.delete(&name, link.index).await
            }
            _ => Ok(()),
        }
    }

    async fn tap_stats(&self, nic: NicId) -> Option<TapStats> {
        let stats = self.netlink.stats(&self.instance.tap(nic)).await.ok()??;
        // What the server transmits into the tap is what the guest receives.
        Some(TapStats {
            received: Bytes(stats.tx_bytes),
            received_packets: stats.tx_packets,
            sent: Bytes(stats.rx_bytes),
            sent_packets: stats.rx_packets,
        })
    }
}
