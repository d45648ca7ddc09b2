//! Pure. A network's DHCP and DNS.

use std::collections::BTreeSet;

use super::{Op, Planner, mtu};
use crate::confirm;
use crate::dnsmasq;
use crate::fabric::NetworkSpec;
use crate::state::Service;

impl Planner<'_> {
    pub(super) fn service(&mut self, network: &NetworkSpec) {
        let id = network.id;
        let bridge = self.instance.bridge(id);
        let none = Service::default();
        let observed = self.observed;
        let service = observed.services.get(&id).unwrap_or(&none);
        let hosts = dnsmasq::hosts(network);
        let name = confirm::name(&hosts);
        let stale = service.hosts.as_ref() != Some(&hosts);
        if stale {
            self.step(
                Some(id),
                "names and addresses changed",
                Op::WriteHosts { network: id, hosts },
            );
        }
        let arguments = dnsmasq::arguments(self.layout, network, &bridge, mtu(network, observed));
        let index = observed.links.get(&bridge).map(|l| l.index);
        match &service.process {
            Some(p) if p.arguments == arguments && Some(p.bridge) == index => {
                if stale || !service.hosts_loaded {
                    let op = Op::ReloadDnsmasq {
                        network: id,
                        pid: p.pid,
                        server: network.gateway,
                        name,
                    };
                    self.step(Some(id), "it has not read the names and addresses", op);
                }
            }
            other => {
                if let Some(p) = other {
                    let op = Op::StopDnsmasq { network: id, pid: p.pid };
                    self.step(Some(id), "it runs with other settings", op);
                }
                let op = Op::StartDnsmasq { network: id, bridge: bridge.clone(), arguments };
                self.step(Some(id), "the network has no DHCP and DNS", op);
            }
        }
        let held: BTreeSet<_> = network.leases.iter().map(|l| (l.mac, l.address)).collect();
        for binding in &service.bindings {
            if !held.contains(&(binding.mac, binding.address)) {
                let (binding, server) = (binding.clone(), network.gateway);
                let bridge = bridge.clone();
                let op = Op::ReleaseBinding { network: id, bridge, server, binding };
                self.step(Some(id), "the interface is gone or has another address", op);
            }
        }
    }
}
