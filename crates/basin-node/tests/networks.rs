//! What a node's networks are made of: other servers, where machines are, and what
//! one network's trouble means for the others.

mod common;

use std::net::{IpAddr, Ipv4Addr};

use basin_model::host::{Host, HostStatus};
use basin_model::network::{Network, NetworkKind, Vni};
use basin_model::vm::{Phase, Placement};
use basin_model::{Generation, HostId, NetworkId, keys};
use basin_net::NetworkSpec;
use basin_store::records;
use uuid::Uuid;

use common::{Server, meta};

async fn host(server: &Server, id: HostId, address: Ipv4Addr) {
    let host = serde_json::json!({
        "id": id, "meta": meta(&format!("h{}", address.octets()[3])), "address": IpAddr::V4(address),
    });
    let host: Host = serde_json::from_value(host).unwrap();
    server.put(&keys::host(id), &host).await;
}

async fn network(server: &Server, id: NetworkId, name: &str, subnet: &str, vni: u32) {
    let kind = NetworkKind::Nat { subnet: subnet.parse().unwrap(), domain: "vm.test".into() };
    let network = Network { id, meta: meta(name), kind, vni: Vni::new(vni), mtu: None };
    server.put(&keys::network(id), &network).await;
}

/// Waits until the server has this network with this in it.
async fn has(server: &Server, wanted: impl Fn(&NetworkSpec) -> bool) {
    let found = async || server.fabric.networks().iter().any(&wanted).then_some(());
    server.until(found).await;
}

#[tokio::test]
async fn a_server_follows_machines_and_servers_as_they_come_and_go() {
    let server = Server::new().await;
    let (here, there) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
    let other = HostId::from_uuid(Uuid::new_v4());
    let mut vm = server.vm(1);
    vm.placement = Some(Placement { host: other, generation: Generation(1) });
    server.write(&vm).await;
    let node = server.start().await;
    // Alone it has no way to others, wherever machines are.
    has(&server, |n| n.overlay.is_none() && n.leases.len() == 1).await;

    network(&server, server.network, "default", "10.80.0.0/16", 7).await;
    host(&server, other, there).await;
    host(&server, server.host, here).await;
    has(&server, |n| {
        n.overlay.as_ref().is_some_and(|o| o.local == here && o.peers == [there].into())
            && n.leases[0].at == Some(there)
    })
    .await;
    let mtu = async || {
        let key = keys::host_status(server.host);
        let found = records::get::<HostStatus>(&*server.store, &key).await.unwrap()?;
        found.value.overlay_mtu
    };
    assert_eq!(server.until(mtu).await, Network::OVERLAY_MTU);

    vm.placement = Some(Placement { host: server.host, generation: Generation(2) });
    server.run(&mut vm).await;
    has(&server, |n| n.leases[0].at.is_none()).await;
    server.wait(vm.id, |s| s.phase == Phase::Running).await;
    // The other server is removed.
    basin_store::records::TxnBuilder::new()
        .delete(keys::host(other))
        .commit(&*server.store)
        .await
        .unwrap();
    has(&server, |n| n.overlay.as_ref().is_some_and(|o| o.peers.is_empty())).await;
    node.shutdown().await;
}

#[tokio::test]
async fn one_networks_trouble_is_not_the_others() {
    let server = Server::new().await;
    let bad = NetworkId::from_uuid(Uuid::new_v4());
    network(&server, bad, "bad", "10.81.0.0/16", 8).await;
    server.fabric.refuse(bad);
    let node = server.start().await;
    let mut vm = server.vm(1);
    server.run(&mut vm).await;
    server.wait(vm.id, |s| s.phase == Phase::Running).await;
    let status = async || {
        let key = keys::host_status(server.host);
        let found = records::get::<HostStatus>(&*server.store, &key).await.unwrap()?;
        let conditions = found.value.conditions.into_iter();
        conditions.into_iter().find(|c| c.subject == "networks")
    };
    let condition = server.until(status).await;
    assert!(condition.problem.detail.contains(&bad.to_string()), "{condition:?}");
    node.shutdown().await;
}
