//! Reads the kernel's messages about interfaces and routes.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use basin_model::MacAddr;
use ipnet::Ipv4Net;
use rtnetlink::packet_route::link::{
    BridgeBooleanOptionFlags, BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind,
    InfoPortData, InfoVlan, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};

use crate::state::{
    BridgeSettings, Link, LinkKind, PortSettings, Route, VlanSettings, VxlanSettings,
};

const LOCAL_TABLE: u32 = 255;

pub fn link(message: &LinkMessage) -> Option<(String, Link)> {
    let mut link = Link {
        index: message.header.index,
        kind: LinkKind::Other,
        group: 0,
        alias: String::new(),
        up: message.header.flags.contains(LinkFlags::Up),
        mtu: 0,
        mac: None,
        master: None,
        addresses: Default::default(),
        sysctls: Default::default(),
        entries: Default::default(),
        forwards: Default::default(),
    };
    let (mut name, mut parent) = (None, 0);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::IfAlias(text) => link.alias.clone_from(text),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Group(group) => link.group = *group,
            LinkAttribute::Link(index) => parent = *index,
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::Address(bytes) => {
                link.mac = bytes.as_slice().try_into().ok().map(MacAddr);
            }
            LinkAttribute::LinkInfo(infos) => link.kind = kind(infos),
            _ => {}
        }
    }
    if let LinkKind::Vlan(settings, _) = &mut link.kind {
        settings.parent = parent;
    }
    Some((name?, link))
}

fn kind(infos: &[LinkInfo]) -> LinkKind {
    let mut bridge = BridgeSettings {
        stp: false,
        forward_delay: 0,
        multicast_snooping: false,
        link_local_learning: true,
    };
    let mut vxlan = VxlanSettings { vni: 0, local: None, port: 0, learning: false };
    let mut vlan = VlanSettings { vlan: 0, parent: 0 };
    // Outside a bridge there is nothing to learn or flood; `master` tells.
    let mut port = PortSettings { learning: true, flood: true };
    let mut found = LinkKind::Other;
    for info in infos {
        match info {
            LinkInfo::Kind(InfoKind::Bridge) => found = LinkKind::Bridge(bridge),
            LinkInfo::Kind(InfoKind::Tun) => found = LinkKind::Tap(port),
            LinkInfo::Kind(InfoKind::Vxlan) => found = LinkKind::Vxlan(vxlan, port),
            LinkInfo::Kind(InfoKind::Vlan) => found = LinkKind::Vlan(vlan, port),
            LinkInfo::Data(InfoData::Vlan(data)) => {
                for item in data {
                    if let InfoVlan::Id(id) = item {
                        vlan.vlan = *id;
                    }
                }
            }
            LinkInfo::Data(InfoData::Vxlan(data)) => {
                for item in data {
                    match item {
                        InfoVxlan::Id(vni) => vxlan.vni = *vni,
                        InfoVxlan::Local(local) => vxlan.local = Some(*local),
                        InfoVxlan::Port(port) => vxlan.port = *port,
                        InfoVxlan::Learning(on) => vxlan.learning = *on,
                        _ => {}
                    }
                }
            }
            LinkInfo::Data(InfoData::Bridge(data)) => {
                for item in data {
                    match item {
                        InfoBridge::StpState(s) => bridge.stp = *s != BridgeStpState::Disabled,
                        InfoBridge::ForwardDelay(d) => bridge.forward_delay = *d,
                        InfoBridge::MulticastSnooping(s) => bridge.multicast_snooping = *s,
                        InfoBridge::MultiBoolOpt(options) => {
                            let none = BridgeBooleanOptionFlags::NoLinkLocalLearn;
                            bridge.link_local_learning = !options.value.contains(none);
                        }
                        _ => {}
                    }
                }
            }
            LinkInfo::PortData(InfoPortData::BridgePort(data)) => {
                for item in data {
                    match item {
                        InfoBridgePort::Learning(on) => port.learning = *on,
                        InfoBridgePort::UnicastFlood(on) => port.flood = *on,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    match found {
        LinkKind::Bridge(_) => LinkKind::Bridge(bridge),
        LinkKind::Tap(_) => LinkKind::Tap(port),
        LinkKind::Vxlan(..) => LinkKind::Vxlan(vxlan, port),
        LinkKind::Vlan(..) => LinkKind::Vlan(vlan, port),
        LinkKind::Other => LinkKind::Other,
    }
}

pub fn table_of(message: &RouteMessage) -> u32 {
    let named = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Table(id) => Some(*id),
        _ => None,
    });
    named.unwrap_or(u32::from(message.header.table))
}

pub fn routes_of(message: &RouteMessage, names: &BTreeMap<u32, &String>) -> Vec<Route> {
    let (mut to, mut devices) = (Ipv4Addr::UNSPECIFIED, vec![]);
    let table = table_of(message);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => to = *v4,
            RouteAttribute::Oif(index) => devices.push(*index),
            RouteAttribute::MultiPath(hops) => {
                devices.extend(hops.iter().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    let Ok(to) = Ipv4Net::new(to, message.header.destination_prefix_length) else {
        return vec![];
    };
    let local = table == LOCAL_TABLE
        || matches!(message.header.kind, RouteType::Local | RouteType::Broadcast);
    let route = |device: Option<String>| Route { to, device, local };
    if devices.is_empty() {
        return vec![route(None)];
    }
    devices.iter().map(|i| route(names.get(i).map(|n| (*n).clone()))).collect()
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_core::{Emitable, Parseable};
    use rtnetlink::{LinkBridgePort, LinkVlan};

    use super::*;

    /// For kernels without VLANs, where no test sees one: what is asked for, byte by byte,
    /// is what is read.
    #[test]
    fn a_vlan_port_is_read_as_it_is_asked_for() {
        let mut asked = LinkVlan::new("bla-00000001", 7, 120).link_group(0xba51).build();
        // The kernel tells of the port's own settings in the same place.
        let port = LinkBridgePort::new(9).learning(true).flood(true).build();
        let of_port = port.attributes.iter().find_map(|a| match a {
            LinkAttribute::LinkInfo(infos) => Some(infos.clone()),
            _ => None,
        });
        for attribute in &mut asked.attributes {
            if let LinkAttribute::LinkInfo(infos) = attribute {
                infos.extend(of_port.clone().unwrap_or_default());
            }
        }
        let mut bytes = vec![0; asked.buffer_len()];
        asked.emit(&mut bytes);
        let read = LinkMessage::parse(bytes.as_slice()).unwrap();
        let (name, link) = super::link(&read).unwrap();
        assert_eq!((name.as_str(), link.group), ("bla-00000001", 0xba51));
        let settings = VlanSettings { vlan: 120, parent: 7 };
        assert_eq!(link.kind, LinkKind::Vlan(settings, PortSettings::TRUNK));
    }
}
