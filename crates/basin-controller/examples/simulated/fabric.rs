//! A network that remembers nothing: the fake of the tests keeps every call, which
//! here is every lease of every VM, a server, each time.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use async_trait::async_trait;
use basin_model::network::Network;
use basin_model::vlan::Trunk;
use basin_model::{MacAddr, NetworkId, NicId};
use basin_net::{Fabric, NetError, NetworkSpec, SyncError, TapStats};
use ipnet::Ipv4Net;

pub struct NoFabric;

#[async_trait]
impl Fabric for NoFabric {
    async fn sync(&self, _: &[NetworkSpec]) -> Result<(), SyncError> {
        Ok(())
    }

    async fn trunk_mtu(&self, trunk: &Trunk) -> Result<u32, NetError> {
        Err(NetError::Refused {
            what: format!("trunk interface {}", trunk.interface),
            why: "simulated servers have no interfaces".into(),
        })
    }

    async fn overlay_mtu(&self, _: Ipv4Addr) -> Option<u32> {
        Some(Network::OVERLAY_MTU)
    }

    async fn check(&self, _: Ipv4Net) -> Result<(), NetError> {
        Ok(())
    }

    async fn open_tap(
        &self,
        _: NetworkId,
        _: NicId,
        _: MacAddr,
        _: Ipv4Addr,
    ) -> Result<OwnedFd, NetError> {
        let file = File::open("/dev/null");
        let refused = |e: std::io::Error| NetError::Refused {
            what: "opening /dev/null".to_owned(),
            why: e.to_string(),
        };
        Ok(file.map_err(refused)?.into())
    }

    async fn close_tap(&self, _: NicId) -> Result<(), NetError> {
        Ok(())
    }

    async fn tap_stats(&self, _: NicId) -> Option<TapStats> {
        None
    }
}
