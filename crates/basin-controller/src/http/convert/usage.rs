//! Figures of the moment.

use basin_api::host::{Condition, Host, HostUsage};
use basin_api::vm::{Guest, Usage};
use basin_model::Bytes;
use basin_model::task::Problem;
use basin_node::{self as model, DiskUsage, NicUsage, NodeUsage, VmUsage};

pub fn vm(usage: &VmUsage) -> Usage {
    let balloon = usage.balloon.unwrap_or_default();
    let disks = |of: fn(&DiskUsage) -> Bytes| usage.disks.values().map(of).sum::<Bytes>().get();
    let nics = |of: fn(&NicUsage) -> Bytes| usage.nics.values().map(of).sum::<Bytes>().get();
    Usage {
        cpu_milliseconds: u64::try_from(usage.cpu_time.as_millis()).unwrap_or(u64::MAX),
        resident_bytes: usage.resident.get(),
        guest_free_bytes: balloon.free.map(Bytes::get),
        guest_available_bytes: balloon.available.map(Bytes::get),
        disk_read_bytes: disks(|d| d.read),
        disk_written_bytes: disks(|d| d.written),
        network_received_bytes: nics(|n| n.received),
        network_sent_bytes: nics(|n| n.sent),
        stalled: usage.disks.values().filter_map(|d| d.stalled.clone()).collect(),
        guest: usage.guest.as_ref().map(|g| Guest {
            hostname: g.hostname.clone(),
            os: g.os.clone(),
            addresses: g.addresses.iter().map(ToString::to_string).collect(),
        }),
    }
}

/// A server's figures, or why it does not tell them, as one of its conditions.
pub fn of_host(shown: &mut Host, usage: &Result<NodeUsage, Problem>) {
    let Some(status) = &mut shown.status else { return };
    match usage {
        Ok(usage) => status.usage = Some(host(&usage.host)),
        Err(problem) => status.conditions.push(Condition {
            subject: "connection".to_owned(),
            detail: problem.detail.clone(),
            advice: problem.advice.clone(),
        }),
    }
}

fn host(usage: &model::HostUsage) -> HostUsage {
    HostUsage {
        memory_available_bytes: usage.memory_available.get(),
        daemon_resident_bytes: usage.daemon_resident.get(),
        blockd_resident_bytes: usage.blockd_resident.map(Bytes::get),
    }
}
