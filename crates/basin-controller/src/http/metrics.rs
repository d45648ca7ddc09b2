//! `/metrics`: figures for Prometheus, in the OpenMetrics text format.

use std::sync::atomic::AtomicU64;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use basin_model::Bytes;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::{Context, convert};

/// What is counted as it happens; the rest is read when somebody asks.
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    seconds: Family<PathLabels, Histogram, fn() -> Histogram>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let histogram: fn() -> Histogram = || Histogram::new(exponential_buckets(0.000_5, 2.0, 16));
        Metrics { requests: Family::default(), seconds: Family::new_with_constructor(histogram) }
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    method: String,
    path: String,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PathLabels {
    method: String,
    path: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct VmLabels {
    vm: String,
    id: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabels {
    state: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct HostLabels {
    host: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DatastoreLabels {
    datastore: String,
}

/// Counts and times every request by its route (not by its path: names are many).
pub async fn observe(State(context): State<Context>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|p| p.as_str().to_owned());
    let path = route.unwrap_or_else(|| "none".to_owned());
    let method = request.method().to_string();
    let start = Instant::now();
    let response = next.run(request).await;
    let metrics = &context.metrics;
    let labels = PathLabels { method: method.clone(), path: path.clone() };
    metrics.seconds.get_or_create(&labels).observe(start.elapsed().as_secs_f64());
    let status = response.status().as_u16();
    metrics.requests.get_or_create(&RequestLabels { method, path, status }).inc();
    response
}

type F = Gauge<f64, AtomicU64>;

/// Everything, as text.
pub async fn render(context: &Context) -> String {
    let mut registry = Registry::with_prefix("basin");
    registry.register("http_requests", "API requests", context.metrics.requests.clone());
    registry.register_with_unit(
        "http_request_duration",
        "How long API requests took",
        Unit::Seconds,
        context.metrics.seconds.clone(),
    );
    hosts(context, &mut registry).await;
    vms(context, &mut registry);
    datastores(context, &mut registry).await;
    let mut text = String::new();
    // A String takes every write.
    let _ = encode(&mut text, &registry);
    text
}

fn gauge<L>(registry: &mut Registry, name: &str, help: &str, unit: Option<Unit>) -> Family<L, Gauge>
where
    L: Clone + std::hash::Hash + Eq + EncodeLabelSet + std::fmt::Debug + Send + Sync + 'static,
{
    let family = Family::<L, Gauge>::default();
    match unit {
        Some(unit) => registry.register_with_unit(name, help, unit, family.clone()),
        None => registry.register(name, help, family.clone()),
    }
    family
}

fn clamp(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

async fn hosts(context: &Context, registry: &mut Registry) {
    let bytes = || Some(Unit::Bytes);
    let memory = gauge(registry, "host_memory", "Memory offered to VMs", bytes());
    let committed = gauge(registry, "host_memory_committed", "Memory promised to VMs", bytes());
    let available =
        gauge(registry, "host_memory_available", "Memory the server has available", bytes());
    let daemon = gauge(registry, "daemon_resident_memory", "Memory of the daemon", bytes());
    let blockd = gauge(registry, "blockd_resident_memory", "Memory of blockd", bytes());
    let up = gauge(registry, "host_up", "1 if the server answers", None);
    let kvm = gauge(registry, "host_kvm_usable", "1 if VMs run on KVM", None);
    let vm_cpu = Family::<VmLabels, F>::default();
    registry.register_with_unit("vm_cpu", "CPU time of QEMU", Unit::Seconds, vm_cpu.clone());
    let resident = gauge(registry, "vm_resident_memory", "Memory of QEMU", bytes());
    let free = gauge(registry, "vm_guest_free_memory", "Free memory in the guest's eyes", bytes());
    let read = gauge(registry, "vm_disk_read", "Read from disks", bytes());
    let written = gauge(registry, "vm_disk_written", "Written to disks", bytes());
    let stalled = gauge(registry, "vm_disks_stalled", "Disks whose requests wait", None);
    let received = gauge(registry, "vm_network_received", "Received by the guest", bytes());
    let sent = gauge(registry, "vm_network_sent", "Sent by the guest", bytes());

    let usages = context.app.nodes().usages().await;
    let snapshot = context.app.inventory().read();
    for record in snapshot.hosts.values() {
        let host = convert::host::host(record, &snapshot, &[]);
        let labels = HostLabels { host: host.meta.name };
        committed.get_or_create(&labels).set(clamp(host.committed.memory_bytes));
        if let Some(status) = host.status {
            memory.get_or_create(&labels).set(clamp(status.memory_bytes));
            kvm.get_or_create(&labels).set(i64::from(status.accelerator == "kvm"));
        }
        let usage = usages.get(&record.value.id);
        up.get_or_create(&labels).set(i64::from(usage.is_some_and(Result::is_ok)));
        if let Some(Ok(usage)) = usage {
            let figures = usage.host;
            available.get_or_create(&labels).set(clamp(figures.memory_available.get()));
            daemon.get_or_create(&labels).set(clamp(figures.daemon_resident.get()));
            let of_blockd = figures.blockd_resident.map_or(0, Bytes::get);
            blockd.get_or_create(&labels).set(clamp(of_blockd));
        }
    }
    for (id, figures) in usages.values().flatten().flat_map(|usage| &usage.vms) {
        let Some(record) = snapshot.vms.get(id) else { continue };
        let labels = VmLabels { vm: record.value.meta.name.to_string(), id: id.to_string() };
        let shown = convert::usage::vm(figures);
        vm_cpu.get_or_create(&labels).set(figures.cpu_time.as_secs_f64());
        resident.get_or_create(&labels).set(clamp(shown.resident_bytes));
        if let Some(bytes) = shown.guest_free_bytes {
            free.get_or_create(&labels).set(clamp(bytes));
        }
        read.get_or_create(&labels).set(clamp(shown.disk_read_bytes));
        written.get_or_create(&labels).set(clamp(shown.disk_written_bytes));
        stalled.get_or_create(&labels).set(clamp(shown.stalled.len() as u64));
        received.get_or_create(&labels).set(clamp(shown.network_received_bytes));
        sent.get_or_create(&labels).set(clamp(shown.network_sent_bytes));
    }
}

fn vms(context: &Context, registry: &mut Registry) {
    let count = gauge(registry, "vms", "Virtual machines by state", None);
    let tasks = Gauge::<i64>::default();
    registry.register("tasks_running", "Tasks under way", tasks.clone());
    tasks.set(clamp(context.app.workflows.running() as u64));
    let snapshot = context.app.inventory().read();
    for record in snapshot.vms.values() {
        let state = convert::vm::state_word(convert::vm::state(record.value.id, &snapshot));
        count.get_or_create(&StateLabels { state: state.to_owned() }).inc();
    }
}

async fn datastores(context: &Context, registry: &mut Registry) {
    let bytes = || Some(Unit::Bytes);
    let total = gauge(registry, "datastore_capacity", "Space of a datastore", bytes());
    let free = gauge(registry, "datastore_free", "Space left", bytes());
    let promised = gauge(registry, "datastore_provisioned", "Space promised to volumes", bytes());
    let capacities = context.app.capacities().await;
    let snapshot = context.app.inventory().read();
    for record in snapshot.datastores.values() {
        let capacity = capacities.get(&record.value.id).copied();
        let shown = convert::datastore::datastore(record, capacity, &snapshot);
        let labels = DatastoreLabels { datastore: shown.meta.name };
        if let Some(space) = shown.space {
            total.get_or_create(&labels).set(clamp(space.total_bytes));
            free.get_or_create(&labels).set(clamp(space.free_bytes));
            promised.get_or_create(&labels).set(clamp(space.provisioned_bytes));
        }
    }
}
