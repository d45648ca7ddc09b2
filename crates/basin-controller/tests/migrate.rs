//! VMs that move between two servers: through the API, with every fault at every point,
//! and with what is refused meanwhile.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::http::StatusCode;
use basin_api::task::{Task, TaskState};
use basin_controller::cluster::drains;
use basin_model::keys::{self, Kind};
use basin_model::{BytesPerSecond, VmId};
use basin_qemu::fake::{Fault, FaultPoint};
use basin_store::records::TxnBuilder;
use common::pair::Pair;
use serde_json::{Value, json};

/// Watches that the guest never runs on both servers.
struct Once(Arc<AtomicBool>);

impl Once {
    fn watch(pair: &Pair, vm: VmId) -> Once {
        let twice = Arc::new(AtomicBool::new(false));
        let (servers, seen) = (pair.servers.clone(), twice.clone());
        tokio::spawn(async move {
            loop {
                if servers[0].runs(vm) && servers[1].runs(vm) {
                    seen.store(true, Ordering::SeqCst);
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        Once(twice)
    }

    fn check(&self, what: &str) {
        assert!(!self.0.load(Ordering::SeqCst), "{what}: the guest ran twice");
    }
}

fn words(task: &Task) -> String {
    task.problem.as_ref().map(|p| format!("{} {}", p.detail, p.advice)).unwrap_or_default()
}

/// Nothing of the workflow is left but its task.
async fn nothing_is_held(pair: &Pair, vm: VmId, what: &str) {
    let lock = keys::lock(Kind::Vm, vm);
    assert!(pair.store.get(&lock).await.unwrap().is_none(), "{what}: the VM is still locked");
}

/// The world is one thread with a clock of its own: seconds of waiting cost none.
async fn check_fault(point: FaultPoint, fault: Fault, with_disks: bool) {
    let what = format!("{fault:?} at {point:?}, with disks: {with_disks}");
    eprintln!("{what}");
    let pair = Pair::open().await;
    let vm = pair.vm("a", if with_disks { "default" } else { "shared" }).await;
    let once = Once::watch(&pair, vm);
    pair.link.inject(point, fault);
    let mut request = json!({"host": "srv2"});
    if with_disks {
        request["datastore"] = json!("local2");
    }
    let task = pair.begin("POST", "/v1/vms/a/migrate", Some(request)).await;
    let task = pair.end(&task).await;
    pair.link.cut(false);
    pair.settled(vm).await;
    once.check(&what);
    nothing_is_held(&pair, vm, &what).await;
    let owner = pair.owner(vm);
    // The claim is what counts, however the task came to know of it.
    assert_eq!(task.state == TaskState::Done, owner == 1, "{what}: {task:?}");
    if owner == 0 {
        assert!(!words(&task).is_empty(), "{what}: it does not say why");
    }
    let expect: [usize; 2] = match (with_disks, owner) {
        (false, _) => [0, 0],
        (true, 0) => [1, 0],
        (true, _) => [0, 1],
    };
    let files = [0, 1].map(|n| pair.servers[n].volumes().len());
    assert_eq!(files, expect, "{what}: files are left, or missing");
    pair.close().await;
}

async fn check_faults(with_disks: bool) {
    use FaultPoint::{BeforeSwitch, Copying, Running, Sent, Start, Switching};
    for point in [Start, Copying, BeforeSwitch, Switching, Sent, Running] {
        for fault in [Fault::SourceDies, Fault::TargetDies, Fault::LinkCut, Fault::LinkBroken] {
            check_fault(point, fault, with_disks).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_fault_at_every_point_leaves_it_running_once() {
    check_faults(false).await;
}

#[tokio::test(start_paused = true)]
async fn every_fault_at_every_point_leaves_it_running_once_with_its_disks() {
    check_faults(true).await;
}

/// A VM that is on its way for as long as nobody ends it: it writes faster than the link.
async fn on_its_way(pair: &Pair) -> (VmId, Task) {
    let vm = pair.vm("a", "shared").await;
    pair.link.set_bandwidth(BytesPerSecond::mib(1));
    let task = pair.begin("POST", "/v1/vms/a/migrate", Some(json!({}))).await;
    loop {
        let (_, shown) = pair.ask("GET", "/v1/vms/a", None).await;
        if shown["status"]["state"] == "migrating" {
            assert_eq!(shown["migration"]["to"]["name"], "srv2");
            assert_eq!(shown["migration"]["task"], task.id.as_str());
            assert_eq!(shown["status"]["host"]["name"], "srv1");
            return (vm, task);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_move_leaves_it_where_it_was() {
    let pair = Pair::open().await;
    let (vm, task) = on_its_way(&pair).await;
    let (status, answer) = pair.ask("POST", &format!("/v1/tasks/{}/cancel", task.id), None).await;
    assert!(status.is_success(), "{answer}");
    let task = pair.end(&task).await;
    assert_eq!(task.state, TaskState::Cancelled);
    pair.settled(vm).await;
    assert_eq!((pair.owner(vm), pair.runs(vm)), (0, [true, false]));
    nothing_is_held(&pair, vm, "cancelled").await;
    pair.close().await;
}

#[tokio::test(start_paused = true)]
async fn its_progress_is_told_in_words() {
    let pair = Pair::open().await;
    let (_, task) = on_its_way(&pair).await;
    let words = loop {
        let (_, shown) = pair.ask("GET", &format!("/v1/tasks/{}", task.id), None).await;
        let message = shown["message"].as_str().unwrap().to_owned();
        if message.contains("left") {
            break message;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(words.starts_with("memory: ") && words.contains("of 64 MiB left"), "{words}");
    pair.close().await;
}

#[tokio::test(start_paused = true)]
async fn nobody_else_touches_it_meanwhile() {
    let pair = Pair::open().await;
    let (_, task) = on_its_way(&pair).await;
    let disk = json!({"disk": {"is": "new", "source": {"from": "blank", "size_bytes": 4096}}});
    let copy = json!({"name": "copy", "source": {"from": "volume", "volume": "a-disk0",
                                                 "clone": "full"}});
    let requests: [(&str, &str, Option<Value>); 12] = [
        ("POST", "/v1/vms/a/start", None),
        ("POST", "/v1/vms/a/shutdown", None),
        ("POST", "/v1/vms/a/power-off", None),
        ("POST", "/v1/vms/a/pause", None),
        ("POST", "/v1/vms/a/resume", None),
        ("POST", "/v1/vms/a/reset", None),
        ("POST", "/v1/vms/a/migrate", None),
        ("POST", "/v1/vms/a/disks", Some(disk)),
        ("PATCH", "/v1/vms/a", Some(json!({"memory_bytes": 128 << 20}))),
        ("DELETE", "/v1/vms/a?force=true", None),
        ("POST", "/v1/volumes/a-disk0/grow", Some(json!({"size_bytes": 2 << 20}))),
        ("POST", "/v1/volumes", Some(copy)),
    ];
    for (method, path, body) in requests {
        let (status, answer) = pair.ask(method, path, body).await;
        assert_eq!(status, StatusCode::CONFLICT, "{method} {path}: {answer}");
        let text = answer.to_string();
        assert!(text.contains("busy") && text.contains(&task.id), "{method} {path}: {text}");
    }
    pair.close().await;
}

/// Asks for a move that is refused, and gives back the refusal.
async fn refusal(pair: &Pair, request: Value) -> String {
    let (status, answer) = pair.ask("POST", "/v1/vms/a/migrate", Some(request)).await;
    assert_eq!(status, StatusCode::CONFLICT, "{answer}");
    answer.to_string()
}

#[tokio::test(start_paused = true)]
async fn what_prevents_it_is_said_in_full() {
    let pair = Pair::open().await;
    let vm = pair.vm("a", "default").await;
    pair.must("POST", "/v1/vms/a/pause", None).await;
    let (_, drained) = pair.ask("POST", "/v1/hosts/srv2/drain", Some(json!({}))).await;
    assert_eq!(drained["state"], "drained");
    let text = refusal(&pair, json!({"host": "srv2"})).await;
    for part in ["cannot-move", "being drained", "which only its server reaches", "--storage"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(refusal(&pair, json!({})).await.matches("being drained").count(), 1);
    pair.ask("DELETE", "/v1/hosts/srv2/drain", None).await;
    assert!(refusal(&pair, json!({"host": "srv1"})).await.contains("already"));
    // A server whose daemon is away.
    let gone = TxnBuilder::new().delete(keys::alive(pair.servers[1].host));
    let revision = gone.commit(&*pair.store).await.unwrap();
    pair.app.inventory().at_least(revision).await;
    let text = refusal(&pair, json!({"host": "srv2", "datastore": "shared"})).await;
    assert!(text.contains("srv2 does not answer"), "{text}");
    // Off, it needs no move.
    pair.must("POST", "/v1/vms/a/power-off", None).await;
    assert!(refusal(&pair, json!({})).await.contains("nothing to move"));
    let text = refusal(&pair, json!({"datastore": "shared"})).await;
    assert!(text.contains("Start it, then move it with --storage"), "{text}");
    assert_eq!(pair.owner(vm), 0);
    pair.close().await;
}

#[tokio::test(start_paused = true)]
async fn it_goes_back_and_forth_and_its_disks_along() {
    let pair = Pair::open().await;
    let vm = pair.vm("a", "shared").await;
    for (to, datastore) in [("srv2", "local2"), ("srv1", "shared"), ("srv2", "local2")] {
        let request = json!({"host": to, "datastore": datastore});
        pair.must("POST", "/v1/vms/a/migrate", Some(request)).await;
        pair.settled(vm).await;
        let (_, volume) = pair.ask("GET", "/v1/volumes/a-disk0", None).await;
        assert_eq!(volume["datastore"]["name"], datastore);
        assert_eq!(volume["format"], "raw");
    }
    assert_eq!(pair.servers[1].volumes().len(), 1);
    assert!(common::volume_files(&pair.dir.path().join("shared")).is_empty());
    // A paused one moves, and stays paused.
    pair.must("POST", "/v1/vms/a/pause", None).await;
    let request = json!({"host": "srv1", "datastore": "shared"});
    pair.must("POST", "/v1/vms/a/migrate", Some(request)).await;
    assert_eq!(pair.owner(vm), 0);
    assert_eq!(pair.runs(vm), [false, false]);
    pair.must("POST", "/v1/vms/a/resume", None).await;
    pair.settled(vm).await;
    pair.close().await;
}

/// Until the server is as the test wants it.
async fn host_until(pair: &Pair, host: &str, done: impl Fn(&Value) -> bool) -> Value {
    let begun = std::time::Instant::now();
    loop {
        let (_, shown) = pair.ask("GET", &format!("/v1/hosts/{host}"), None).await;
        if done(&shown) {
            return shown;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not come so far: {shown}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_is_emptied_and_stays_empty() {
    let pair = Pair::open().await;
    let stop = tokio_util::sync::CancellationToken::new();
    let duty = tokio::spawn(drains::keep(pair.app.clone(), stop.clone()));
    // Everything begins on the one.
    pair.ask("POST", "/v1/hosts/srv2/drain", None).await;
    let mut moving = Vec::new();
    for n in 0..5 {
        moving.push(pair.vm(&format!("m{n}"), "shared").await);
    }
    let local = pair.vm("local", "default").await;
    let off = pair.vm("off", "default").await;
    pair.must("POST", "/v1/vms/off/power-off", None).await;
    assert!(moving.iter().all(|vm| pair.owner(*vm) == 0));
    pair.ask("DELETE", "/v1/hosts/srv2/drain", None).await;
    pair.ask("POST", "/v1/hosts/srv1/drain", None).await;
    // All but the one whose disk is only here; that one is named, with the reason.
    let shown = host_until(&pair, "srv1", |host| {
        host["committed"]["vms"] == 1 && host["stuck"].as_array().is_some_and(|s| s.len() == 1)
    });
    let shown = shown.await;
    assert_eq!((&shown["state"], &shown["stuck"][0]["vm"]), (&json!("draining"), &json!("local")));
    assert_eq!(shown["stuck"][0]["waits"], false);
    assert!(shown["stuck"][0].to_string().contains("which only its server reaches"), "{shown}");
    for vm in &moving {
        pair.settled(*vm).await;
        assert_eq!(pair.owner(*vm), 1);
    }
    // Told to, its disk moves along, to the datastore of the other with the most room.
    let along = json!({"move_local_disks": true});
    pair.ask("POST", "/v1/hosts/srv1/drain", Some(along)).await;
    host_until(&pair, "srv1", |host| host["state"] == "drained").await;
    pair.settled(local).await;
    let (_, volume) = pair.ask("GET", "/v1/volumes/local-disk0", None).await;
    assert_ne!(volume["datastore"]["name"], "default");
    // What is off stays, and nothing comes back at the end.
    pair.ask("DELETE", "/v1/hosts/srv1/drain", None).await;
    host_until(&pair, "srv1", |host| host["state"] == "ready").await;
    assert_eq!(pair.owner(off), 0);
    assert!(moving.iter().all(|vm| pair.owner(*vm) == 1));
    stop.cancel();
    duty.await.unwrap();
    pair.close().await;
}

/// How many moves are under way at once is limited, and each failed one is tried again.
#[tokio::test(start_paused = true)]
async fn a_drain_goes_on_after_a_failed_move_and_keeps_to_its_limits() {
    let pair = Pair::open().await;
    let stop = tokio_util::sync::CancellationToken::new();
    let duty = tokio::spawn(drains::keep(pair.app.clone(), stop.clone()));
    pair.ask("POST", "/v1/hosts/srv2/drain", None).await;
    let mut vms = Vec::new();
    for n in 0..4 {
        vms.push(pair.vm(&format!("m{n}"), "shared").await);
    }
    pair.ask("DELETE", "/v1/hosts/srv2/drain", None).await;
    pair.servers[1].machines.fail_next_launches(1, "the test wants it to fail");
    let most = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (inventory, seen) = (pair.app.inventory().clone(), most.clone());
    tokio::spawn(async move {
        let mut changes = inventory.changes();
        while changes.changed().await.is_ok() {
            let snapshot = inventory.read();
            let vms = snapshot.vms.values();
            let moving = vms.filter(|vm| vm.value.migration.is_some()).count();
            seen.fetch_max(moving, Ordering::SeqCst);
        }
    });
    pair.ask("POST", "/v1/hosts/srv1/drain", None).await;
    let again = |host: &Value| host["stuck"].to_string().contains("tried again in");
    let waits = host_until(&pair, "srv1", again).await;
    let stuck = waits["stuck"].as_array().unwrap();
    assert!(stuck.len() == 1 && stuck[0]["waits"] == true, "{waits}");
    assert!(waits.to_string().contains("the test wants it to fail"), "{waits}");
    host_until(&pair, "srv1", |host| host["state"] == "drained").await;
    for vm in vms {
        pair.settled(vm).await;
        assert_eq!(pair.owner(vm), 1);
    }
    let most = most.load(Ordering::SeqCst);
    assert!((1..=2).contains(&most), "{most} at once");
    stop.cancel();
    duty.await.unwrap();
    pair.close().await;
}

/// A daemon of either side dies while the guest moves, and the next one goes on.
async fn check_restart(which: usize) {
    let mut pair = Pair::open().await;
    let (vm, task) = on_its_way(&pair).await;
    let once = Once::watch(&pair, vm);
    pair.restart(which).await;
    pair.link.set_bandwidth(BytesPerSecond::mib(1024));
    let task = pair.end(&task).await;
    pair.settled(vm).await;
    once.check("a daemon was restarted");
    assert_eq!(task.state, TaskState::Done, "{:?}", task.problem);
    assert_eq!(pair.owner(vm), 1);
    pair.close().await;
}

#[tokio::test(start_paused = true)]
async fn the_source_s_daemon_may_restart() {
    check_restart(0).await;
}

#[tokio::test(start_paused = true)]
async fn the_target_s_daemon_may_restart() {
    check_restart(1).await;
}

/// Nobody knows whether the guest runs at a target that cannot be asked: its source stands
/// still until the target answers, and then goes on.
#[tokio::test(start_paused = true)]
async fn a_target_that_cannot_be_asked_is_waited_for() {
    let pair = Pair::open().await;
    let vm = pair.vm("a", "shared").await;
    let once = Once::watch(&pair, vm);
    // The last state is on its way for ever.
    pair.link.inject(FaultPoint::Sent, Fault::LinkCut);
    let task = pair.begin("POST", "/v1/vms/a/migrate", Some(json!({"host": "srv2"}))).await;
    let inventory = pair.app.inventory();
    let announced = || inventory.read().vms[&vm].value.migration.is_some();
    let guest = pair.servers[0].machines.guest(vm).unwrap();
    while !(announced() && guest.state() == basin_qemu::MachineState::Switching) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    pair.known.silence(pair.servers[1].host, true);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(pair.runs(vm), [false, false]);
    assert!(announced(), "it was taken back although its target was not asked");
    let (_, shown) = pair.ask("GET", &format!("/v1/tasks/{}", task.id), None).await;
    assert!(shown["message"].as_str().unwrap().contains("srv2"), "{shown}");
    pair.known.silence(pair.servers[1].host, false);
    let task = pair.end(&task).await;
    assert_eq!(task.state, TaskState::Failed);
    pair.settled(vm).await;
    once.check("its target was silent");
    assert_eq!(pair.runs(vm), [true, false]);
    pair.close().await;
}

/// A source that nobody reaches may be dead: after a minute its target gives up, and the
/// VM is left to the source, once that answers.
#[tokio::test(start_paused = true)]
async fn a_source_that_does_not_answer_keeps_its_guest() {
    let pair = Pair::open().await;
    let (vm, task) = on_its_way(&pair).await;
    pair.link.cut(true);
    pair.known.silence(pair.servers[0].host, true);
    let target = &pair.servers[1].machines;
    while target.guest(vm).is_some() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(pair.runs(vm), [true, false]);
    let held = || pair.app.inventory().read().vms[&vm].value.migration.is_some();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(held(), "it was taken back although its source was not asked");
    pair.known.silence(pair.servers[0].host, false);
    let task = pair.end(&task).await;
    assert_eq!(task.state, TaskState::Failed);
    pair.settled(vm).await;
    assert_eq!(pair.runs(vm), [true, false]);
    pair.close().await;
}

/// Somebody vouches that the target does not come back.
#[tokio::test(start_paused = true)]
async fn a_target_that_is_removed_is_waited_for_no_longer() {
    let pair = Pair::open().await;
    let vm = pair.vm("a", "shared").await;
    pair.link.inject(FaultPoint::Sent, Fault::LinkCut);
    let task = pair.begin("POST", "/v1/vms/a/migrate", Some(json!({"host": "srv2"}))).await;
    let guest = pair.servers[0].machines.guest(vm).unwrap();
    while guest.state() != basin_qemu::MachineState::Switching {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    pair.known.silence(pair.servers[1].host, true);
    pair.servers[1].machines.reboot();
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(pair.runs(vm), [false, false]);
    let gone = TxnBuilder::new().delete(keys::host(pair.servers[1].host));
    gone.commit(&*pair.store).await.unwrap();
    let task = pair.end(&task).await;
    assert_eq!(task.state, TaskState::Failed);
    let running = async {
        while pair.runs(vm) != [true, false] {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(600), running).await.expect("it does not go on");
    assert!(pair.app.inventory().read().vms[&vm].value.migration.is_none());
    pair.close().await;
}

/// QEMU refuses a post-copy at its target, in the middle of the move, if what serves the
/// disks cannot wait for memory: so it is asked for before anything begins.
#[tokio::test(start_paused = true)]
async fn a_vm_with_disks_goes_by_postcopy_only_to_where_they_can_wait_for_memory() {
    let pair = Pair::open().await;
    let vm = pair.vm("a", "shared").await;
    let at_once = json!({"postcopy": "at_once"});
    let task = pair.begin("POST", "/v1/vms/a/migrate", Some(at_once.clone())).await;
    let task = pair.end(&task).await;
    assert_eq!(task.state, TaskState::Failed);
    assert!(words(&task).contains("no post-copy: "), "{}", words(&task));
    assert_eq!((pair.owner(vm), pair.runs(vm)), (0, [true, false]));
    assert!(pair.servers[1].machines.guest(vm).is_none(), "nothing has begun");
    nothing_is_held(&pair, vm, "refused").await;
    // Where it is only a last resort, the move does without.
    pair.link.set_bandwidth(BytesPerSecond::mib(1));
    let fallback = json!({"postcopy": "fallback"});
    let task = pair.begin("POST", "/v1/vms/a/migrate", Some(fallback)).await;
    loop {
        let (_, shown) = pair.ask("GET", &format!("/v1/tasks/{}", task.id), None).await;
        let message = shown["message"].as_str().unwrap();
        assert_eq!(shown["state"], "running", "{shown}");
        if message.contains("left") {
            assert!(message.contains("; no post-copy: "), "{message}");
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    pair.link.set_bandwidth(BytesPerSecond::mib(1000));
    assert_eq!(pair.end(&task).await.state, TaskState::Done);
    pair.settled(vm).await;
    // Back to a server whose disks can.
    pair.servers[0].disks.allow_postcopy();
    pair.must("POST", "/v1/vms/a/migrate", Some(at_once)).await;
    pair.settled(vm).await;
    assert_eq!(pair.owner(vm), 0);
    pair.close().await;
}
