//! Golden outputs: a VM in a list and on its own sheet.

use serde_json::json;

use super::*;
use crate::cli::table::table;

fn vm() -> Vm {
    serde_json::from_value(json!({
        "id": "0190", "name": "web", "description": "the shop", "labels": {"tier": "gold"},
        "created_at": "2026-01-01T00:00:00Z", "revision": 7,
        "hardware": {"vcpus": 2, "memory_bytes": 2u64 << 30, "cpu_model": "auto",
                     "machine": "q35", "boot": {"firmware": "uefi"}},
        "disks": [{"volume": {"id": "d0", "name": "web-disk0"}, "size_bytes": 20u64 << 30,
                   "format": "qcow2", "read_only": false, "serial": "d0", "delete_with_vm": true},
                  {"volume": {"id": "d1", "name": "data"}, "size_bytes": 1u64 << 40,
                   "format": "raw", "read_only": true, "serial": "d1", "delete_with_vm": false}],
        "cdroms": [],
        "nics": [{"id": "n0", "network": {"id": "n", "name": "default"},
                  "mac": "52:54:00:00:00:01", "address": "10.80.0.10"}],
        "policy": {"guest_crash": "restart", "machine_death": "leave"},
        "cloud_init": true, "wanted": "running",
        "status": {"state": "backing_off", "since": "2026-01-01T00:59:00Z",
                   "host": {"id": "h", "name": "server"}, "generation": 1, "failures": 2,
                   "last_failure": {"at": "2026-01-01T00:59:00Z", "kind": "guest_panic",
                                    "message": "oops \u{1b}[2J"}},
    }))
    .expect("a VM")
}

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().expect("a time")
}

#[test]
fn in_a_list() {
    let expect = "\
NAME   STATE         CPUS   MEMORY   ADDRESS      HOST     AGE
web    backing-off   2      2GiB     10.80.0.10   server   1h
";
    assert_eq!(table(Vm::COLUMNS, &[vm().row(now())]), expect);
}

#[test]
fn on_its_way() {
    let mut vm = vm();
    vm.status.state = basin_api::vm::State::Migrating;
    let to = serde_json::json!({"to": {"id": "h2", "name": "srv2"}, "task": "0191"});
    vm.migration = Some(serde_json::from_value(to).expect("a migration"));
    assert_eq!(vm.row(now())[1], "migrating");
    let sheet = vm.sheet(now()).render();
    assert!(sheet.contains("Moves to:       srv2 (task 0191)\n"), "{sheet}");
}

#[test]
fn on_a_sheet() {
    let expect = "\
Name:           web
Id:             0190
Description:    the shop
Labels:         tier=gold
Created:        2026-01-01T00:00:00Z (1h ago)
State:          backing-off for 1m
Wanted:         running
Host:           server
Last failure:   guest_panic: oops \\u{1b}[2J (1m ago)
Failures:       2 in a row
CPUs:           2 (auto)
Memory:         2GiB
Machine:        q35
Boot:           UEFI
On failure:     restart when the guest crashes, leave when the machine dies
Cloud-init:     yes
Disks:
  VOLUME      SIZE    FORMAT   SERIAL   NOTES
  web-disk0   20GiB   qcow2    d0       -
  data        1TiB    raw      d1       read-only, stays when the VM is deleted
Interfaces:
  NETWORK   ADDRESS      MAC
  default   10.80.0.10   52:54:00:00:00:01
";
    assert_eq!(vm().sheet(now()).render(), expect);
}
