//! Carries out the steps of a plan, one at a time, without choices of its own.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::time::Duration;

use basin_model::NetworkId;
use nix::sys::socket::{setsockopt, sockopt::BindToDevice};

use super::files;
use super::netlink::Netlink;
use super::nft::Nft;
use super::process;
use super::sysctl;
use super::tap;
use crate::dnsmasq::{self, Layout};
use crate::fabric::NetError;
use crate::names::Instance;
use crate::plan::Op;
use crate::state::{Binding, Hosts, Sysctl};

/// What the executor works with.
pub struct Hands<'a> {
    pub instance: &'a Instance,
    pub layout: &'a Layout,
    pub netlink: &'a Netlink,
    pub nft: &'a mut Nft,
    /// Which process has read which hosts.
    pub loaded: &'a mut BTreeMap<NetworkId, (i32, Hosts)>,
}

impl Hands<'_> {
    pub async fn apply(&mut self, op: &Op) -> Result<(), NetError> {
        let (layout, netlink) = (self.layout, self.netlink);
        match op {
            Op::StopDnsmasq { network, pid } => process::stop(layout, *network, *pid).await,
            Op::DeleteLink { name, index } => netlink.delete(name, *index).await,
            Op::RemoveFiles { network } => {
                self.loaded.remove(network);
                files::remove(layout, *network)
            }
            Op::RecordForwarding { devices } => files::record_forwarding(layout, devices),
            Op::SetForwarding { device, on } => {
                sysctl::set(&Sysctl::Forwarding.path(device), u8::from(*on))
            }
            Op::LoadFirewall { ruleset } => self.nft.load(self.instance, ruleset).await,
            Op::RemoveFirewall => self.nft.remove(self.instance).await,
            Op::CreateBridge { name } => netlink.create_bridge(name).await,
            Op::ConfigureBridge { name, alias, mac, mtu } => {
                netlink.configure_bridge(name, alias, *mac, *mtu).await
            }
            Op::SetSysctl { device, sysctl, value } => sysctl::set(&sysctl.path(device), *value),
            Op::AddAddress { device, address } => netlink.add_address(device, *address).await,
            Op::RemoveAddress { device, address } => netlink.remove_address(device, *address).await,
            Op::SetUp { name } => {
                netlink.up(name).await?;
                settle(name);
                Ok(())
            }
            Op::AttachTap { name, bridge, mtu, settings } => {
                quiet(name)?;
                netlink.attach(name, bridge, *mtu, *settings).await?;
                settle(bridge);
                Ok(())
            }
            Op::PinAddress { port, mac, sticky } => netlink.pin(port, *mac, *sticky).await,
            Op::UnpinAddress { port, mac } => netlink.unpin(port, *mac).await,
            Op::CreateOverlay { name, settings } => netlink.create_overlay(name, settings).await,
            Op::AttachPort { name, bridge, alias, mtu, settings } => {
                quiet(name)?;
                netlink.attach_port(name, bridge, alias, *mtu, *settings).await?;
                // An MTU too small for IPv6 had taken the setting away with it.
                quiet(name)?;
                settle(bridge);
                Ok(())
            }
            // The operator's own interfaces: nothing more is done to them.
            Op::RaiseTrunk { device } => netlink.up(device).await,
            Op::JoinTrunk { device, bridge } => {
                netlink.join(device, bridge).await?;
                settle(bridge);
                Ok(())
            }
            Op::LeaveTrunk { device } => netlink.leave(device).await,
            Op::CreateTrunk { name, settings } => netlink.create_trunk(name, *settings).await,
            Op::AddAnswerRoute { device, to, from } => {
                netlink.add_answer_route(device, *to, *from).await
            }
            Op::AddAnswerRule { from } => netlink.add_answer_rule(*from).await,
            Op::RemoveAnswerRule { from } => netlink.remove_answer_rule(*from).await,
            Op::SetForwards { name, change } => netlink.set_forwards(name, change).await,
            Op::WriteHosts { network, hosts } => files::write_hosts(layout, *network, hosts),
            Op::StartDnsmasq { network, bridge, arguments } => {
                let index = netlink.index(bridge).await?.unwrap_or(0);
                process::start(*network, arguments, index).await?;
                self.read(*network, process::by_pid_file(layout, *network).map(|p| p.pid));
                Ok(())
            }
            Op::ReloadDnsmasq { network, pid, server, name } => {
                process::reload(layout, *network, *pid, *server, name).await?;
                self.read(*network, Some(*pid));
                Ok(())
            }
            Op::ReleaseBinding { network, bridge, server, binding } => {
                release(bridge, binding, (*server, 67))?;
                self.released(*network, binding).await;
                Ok(())
            }
        }
    }

    /// There is no answer to a release; what dnsmasq writes down tells. If it takes
    /// longer, the next sync sees to it.
    async fn released(&self, network: NetworkId, binding: &Binding) {
        for _ in 0..50 {
            if !dnsmasq::bindings(&files::leases(self.layout, network)).contains(binding) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn read(&mut self, network: NetworkId, pid: Option<i32>) {
        match (pid, files::hosts(self.layout, network)) {
            (Some(pid), Some(hosts)) => self.loaded.insert(network, (pid, hosts)),
            _ => self.loaded.remove(&network),
        };
    }
}

/// Before a port is up: it never speaks by itself.
fn quiet(port: &str) -> Result<(), NetError> {
    Sysctl::PORT.iter().try_for_each(|(s, value)| sysctl::set(&s.path(port), *value))
}

/// Only a matter of time, so not of success.
fn settle(bridge: &str) {
    if let Err(e) = tap::settle(bridge) {
        tracing::debug!(bridge, %e, "the bridge settles by itself");
    }
}

/// Gives an address back in the name of an interface that is no more.
fn release(
    bridge: &str,
    binding: &Binding,
    server: (std::net::Ipv4Addr, u16),
) -> Result<(), NetError> {
    let send = || -> std::io::Result<()> {
        let socket = UdpSocket::bind((server.0, 0))?;
        setsockopt(&socket, BindToDevice, &bridge.into())?;
        socket.send_to(&dnsmasq::release(binding, server.0), server)?;
        Ok(())
    };
    send().map_err(|e| NetError::Refused {
        what: format!("releasing {} on {bridge}", binding.address),
        why: e.to_string(),
    })
}
